"""A delta: the head of a full release, a signed statement of its base, and only the members the zone lacks.

The manifest is that of the full release, so a delta installation ends at the very digest of a full one; what is not
carried is taken from the installed base, each file hashed before it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance import documents
from appliance.bundle.authentication import Authenticator
from appliance.bundle.build import (
    Progress,
    StatementSigner,
    delta_document,
    delta_head,
    measured,
    write_archive,
)
from appliance.bundle.inputs import Payload
from appliance.bundle.inventory import Inventory
from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.manifest import Manifest, Member
from appliance.bundle.stage0.media import Head, choose, open_sources
from appliance.bundle.stage0.region import Region
from appliance.bundle.stage0.ustar import BLOCK, span
from appliance.errors import BundleError


@dataclass(frozen=True)
class BuiltDelta:
    """A delta, written.

    Attributes:
        path: the archive.
        manifest: of the release it completes to.
        base: digest of the release it builds upon.
        carried: the members that travel.
        size_bytes, sha256: of the archive.
        full_bytes: what the full release's payload takes.
    """

    path: Path
    manifest: Manifest
    base: str
    carried: tuple[Member, ...]
    size_bytes: int
    sha256: str
    full_bytes: int


@dataclass(frozen=True)
class _Carried(Payload):
    """A member read out of the full release's archive or volumes."""

    region: Region | None = None
    offset: int = 0
    length: int = 0

    @property
    def size_bytes(self) -> int:
        return self.length

    def chunks(self, chunk_bytes: int = 1024 * 1024) -> Iterator[bytes]:
        for start in range(0, self.length, chunk_bytes):
            piece = bytearray(min(chunk_bytes, self.length - start))
            assert self.region is not None  # noqa: S101 (the default exists for the dataclass's order of fields only)
            self.region.read_into(self.offset + start, memoryview(piece))
            yield bytes(piece)


def build_delta(
    full: Sequence[Path],
    base: Inventory,
    signer: StatementSigner,
    out: Path,
    *,
    anchor: bytes,
    now: datetime,
    progress: Progress = lambda _text, _done, _all: None,
) -> BuiltDelta:
    """Build a delta from a full release and what a zone has.

    Args:
        full: the full release (archive, volumes, folders); it is verified on the way.
        base: the zone's verified inventory.
        signer: the release signer.
        out: folder for `<name>-<version>-from-<base version>.tar`.
        anchor: trust anchor for the full release.
        now: the clock.
        progress: called with a text and bytes done and in all.

    Raises:
        BundleError: BUNDLE_DELTA_BASE where it would change nothing or the inventory is of another product.
    """
    heads: dict[str, Head] = {}
    with appliance_errors(), open_sources(full) as (sources, unreadable):
        authenticator = Authenticator(anchor, now=now)

        def authenticate(head: Head) -> Manifest:
            manifest = authenticator(head).release.manifest
            heads[manifest.digest] = head
            return manifest

        manifest, chosen, set_aside = choose(sources, authenticate)
        release = authenticator(heads[manifest.digest]).release
        if release.delta is not None or base.name != manifest.name or base.digest == manifest.digest:
            raise BundleError(
                "BUNDLE_DELTA_BASE",
                "a delta needs a full release and the inventory of another release of the same product",
                inventory=f"{base.name} {base.version}",
                release=f"{manifest.name} {manifest.version}",
            )
        region = release_region(chosen, release, set_aside + unreadable, lambda _: None)
        had = {(member.path, member.sha256, member.mode) for member in base.members}
        members, payload, offset = [], [], 0
        for member in manifest.members:
            if (member.path, member.sha256, member.as_dict()["mode"]) not in had:
                members.append(member)
                payload.append(_Carried(member.path, b"", member.executable, region, offset + BLOCK, member.size_bytes))
            offset += span(member.size_bytes)
        found, segments = measured(payload, manifest.segment_bytes, progress)
        if found != members:
            raise BundleError(
                "BUNDLE_INPUT", "the full release is not what its manifest signs", release=[str(path) for path in full]
            )
        statement = documents.write_json(delta_document(base.digest, manifest, members, segments))
        head = delta_head(heads[manifest.digest].files, statement, manifest, signer)
        path = out / f"{manifest.name}-{manifest.version}-from-{base.version}-{base.digest[:12]}.tar"
        digest, size = write_archive(path, head, zip(members, payload, strict=True), progress)
    return BuiltDelta(path, manifest, base.digest, tuple(members), size, digest, manifest.payload_bytes)
