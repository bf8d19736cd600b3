"""Zip archives that leave two readers nothing to differ about.

One reader walks the members from the front, another asks the directory at the end. A file before the first member,
between two or after the directory, or a member under another name than the directory has for it, is there for one of
them and not for the other.
"""

from __future__ import annotations

import zipfile

_LOCAL, _DESCRIPTOR, _END = b"PK\x03\x04", b"PK\x07\x08", b"PK\x05\x06"
_LOCAL_BYTES, _END_BYTES = 30, 22
_DESCRIBED_BYTES = (
    16,
    24,
)  # what follows a member of unknown length: a mark, its checksum, two lengths (zip64: longer)
_HAS_DESCRIPTOR = 0x08


def hidden_part(archive: zipfile.ZipFile, data: bytes) -> str:
    """Tell where an archive holds what its directory does not name; empty where nowhere.

    Args:
        archive: opened over `data`.
        data: the whole file.
    """
    if data[-_END_BYTES : -_END_BYTES + 4] != _END:
        return "it does not end with its directory"
    position = 0
    for info in sorted(archive.infolist(), key=lambda one: one.header_offset):
        begin = info.header_offset
        if begin != position or data[begin : begin + 4] != _LOCAL:
            return f"bytes that no member owns lie before {info.filename[:80]}"
        named, extra = (int.from_bytes(data[begin + at : begin + at + 2], "little") for at in (26, 28))
        name = data[begin + _LOCAL_BYTES : begin + _LOCAL_BYTES + named]
        if name != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
            return f"{info.filename[:80]} has another name where it lies"
        position = begin + _LOCAL_BYTES + named + extra + info.compress_size
        if info.flag_bits & _HAS_DESCRIPTOR:
            position += _descriptor(data, position, info.CRC)
    return "" if position == archive.start_dir else "bytes that no member owns lie before its directory"


def _descriptor(data: bytes, at: int, checksum: int) -> int:
    """The length of the data descriptor at a position; 0 where there is none."""
    if data[at : at + 8] != _DESCRIPTOR + checksum.to_bytes(4, "little"):
        return 0
    long, short = _DESCRIBED_BYTES[1], _DESCRIBED_BYTES[0]
    follows = {at + size: data[at + size : at + size + 4] in {_LOCAL, b"PK\x01\x02"} for size in (short, long)}
    return short if follows[at + short] else long
