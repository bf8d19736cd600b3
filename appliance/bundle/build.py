"""Write a release: hash everything, sign the manifest, then write one plain tar, the same bytes every time.

The manifest names every member with its digest before the first byte is written; while writing, each file is hashed
again, so that a file that changes under the build ends it instead of slipping into a release.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from appliance import documents
from appliance.bundle.inputs import Payload
from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.manifest import (
    DELTA_TYPE,
    RELEASE_TYPE,
    Manifest,
    Member,
    archive_name,
    read_delta,
    read_manifest,
    region_bytes,
)
from appliance.bundle.stage0.media import DELTA, DELTA_SIGNATURE, MANIFEST, SIGNATURE
from appliance.bundle.stage0.ustar import END_BLOCKS, fits, padded, tar_header
from appliance.errors import BundleError
from appliance.files import read_tree, replaced, require_room, translated

SEGMENT_BYTES = 4 * 1024 * 1024
MAX_TRUST_BYTES = 8 * 1024 * 1024
Progress = Callable[[str, int | None, int | None], None]


class StatementSigner(Protocol):
    """What the build needs of `trust.signing.Signer`."""

    def sign_statement(self, payload: bytes) -> bytes:
        """Sign canonical JSON; returns a Sigstore bundle."""


@dataclass(frozen=True)
class Identity:
    """What a release calls itself; see `Manifest`."""

    name: str
    version: str
    epoch: int
    profile: str
    target: dict[str, str]
    created: dt.datetime
    state_version: int = 1


@dataclass(frozen=True)
class Built:
    """A release, written.

    Attributes:
        path: the archive.
        manifest: its manifest.
        sha256: of the whole archive.
        size_bytes: of the whole archive.
        stage0_sha256: of `stage0.py`, for the second channel.
        anchor_sha256: of the anchor, for the second channel.
    """

    path: Path
    manifest: Manifest
    sha256: str
    size_bytes: int
    stage0_sha256: str | None
    anchor_sha256: str


def read_trust(anchor: Path, repository: Path) -> dict[str, bytes]:
    """The trust metadata that a release carries: name below `trust/` -> content."""
    files = read_tree(repository, max_files=60, max_bytes=MAX_TRUST_BYTES)
    return {"anchor.json": anchor.read_bytes(), **{name: files[name] for name in sorted(files)}}


def build(
    identity: Identity,
    payload: Sequence[Payload],
    trust: dict[str, bytes],
    signer: StatementSigner,
    out: Path,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    progress: Progress = lambda _text, _done, _all: None,
) -> Built:
    """Build and sign a release archive.

    Args:
        identity: what it is.
        payload: its files in their fixed order (`inputs.collect`).
        trust: `read_trust`.
        signer: the release signer.
        out: folder for `<name>-<version>.tar` and the files beside it.
        segment_bytes: length of the pieces whose digests name a damaged volume; a multiple of 512.
        progress: called with a text and bytes done and in all.

    Returns:
        Where it lies and its digests.

    Raises:
        BundleError: BUNDLE_INPUT where a file changes meanwhile; BUNDLE_NAME, BUNDLE_LIMIT for what no reader accepts.
        FileError: FILE_NO_SPACE, FILE_PERMISSION.
    """
    with appliance_errors():
        members, segments = measured(payload, segment_bytes, progress)
        document = manifest_document(
            identity,
            members=members,
            trust=trust,
            segment_bytes=segment_bytes,
            segments=segments,
            installed=unpacked(payload),
        )
        manifest_bytes = documents.write_json(document)
        manifest = read_manifest(manifest_bytes)  # what no reader would accept is not built
        with translated(out):
            out.mkdir(parents=True, exist_ok=True)
        # before the signature, which the log keeps for ever
        require_room(out, region_bytes(manifest.members), what=f"the files of {identity.version}")
        head = {
            **{f"trust/{name}": data for name, data in trust.items()},
            MANIFEST: manifest_bytes,
            SIGNATURE: signer.sign_statement(manifest_bytes),
        }
        path = out / f"{identity.name}-{identity.version}.tar"
        digest, size = write_archive(path, head, zip(members, payload, strict=True), progress)
    stage0 = next((member.sha256 for member in members if member.path == "stage0.py"), None)
    return Built(path, manifest, digest, size, stage0, hashlib.sha256(trust["anchor.json"]).hexdigest())


def manifest_document(
    identity: Identity,
    *,
    members: Sequence[Member],
    trust: dict[str, bytes],
    segment_bytes: int,
    segments: Sequence[str],
    installed: tuple[int, int],
) -> dict[str, Any]:
    """The manifest as JSON will hold it; `installed` is what `unpacked` counted."""
    return {
        "_type": RELEASE_TYPE,
        "schema_version": 1,
        "name": identity.name,
        "version": identity.version,
        "epoch": identity.epoch,
        "profile": identity.profile,
        "target": identity.target,
        "created": identity.created.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "state_version": identity.state_version,
        "installed_bytes": installed[0],
        "installed_files": installed[1],
        "trust": [
            Member(f"trust/{name}", len(data), hashlib.sha256(data).hexdigest()).as_dict()
            for name, data in trust.items()
        ],
        "members": [member.as_dict() for member in members],
        "segment_bytes": segment_bytes,
        "segments": list(segments),
    }


def unpacked(payload: Sequence[Payload]) -> tuple[int, int]:
    """Bytes and files that the wheels take when they are unpacked, told by their directories."""
    size = count = 0
    for file in payload:
        if file.path.endswith(".whl"):
            with zipfile.ZipFile(
                io.BytesIO(file.content) if isinstance(file.content, bytes) else file.content
            ) as wheel:
                size += sum(entry.file_size for entry in wheel.infolist())
                count += len(wheel.infolist())
    return size, count


def delta_document(base: str, manifest: Manifest, carried: Sequence[Member], segments: Sequence[str]) -> dict[str, Any]:
    """The delta statement as JSON will hold it."""
    return {
        "_type": DELTA_TYPE,
        "schema_version": 1,
        "base": base,
        "target": manifest.digest,
        "carried": [member.path for member in carried],
        "segment_bytes": manifest.segment_bytes,
        "segments": list(segments),
    }


def delta_head(
    head: dict[str, bytes], statement: bytes, manifest: Manifest, signer: StatementSigner
) -> dict[str, bytes]:
    """The head of a delta: that of the release, and the delta's own signed statement."""
    read_delta(statement, manifest)
    return {**head, DELTA: statement, DELTA_SIGNATURE: signer.sign_statement(statement)}


class SegmentDigests:
    """Digests of consecutive pieces of one length over a stream."""

    def __init__(self, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._current = hashlib.sha256()
        self._filled = 0
        self._done: list[str] = []

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream."""
        view = memoryview(data)
        while view:
            piece = view[: self._segment_bytes - self._filled]
            self._current.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == self._segment_bytes:
                self._close()

    def finish(self) -> list[str]:
        """All digests, the last of a shorter piece."""
        if self._filled:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(self._current.hexdigest())
        self._current, self._filled = hashlib.sha256(), 0


def measured(payload: Sequence[Payload], segment_bytes: int, progress: Progress) -> tuple[list[Member], list[str]]:
    """Length and digest of every file, and the digests of the region they will fill."""
    sizes = [file.size_bytes for file in payload]
    segments, members, done = SegmentDigests(segment_bytes), [], 0
    for file, size in zip(payload, sizes, strict=True):
        digest, seen = hashlib.sha256(), 0
        name = archive_name(file.path, "" if fits(file.path) else file.sha256())
        segments.update(tar_header(name, size, executable=file.executable))
        for chunk in file.chunks():
            digest.update(chunk)
            segments.update(chunk)
            seen += len(chunk)
            progress("hashing", done + seen, sum(sizes))
        if seen != size:
            raise BundleError("BUNDLE_INPUT", f"{file.path} changed while it was read", path=file.path)
        segments.update(bytes(padded(size) - size))
        members.append(Member(file.path, size, digest.hexdigest(), file.executable))
        done += size
    segments.update(END_BLOCKS)
    return members, segments.finish()


def write_archive(
    path: Path, head: dict[str, bytes], members: Iterable[tuple[Member, Payload]], progress: Progress
) -> tuple[str, int]:
    """Write head, members and end, each member hashed against its entry; returns SHA-256 and size of the file."""
    pairs = list(members)
    total = region_bytes(tuple(member for member, _ in pairs))
    digest, size = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as stream:

        def put(data: bytes) -> None:
            nonlocal size
            stream.write(data)
            digest.update(data)
            size += len(data)

        for name, data in head.items():
            put(tar_header(name, len(data)) + data + bytes(padded(len(data)) - len(data)))
        before = size
        for member, file in pairs:
            put(member.header)
            content = hashlib.sha256()
            for chunk in file.chunks():
                content.update(chunk)
                put(chunk)
                progress("writing", size - before, total)
            if content.hexdigest() != member.sha256:
                raise BundleError("BUNDLE_INPUT", f"{file.path} changed while it was read", path=file.path)
            put(bytes(padded(member.size_bytes) - member.size_bytes))
        put(END_BLOCKS)
    return digest.hexdigest(), size
