"""The payload region as one readable stretch of bytes, whatever it lies on."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

from .media import Source
from .refusal import Refused
from .ustar import BLOCK, END_BLOCKS, padded


class Region(Protocol):
    """Bytes from 0 to `size_bytes`, read in any order."""

    size_bytes: int
    step_bytes: int  # the natural length of one read

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from that offset, or refuse."""


class WholeRegion:
    """The region of an archive that is one file. Its content is checked member by member while it is extracted."""

    step_bytes = 4 * 1024 * 1024

    def __init__(self, source: Source, size_bytes: int) -> None:
        if source.size_bytes < size_bytes:
            raise Refused(
                "BUNDLE_TRUNCATED",
                f"{source.path.name} ends early",
                missing_bytes=size_bytes - source.size_bytes,
                file=str(source.path),
            )
        if source.size_bytes > size_bytes:
            raise Refused(
                "BUNDLE_TRAILING",
                f"{source.path.name} goes on behind its end",
                surplus_bytes=source.size_bytes - size_bytes,
                file=str(source.path),
            )
        self.size_bytes = size_bytes
        self._source = source

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer; a file that became shorter meanwhile is truncated."""
        if self._source.read_into(offset, buffer) < len(buffer):
            if self._source.fault:
                raise Refused(
                    "BUNDLE_UNREADABLE",
                    f"{self._source.path.name} cannot be read: {self._source.fault}",
                    file=str(self._source.path),
                    offset=self._source.offset + offset,
                )
            raise Refused(
                "BUNDLE_TRUNCATED", "the archive became shorter while it was read", file=str(self._source.path)
            )


class VolumeRegion:
    """The region over volumes, healing one lost or damaged volume from parity.

    Args:
        sources: volumes with the authenticated head.
        size_bytes: length of the region.
        segment_bytes, segments: the signed digests.
        set_aside: files that could not be used at all, for messages.
        report: called once for each volume found bad and rebuilt.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        size_bytes: int,
        segment_bytes: int,
        segments: Sequence[str],
        *,
        set_aside: Sequence[str] = (),
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.size_bytes = size_bytes
        self.step_bytes = segment_bytes
        self._segments = segments
        self._set_aside = list(set_aside)
        self._report = report
        self._reported: set[int] = set()
        self._total = sources[0].total
        self._slices: dict[int, Source] = {}
        for source in sources:
            if source.index is None or source.total != self._total:
                raise Refused("BUNDLE_MIXED_MEDIA", "volumes of different sets lie side by side", file=str(source.path))
            self._slices.setdefault(source.index, source)
        missing = [index for index in range(self._total) if index not in self._slices]
        if len(missing) > (1 if -1 in self._slices else 0):
            raise Refused(
                "BUNDLE_VOLUME_MISSING",
                f"{_volume_names(missing, self._total)} missing"
                + ("" if -1 in self._slices else ", and no parity volume is there"),
                missing=[index + 1 for index in missing],
                damaged=self._set_aside,
                total=self._total,
            )
        self._slice_bytes = self._one_slice_bytes()
        for index in missing:
            self._tell(index, "unusable" if self._set_aside else "missing")
        self._cached: tuple[int, memoryview] = (-1, memoryview(b""))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from verified segments."""
        done = 0
        while done < len(buffer):
            number, within = divmod(offset + done, self.step_bytes)
            if self._cached[0] != number:
                self._cached = (number, self._segment(number))
            piece = self._cached[1][within : within + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

    def _one_slice_bytes(self) -> int:
        """Length of every slice but the last, from whatever volumes are there."""
        full = max(source.size_bytes for source in self._slices.values())
        for index, source in self._slices.items():
            last = self.size_bytes - full * (self._total - 1)
            expected = last if index == self._total - 1 else full
            if source.size_bytes != expected or not 0 < last <= full or (self._total > 1 and full % self.step_bytes):
                raise Refused(
                    "BUNDLE_MIXED_MEDIA",
                    "a volume has another length than its set",
                    file=str(source.path),
                    bytes=source.size_bytes,
                )
        return full

    def _segment(self, number: int) -> memoryview:
        offset = number * self.step_bytes
        length = min(self.step_bytes, self.size_bytes - offset)
        index, within = divmod(offset, self._slice_bytes)
        if index in self._slices:
            data = bytearray(length)
            whole = self._slices[index].read_into(within, memoryview(data)) == length
            if whole and hashlib.sha256(data).hexdigest() == self._segments[number]:
                return memoryview(data)
        rebuilt = self._rebuild(index, within, length)
        if rebuilt is None or hashlib.sha256(rebuilt).hexdigest() != self._segments[number]:
            where = str(self._slices[index].path) if index in self._slices else "missing"
            fault = self._slices[index].fault if index in self._slices else ""
            raise Refused(
                "BUNDLE_VOLUME_DAMAGED",
                f"{_volume_names([index], self._total)} damaged and cannot be rebuilt"
                + ("" if rebuilt is not None else ": parity or another volume is not there"),
                volume=index + 1,
                file=where,
                segment=number,
                also_damaged=self._set_aside,
                **({"fault": fault} if fault else {}),
            )
        self._tell(index, "damaged")
        return memoryview(rebuilt)

    def _rebuild(self, index: int, within: int, length: int) -> bytes | None:
        """XOR of parity and every other slice at the same place."""
        others = [-1, *(other for other in range(self._total) if other != index)]
        if any(other not in self._slices for other in others):
            return None
        pieces = []
        for other in others:
            source = self._slices[other]
            piece = bytearray(max(0, min(length, source.size_bytes - within)))
            source.read_into(within, memoryview(piece))
            pieces.append(piece)
        return xor_of(pieces, length)

    def _tell(self, index: int, how: str) -> None:
        if index not in self._reported:
            self._reported.add(index)
            paths = [str(self._slices[index].path)] if index in self._slices else self._set_aside
            where = f" ({', '.join(paths)})" if paths else ""
            self._report(f"{_volume_names([index], self._total)} {how}{where}: rebuilt from parity")


def xor_of(pieces: Sequence[bytes | bytearray], length: int) -> bytes:
    """XOR of byte strings, shorter ones taken as ending in zeros; one long number each, which is fast without numpy."""
    result = 0
    for piece in pieces:
        result ^= int.from_bytes(piece, "little")
    return result.to_bytes(length, "little")


def open_region(
    sources: Sequence[Source],
    size_bytes: int,
    segment_bytes: int,
    segments: Sequence[str],
    *,
    set_aside: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Region:
    """The region of the chosen files: a whole archive where there is one, else the volumes.

    Raises:
        Refused: BUNDLE_TRUNCATED, BUNDLE_TRAILING, BUNDLE_MIXED_MEDIA, BUNDLE_VOLUME_MISSING.
    """
    whole = [source for source in sources if source.index is None]
    volumes = [source for source in sources if source.index is not None]
    for source in whole:
        if source.size_bytes == size_bytes or not volumes:
            return WholeRegion(source, size_bytes)
    for source in volumes:
        _check_volume_end(source)
    unusable = [*set_aside, *(str(source.path) for source in whole)]  # a volume whose label is damaged looks whole
    return VolumeRegion(volumes, size_bytes, segment_bytes, segments, set_aside=unusable, report=report)


def _check_volume_end(source: Source) -> None:
    """Nothing hides behind a slice. A shortened volume is damage for parity to mend, not a refusal here."""
    surplus = os.fstat(source.descriptor).st_size - source.offset - padded(source.size_bytes) - len(END_BLOCKS)
    end = b""
    with contextlib.suppress(OSError):  # what cannot be read is damage as well
        end = os.pread(source.descriptor, 2 * BLOCK + len(END_BLOCKS), source.offset + source.size_bytes)
    if surplus > 0 or (surplus == 0 and any(end)):
        raise Refused("BUNDLE_TRAILING", f"bytes are hidden behind the slice in {source.path}", file=str(source.path))


def _volume_names(indexes: Sequence[int], total: int) -> str:
    numbers = ", ".join(str(index + 1) for index in indexes)
    return f"volume {numbers} of {total} is" if len(indexes) == 1 else f"volumes {numbers} of {total} are"
