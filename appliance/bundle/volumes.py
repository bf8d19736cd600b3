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
from typing import BinaryIO

from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.manifest import read_delta, read_manifest
from appliance.bundle.stage0.media import DELTA, MANIFEST, MAX_VOLUMES, Head, read_head
from appliance.bundle.stage0.region import xor_of
from appliance.bundle.stage0.ustar import BLOCK, END_BLOCKS, MAX_MEMBER_BYTES, padded, tar_header
from appliance.errors import BundleError
from appliance.files import sync_directory, translated, write_atomic

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
    with appliance_errors(), archive.open("rb") as stream:
        head = read_head(stream.fileno())
        region = archive.stat().st_size - head.size_bytes
        slice_bytes = _slice_bytes(head, volume_bytes)
        sizes = [min(slice_bytes, region - start) for start in range(0, region, slice_bytes)]
        if len(sizes) > MAX_VOLUMES:
            raise BundleError(
                "BUNDLE_VOLUME_SIZE",
                f"{len(sizes)} volumes would be needed, {MAX_VOLUMES} are the most",
                volume_bytes=volume_bytes,
            )
        count = len(sizes)
        volumes = [
            _Volume(out / f"{archive.name}.v{number:03d}", f"volume/{number:03d}-of-{count:03d}", size)
            for number, size in enumerate(sizes, 1)
        ]
        if parity:
            volumes.append(_Volume(out / f"{archive.name}.parity", f"volume/parity-of-{count:03d}", sizes[0]))
        out.mkdir(parents=True, exist_ok=True)
        with translated(out):
            lines = _write(stream, head, volumes, count=count, progress=progress)
            _remove_others(out, archive.name, {volume.path.name for volume in volumes})
            sync_directory(out)
    write_atomic(out / f"{archive.name}.volumes.sha256", "".join(lines).encode())
    return tuple(volume.path for volume in volumes)


def _slice_bytes(head: Head, volume_bytes: int) -> int:
    manifest = read_manifest(head.files[MANIFEST])
    segment = read_delta(head.files[DELTA], manifest).segment_bytes if DELTA in head.files else manifest.segment_bytes
    around = head.size_bytes + BLOCK + len(END_BLOCKS)
    slice_bytes = min(volume_bytes - around, MAX_MEMBER_BYTES) // segment * segment
    if slice_bytes <= 0:
        raise BundleError(
            "BUNDLE_VOLUME_SIZE",
            f"a volume of {volume_bytes} bytes has no room for one piece of the release",
            smallest=around + segment,
        )
    return slice_bytes


@dataclass(frozen=True)
class _Volume:
    """One volume to be written: its file, the name of its slice, and the slice's length."""

    path: Path
    label: str
    size_bytes: int


def _write(stream: BinaryIO, head: Head, volumes: Sequence[_Volume], *, count: int, progress: Progress) -> list[str]:
    """Write all volumes side by side, stripe by stripe, so that parity needs no second reading."""
    step = 4 * 1024 * 1024
    start = os.pread(stream.fileno(), head.size_bytes, 0)
    temporaries = [volume.path.with_name(f".{volume.path.name}.{os.getpid()}.tmp") for volume in volumes]
    digests = [hashlib.sha256() for _ in volumes]
    slice_bytes = volumes[0].size_bytes
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("xb")) for path in temporaries]

            def put(number: int, data: bytes) -> None:
                files[number].write(data)
                digests[number].update(data)

            for number, volume in enumerate(volumes):
                put(number, start + tar_header(volume.label, volume.size_bytes))
            for within in range(0, slice_bytes, step):
                stripe = []
                for number in range(count):
                    length = max(0, min(step, volumes[number].size_bytes - within))
                    stripe.append(os.pread(stream.fileno(), length, head.size_bytes + number * slice_bytes + within))
                    put(number, stripe[-1])
                if len(volumes) > count:
                    put(count, xor_of(stripe, min(step, slice_bytes - within)))
                progress("writing volumes", min(within + step, slice_bytes), slice_bytes)
            for number, volume in enumerate(volumes):
                put(number, bytes(padded(volume.size_bytes) - volume.size_bytes) + END_BLOCKS)
                files[number].flush()
                os.fsync(files[number].fileno())
        for temporary, volume in zip(temporaries, volumes, strict=True):
            temporary.rename(volume.path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    return [f"{digest.hexdigest()}  {volume.path.name}\n" for digest, volume in zip(digests, volumes, strict=True)]


def _remove_others(out: Path, archive: str, names: set[str]) -> None:
    """Volumes of an older cut of the same archive would be taken for this one's."""
    pattern = re.compile(re.escape(archive) + r"\.(v[0-9]{3}|parity)\Z")
    for path in out.iterdir():
        if pattern.match(path.name) and path.name not in names:
            path.unlink()
