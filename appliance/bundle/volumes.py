"""Cut an archive into volumes for media and file systems that take no large files, with one parity volume.

Every volume starts with the archive's whole head, then holds one slice of its payload region as a single tar member;
the parity volume holds the XOR of all slices. XOR mends exactly one lost or damaged volume, which is what a scratched
disc or a forgotten stick is; it needs nothing but the standard library in stage 0, and it needs no signature of its
own, because what it rebuilds counts only with the digests that the manifest signs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.manifest import read_delta, read_manifest, region_bytes
from appliance.bundle.stage0.media import DELTA, MANIFEST, MAX_VOLUMES, Source, open_sources
from appliance.bundle.stage0.region import WholeRegion, xor_of
from appliance.bundle.stage0.ustar import BLOCK, END_BLOCKS, MAX_MEMBER_BYTES, padded, tar_header
from appliance.errors import BundleError
from appliance.files import replaced, require_room, sync_directory, translated, write_atomic

Progress = Callable[[str, int | None, int | None], None]


def split(
    archive: Path,
    out: Path,
    *,
    volume_bytes: int,
    parity: bool = True,
    progress: Progress = lambda _text, _done, _all: None,
) -> tuple[Path, ...]:
    """Write the volumes of an archive; the archive stays as it is. An older set of the same archive is replaced.

    Its length and its segments are compared with its own manifest: a bad copy is not cut. Whose manifest it is, is not
    asked here; a volume says nothing that its head does not sign.

    Args:
        archive: a release or delta, whole.
        out: folder for the volumes.
        volume_bytes: no volume becomes larger.
        parity: also write the parity volume.
        progress: called with a text and bytes done and in all.

    Returns:
        The volumes in order, parity last.

    Raises:
        BundleError: BUNDLE_VOLUME_SIZE, and whatever is wrong with the archive. FileError: FILE_NO_SPACE.
    """
    with appliance_errors(), open_sources([archive]) as (sources, _):
        source = _whole(sources, archive)
        segments = _segments(source)
        slice_bytes = _slice_bytes(source, segments.size_bytes, volume_bytes)
        sizes = [min(slice_bytes, source.size_bytes - start) for start in range(0, source.size_bytes, slice_bytes)]
        if len(sizes) > MAX_VOLUMES:
            raise BundleError(
                "BUNDLE_VOLUME_SIZE",
                f"{len(sizes)} volumes would be needed, {MAX_VOLUMES} are the most",
                volume_bytes=volume_bytes,
            )
        count, name = len(sizes), source.path.name
        volumes = [
            _Volume(out / f"{name}.v{number:03d}", f"volume/{number:03d}-of-{count:03d}", size)
            for number, size in enumerate(sizes, 1)
        ]
        if parity:
            volumes.append(_Volume(out / f"{name}.parity", f"volume/parity-of-{count:03d}", sizes[0]))
        with translated(out):
            out.mkdir(parents=True, exist_ok=True)
            around = source.head.size_bytes + BLOCK + len(END_BLOCKS)
            needed = sum(around + padded(volume.size_bytes) for volume in volumes)
            require_room(out, needed, what=f"{len(volumes)} volumes")
            lines = _write(source, segments, volumes, count=count, progress=progress)
            _remove_others(out, name, {volume.path.name for volume in volumes})
            sync_directory(out)
    write_atomic(out / f"{name}.volumes.sha256", "".join(lines).encode())
    return tuple(volume.path for volume in volumes)


@dataclass(frozen=True)
class _Segments:
    """The signed pieces of the payload region: their length, and each one's SHA-256."""

    size_bytes: int
    digests: tuple[str, ...]


def _whole(sources: Sequence[Source], given: Path) -> Source:
    """The one archive among the files given."""
    whole = [source for source in sources if source.index is None]
    if len(whole) != 1:
        raise BundleError(
            "BUNDLE_NO_MEDIA",
            f"{given} holds {len(whole)} whole archives, and one is to be cut",
            remedy="Name the archive itself; volumes are not cut again.",
            files=[str(source.path) for source in sources],
        )
    return whole[0]


def _segments(source: Source) -> _Segments:
    """What the archive's manifest says of its payload, once its length agrees with that."""
    manifest = read_manifest(source.head.files[MANIFEST])
    if DELTA not in source.head.files:
        WholeRegion(source, region_bytes(manifest.members))  # refuses another length
        return _Segments(manifest.segment_bytes, manifest.segments)
    delta = read_delta(source.head.files[DELTA], manifest)
    carried = set(delta.carried)
    WholeRegion(source, region_bytes(tuple(member for member in manifest.members if member.path in carried)))
    return _Segments(delta.segment_bytes, delta.segments)


def _slice_bytes(source: Source, segment_bytes: int, volume_bytes: int) -> int:
    around = source.head.size_bytes + BLOCK + len(END_BLOCKS)
    slice_bytes = min(volume_bytes - around, MAX_MEMBER_BYTES) // segment_bytes * segment_bytes
    if slice_bytes <= 0:
        raise BundleError(
            "BUNDLE_VOLUME_SIZE",
            f"a volume of {volume_bytes} bytes has no room for one piece of the release",
            smallest=around + segment_bytes,
        )
    return slice_bytes


@dataclass(frozen=True)
class _Volume:
    """One volume to be written: its file, the name of its slice, and the slice's length."""

    path: Path
    label: str
    size_bytes: int


def _write(
    source: Source, segments: _Segments, volumes: Sequence[_Volume], *, count: int, progress: Progress
) -> list[str]:
    """Write all volumes side by side, stripe by stripe, so that parity needs no second reading."""
    step = segments.size_bytes
    start = os.pread(source.descriptor, source.head.size_bytes, 0)
    digests = [hashlib.sha256() for _ in volumes]
    slice_bytes = volumes[0].size_bytes
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(replaced(volume.path)) for volume in volumes]

        def put(number: int, data: bytes | bytearray) -> None:
            files[number].write(data)
            digests[number].update(data)

        for number, volume in enumerate(volumes):
            put(number, start + tar_header(volume.label, volume.size_bytes))
        for within in range(0, slice_bytes, step):
            stripe = []
            for number in range(count):
                length = max(0, min(step, volumes[number].size_bytes - within))
                stripe.append(_segment(source, segments, number * slice_bytes + within, length))
                put(number, stripe[-1])
            if len(volumes) > count:
                put(count, xor_of(stripe, min(step, slice_bytes - within)))
            progress("writing volumes", min(within + step, slice_bytes), slice_bytes)
        for number, volume in enumerate(volumes):  # all are on the disk before one takes its name
            put(number, bytes(padded(volume.size_bytes) - volume.size_bytes) + END_BLOCKS)
            files[number].flush()
            os.fsync(files[number].fileno())
    return [f"{digest.hexdigest()}  {volume.path.name}\n" for digest, volume in zip(digests, volumes, strict=True)]


def _segment(source: Source, segments: _Segments, offset: int, length: int) -> bytearray:
    """One piece of the payload region, as the manifest has it; nothing behind the end of the last slice."""
    data = bytearray(length)
    if length == 0:
        return data
    read = source.read_into(offset, memoryview(data))
    if source.fault:
        raise BundleError("BUNDLE_UNREADABLE", f"{source.path} cannot be read: {source.fault}", file=str(source.path))
    if read < length or hashlib.sha256(data).hexdigest() != segments.digests[offset // segments.size_bytes]:
        raise BundleError(
            "BUNDLE_MEMBER_DIGEST",
            f"{source.path.name} is damaged, and is not cut",
            file=str(source.path),
            offset=source.offset + offset,
        )
    return data


def _remove_others(out: Path, archive: str, names: set[str]) -> None:
    """Volumes of an older cut of the same archive would be taken for this one's."""
    pattern = re.compile(re.escape(archive) + r"\.(v[0-9]{3}|parity)\Z")
    for path in out.iterdir():
        if pattern.match(path.name) and path.name not in names:
            path.unlink()
