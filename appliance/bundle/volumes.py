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
        names = [f"{archive.name}.v{number:03d}" for number in range(1, len(sizes) + 1)]
        labels = [f"volume/{number:03d}-of-{len(sizes):03d}" for number in range(1, len(sizes) + 1)]
        if parity:
            names.append(f"{archive.name}.parity")
            labels.append(f"volume/parity-of-{len(sizes):03d}")
        lengths = [*sizes, slice_bytes if len(sizes) > 1 else sizes[0]] if parity else sizes
        out.mkdir(parents=True, exist_ok=True)
        with translated(out):
            paths, lines = _write(stream, head, out, names, labels, lengths, len(sizes), progress)
            _remove_others(out, archive.name, set(names))
            sync_directory(out)
    write_atomic(out / f"{archive.name}.volumes.sha256", "".join(lines).encode())
    return tuple(paths)


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


def _write(
    stream: BinaryIO,
    head: Head,
    out: Path,
    names: Sequence[str],
    labels: Sequence[str],
    lengths: Sequence[int],
    count: int,
    progress: Progress,
) -> tuple[list[Path], list[str]]:
    """Write all volumes side by side, stripe by stripe, so that parity needs no second reading."""
    step = 4 * 1024 * 1024
    start = os.pread(stream.fileno(), head.size_bytes, 0)
    temporaries = [out / f".{name}.{os.getpid()}.tmp" for name in names]
    digests = [hashlib.sha256() for _ in names]
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("xb")) for path in temporaries]

            def put(number: int, data: bytes) -> None:
                files[number].write(data)
                digests[number].update(data)

            for number, label in enumerate(labels):
                put(number, start + tar_header(label, lengths[number]))
            for within in range(0, lengths[0], step):
                stripe = []
                for number in range(count):
                    length = max(0, min(step, lengths[number] - within))
                    stripe.append(os.pread(stream.fileno(), length, head.size_bytes + number * lengths[0] + within))
                    put(number, stripe[-1])
                if len(names) > count:
                    put(count, xor_of(stripe, min(step, lengths[0] - within)))
                progress("writing volumes", min(within + step, lengths[0]), lengths[0])
            for number, length in enumerate(lengths):
                put(number, bytes(padded(length) - length) + END_BLOCKS)
                files[number].flush()
                os.fsync(files[number].fileno())
        paths = [temporary.rename(out / name) for temporary, name in zip(temporaries, names, strict=True)]
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
    return paths, [f"{digest.hexdigest()}  {name}\n" for digest, name in zip(digests, names, strict=True)]


def _remove_others(out: Path, archive: str, names: set[str]) -> None:
    """Volumes of an older cut of the same archive would be taken for this one's."""
    pattern = re.compile(re.escape(archive) + r"\.(v[0-9]{3}|parity)\Z")
    for path in out.iterdir():
        if pattern.match(path.name) and path.name not in names:
            path.unlink()
