"""The one tar dialect a release uses: POSIX ustar, regular files, and nothing a header could say twice.

A header is a pure function of name, size and mode (`tar_header`). Reading is therefore no parsing: the header that the
writer would have written is made again and compared byte for byte, so that pax records, GNU names, sparse maps, links,
devices, foreign checksums or two ways to write a number cannot be expressed at all (POSIX.1-1988, section 10.1.1).
"""

from __future__ import annotations

from .refusal import Refused

BLOCK = 512  # bytes
MAX_MEMBER_BYTES = 8**11 - 1  # what eleven octal digits hold
END_BLOCKS = bytes(2 * BLOCK)

_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a pipe",
    b"7": "a contiguous file",
    b"L": "a GNU long name",
    b"K": "a GNU long link",
    b"S": "a GNU sparse file",
    b"D": "a GNU directory dump",
    b"M": "a GNU continuation",
    b"V": "a GNU volume label",
    b"x": "a pax record",
    b"g": "a global pax record",
    b"X": "a Solaris extended header",
    b"\0": "an old-style file",
}


def tar_header(name: str, size_bytes: int, *, executable: bool = False) -> bytes:
    """The 512 bytes that introduce a member. Owner 0, time 0: nothing of the machine that wrote it.

    Raises:
        Refused: BUNDLE_NAME for a name ustar cannot hold, BUNDLE_LIMIT for a size it cannot.
    """
    if not 0 <= size_bytes <= MAX_MEMBER_BYTES:
        raise Refused("BUNDLE_LIMIT", f"{name[:120]!r} is too large for a tar member", bytes=size_bytes)
    prefix, base = _split(name)
    fields = [
        base.ljust(100, b"\0"),
        b"0000755\0" if executable else b"0000644\0",
        b"0000000\0" * 2,  # owner, group
        b"%011o\0" % size_bytes,
        b"%011o\0" % 0,  # time
        b" " * 8,  # checksum, counted as blanks
        b"0".ljust(101, b"\0"),  # a regular file, linked to nothing
        b"ustar\x0000".ljust(72, b"\0"),
        b"0000000\0" * 2,  # device numbers
        prefix.ljust(155, b"\0"),
    ]
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def parse_tar_header(block: bytes) -> tuple[str, int, bool]:
    """Name, size and executable bit of a header in the one accepted form.

    Raises:
        Refused: BUNDLE_TRUNCATED, BUNDLE_MEMBER_KIND (naming it), BUNDLE_HEADER for every other deviation.
    """
    if len(block) < BLOCK:
        raise Refused("BUNDLE_TRUNCATED", "the archive ends inside a header", bytes=len(block))
    stored = block[148:156]
    if stored != b"%06o\0 " % (sum(block) - sum(stored) + 8 * 0x20):
        raise Refused("BUNDLE_HEADER", "a header's checksum is wrong", checksum=repr(stored))
    kind = block[156:157]
    if kind != b"0":
        raise Refused("BUNDLE_MEMBER_KIND", f"a member is {_KINDS.get(kind, 'of an unknown kind')}", kind=repr(kind))
    base, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    try:
        name = (prefix + b"/" + base if prefix else base).decode("ascii")
        size_bytes = int(block[124:135].decode("ascii"), 8)
        executable = block[100:108] == b"0000755\0"
        canonical = tar_header(name, size_bytes, executable=executable) == block
    except (ValueError, Refused):
        canonical = False
    if not canonical:
        raise Refused("BUNDLE_HEADER", "a header is not in the one form a release uses", name=repr(base[:100]))
    return name, size_bytes, executable


def fits(name: str) -> bool:
    """Whether a name can stand in a header."""
    try:
        _split(name)
    except Refused:
        return False
    return True


def padded(size_bytes: int) -> int:
    """A member's content with its padding, in bytes."""
    return -(-size_bytes // BLOCK) * BLOCK


def span(size_bytes: int) -> int:
    """A member with its header and padding, in bytes."""
    return BLOCK + padded(size_bytes)


def _split(name: str) -> tuple[bytes, bytes]:
    try:
        raw = name.encode("ascii")
    except UnicodeEncodeError:
        raise Refused("BUNDLE_NAME", "a member's name is not ASCII", name=repr(name[:120])) from None
    if 0 < len(raw) <= 100:
        return b"", raw
    for at in range(min(len(raw) - 1, 155), 0, -1):
        if raw[at : at + 1] == b"/" and 0 < len(raw) - at - 1 <= 100:
            return raw[:at], raw[at + 1 :]
    raise Refused("BUNDLE_NAME", "a member's name does not fit into a tar header", name=repr(name[:300]))
