"""A ZIP reader that admits one reading only.

A wheel is read by pip, by uv, by Python's importer and by scanners; whatever lets two of them see two different
contents is refused here: bytes outside the members, local headers that disagree with the central directory, names that
collide on some file system, sizes that lie (APPNOTE 6.3.10; the confusions known from "zip parser differential"
attacks). The archive is read from one buffer: what was hashed is what is looked into.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from appliance.errors import VendorError

MAX_MEMBERS = 100_000
MAX_CONTENT_BYTES = 8 * 1024**3  # bytes, all members unpacked
MAX_MEMBER_BYTES = 2 * 1024**3  # bytes, one member unpacked
MAX_RATIO = 50  # all members unpacked to the archive's length; the wheels we know stay below ten
SMALL_BYTES = 64 * 1024**2  # bytes unpacked that no ratio makes a bomb
MAX_NAME_BYTES = 1024
_MAX_PART_BYTES = 255
_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_KNOWN_FLAGS = 0x0002 | 0x0004 | _DESCRIPTOR | _UTF8  # bits 1 and 2 tell how hard deflate tried
_STORED, _DEFLATED = 0, 8
_NEWEST_FORMAT = 45  # "version needed to extract" of ZIP64, the newest that honest packers write
_ZIP64_EXTRA, _UNICODE_PATH_EXTRA = 0x0001, 0x7075
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]")


@dataclass(frozen=True)
class Member:
    """One file of the archive.

    Attributes:
        name: its path, `/` between parts.
        size_bytes: unpacked.
        executable: whether an execute bit is set.
        method, flags, crc, packed_bytes, offset, raw_name: as the central directory has them.
    """

    name: str
    size_bytes: int
    executable: bool
    method: int
    flags: int
    crc: int
    packed_bytes: int
    offset: int
    raw_name: bytes


class Archive:
    """A checked archive over one buffer.

    Args:
        data: the whole file.
        what: its name for messages.

    Raises:
        VendorError: VENDOR_ARCHIVE for everything an honest wheel never holds.
    """

    def __init__(self, data: bytes, *, what: str) -> None:
        self._data = memoryview(data)
        self._what = what
        self._starts: dict[str, int] = {}
        members = list(self._central_directory())
        self._check_names(members)
        self._check_layout(members)
        self.members: dict[str, Member] = {m.name: m for m in members if not m.name.endswith("/")}

    @cached_property
    def size_bytes(self) -> int:
        """All members unpacked."""
        return sum(member.size_bytes for member in self.members.values())

    def read(self, name: str) -> bytes:
        """Unpack one member; its declared size and CRC must be true.

        Raises:
            VendorError: VENDOR_ARCHIVE.
        """
        member = self.members[name]
        start = self._starts[name]
        packed = self._data[start : start + member.packed_bytes]
        if member.method == _STORED:
            content = bytes(packed)
        else:
            engine = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                content = engine.decompress(packed, member.size_bytes + 1)
            except zlib.error as error:
                self._refuse(f"{name} cannot be unpacked: {error}", member=name)
            if not engine.eof or engine.unused_data or engine.unconsumed_tail:
                self._refuse(f"{name} does not end where it says", member=name)
        if len(content) != member.size_bytes:
            self._refuse(f"{name} has {len(content)} bytes or more, declared {member.size_bytes}", member=name)
        if zlib.crc32(content) != member.crc:
            self._refuse(f"{name} does not match its CRC", member=name)
        return content

    def _refuse(self, cause: str, **evidence: Any) -> NoReturn:
        raise VendorError("VENDOR_ARCHIVE", f"{self._what}: {cause}", wheel=self._what, **evidence)

    def _central_directory(self) -> Iterator[Member]:
        at = len(self._data) - _END.size
        if at < 0 or bytes(self._data[at : at + 4]) != b"PK\x05\x06":
            self._refuse("not a ZIP file that ends with its directory (a comment, or bytes appended)")
        _, disk, first_disk, here, entries, size, offset, comment = _END.unpack_from(self._data, at)
        if disk or first_disk or here != entries or comment:
            self._refuse("the directory is spread over parts, or carries a comment")
        if entries > MAX_MEMBERS or entries == 0xFFFF or 0xFFFFFFFF in (size, offset):
            self._refuse("too many members, or a ZIP64 directory", members=entries)
        if offset + size != at:
            self._refuse("bytes stand before the first member or after the directory", gap=at - offset - size)
        self._directory = offset
        position = offset
        for _ in range(entries):
            if position + _CENTRAL.size > at:
                self._refuse("the directory ends too early")
            fields = _CENTRAL.unpack_from(self._data, position)
            if fields[0] != b"PK\x01\x02":
                self._refuse("the directory is damaged", offset=position)
            yield self._member(fields, position + _CENTRAL.size, at)
            position += _CENTRAL.size + fields[10] + fields[11] + fields[12]
        if position != at:
            self._refuse("the directory holds more than its members")

    def _member(self, fields: tuple[int, ...], names_at: int, end: int) -> Member:
        _, _, needs, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len, disk, _, mode, offset = (
            fields
        )
        if names_at + name_len + extra_len + comment_len > end:
            self._refuse("the directory ends too early")
        raw = bytes(self._data[names_at : names_at + name_len])
        name = self._name(raw, flags)
        if flags & _ENCRYPTED:
            self._refuse(f"{name} is encrypted", member=name)
        foreign = flags & ~_KNOWN_FLAGS or method not in (_STORED, _DEFLATED) or needs > _NEWEST_FORMAT
        if foreign or comment_len or disk:
            self._refuse(f"{name} uses a feature that no wheel needs", member=name, flags=hex(flags), method=method)
        if 0xFFFFFFFF in (packed, size, offset):
            self._refuse(f"{name} needs ZIP64", member=name)
        self._check_extra(self._data[names_at + name_len : names_at + name_len + extra_len], name, (size, packed))
        if size > MAX_MEMBER_BYTES or (method == _STORED and packed != size):
            self._refuse(f"{name} declares an impossible size", member=name, bytes=size)
        unix = mode >> 16
        kind = stat.S_IFMT(unix)
        folder = name.endswith("/")
        if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG) or (folder and size):
            self._refuse(f"{name} is neither a regular file nor a folder", member=name, mode=oct(unix))
        if unix & (stat.S_ISUID | stat.S_ISGID):
            self._refuse(f"{name} carries a set-user or set-group bit", member=name, mode=oct(unix))
        return Member(name, size, bool(unix & 0o111) and not folder, method, flags, crc, packed, offset, raw)

    def _name(self, raw: bytes, flags: int) -> str:
        try:
            name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
        except UnicodeDecodeError:
            self._refuse(f"a name is not what it says it is encoded as: {raw[:80]!r}")
        parts = name.removesuffix("/").split("/")
        bad_part = any(part in ("", ".", "..") or len(part.encode()) > _MAX_PART_BYTES for part in parts)
        if bad_part or _UNSAFE.search(name) or len(raw) > MAX_NAME_BYTES:
            self._refuse(f"unsafe name {name[:120]!r}", member=name[:MAX_NAME_BYTES])
        return name

    def _check_extra(self, extra: memoryview, name: str, sizes: tuple[int, int]) -> None:
        position = 0
        while position < len(extra):
            if position + 4 > len(extra):
                self._refuse(f"{name}: a damaged extra field", member=name)
            kind, length = struct.unpack_from("<HH", extra, position)
            value = bytes(extra[position + 4 : position + 4 + length])
            position += 4 + length
            # a needless ZIP64 field that repeats the true sizes is what Bazel's packer writes
            differs = kind == _ZIP64_EXTRA and value != struct.pack("<2Q", *sizes)
            if position > len(extra) or kind == _UNICODE_PATH_EXTRA or differs:
                self._refuse(f"{name}: an extra field that lets readers differ", member=name, field=hex(kind))

    def _check_names(self, members: list[Member]) -> None:
        seen: dict[str, str] = {}
        for member in members:
            key = unicodedata.normalize("NFC", member.name.removesuffix("/")).casefold()
            if key in seen:
                self._refuse(f"two members collide: {seen[key]!r} and {member.name!r}", member=member.name)
            seen[key] = member.name
        files = {key for key, name in seen.items() if not name.endswith("/")}
        spelled: dict[str, str] = {}
        for member in members:
            parts = member.name.removesuffix("/").split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                key = unicodedata.normalize("NFC", folder).casefold()
                if key in files:
                    self._refuse(f"{seen[key]!r} is a file and a folder", member=member.name)
                if spelled.setdefault(key, folder) != folder:
                    self._refuse(f"two folders collide: {spelled[key]!r} and {folder!r}", member=member.name)
        content = sum(member.size_bytes for member in members)
        if content > MAX_CONTENT_BYTES:
            self._refuse("unpacks to more than any wheel", max_bytes=MAX_CONTENT_BYTES)
        if content > max(SMALL_BYTES, MAX_RATIO * len(self._data)):
            self._refuse(f"unpacks to {content // len(self._data)} times its length", bytes=content)

    def _check_layout(self, members: list[Member]) -> None:
        """Members follow each other without gap or overlap, each local header saying what the directory says."""
        position = 0
        for member in sorted(members, key=lambda m: m.offset):
            if member.offset != position:
                self._refuse(f"bytes between members, or members that overlap, at {member.name}", member=member.name)
            position = self._local_end(member)
        if position != self._directory:
            self._refuse("bytes between the last member and the directory")

    def _local_end(self, member: Member) -> int:
        at = member.offset
        if at + _LOCAL.size > self._directory:
            self._refuse(f"{member.name} lies outside the archive", member=member.name)
        magic, needs, flags, method, _, _, crc, packed, size, name_len, extra_len = _LOCAL.unpack_from(self._data, at)
        names_at = at + _LOCAL.size
        start = names_at + name_len + extra_len
        end = start + member.packed_bytes
        if magic != b"PK\x03\x04" or end > self._directory:
            self._refuse(f"{member.name} lies outside the archive", member=member.name)
        raw = bytes(self._data[names_at : names_at + name_len])
        told = (crc, packed, size)
        declared = (member.crc, member.packed_bytes, member.size_bytes)
        deferred = bool(flags & _DESCRIPTOR) and told == (0, 0, 0)
        same = (raw, flags, method) == (member.raw_name, member.flags, member.method)
        if not same or needs > _NEWEST_FORMAT:
            self._refuse(f"{member.name}: header and directory disagree", member=member.name)
        if told != declared and not deferred:
            self._refuse(f"{member.name}: header and directory disagree on size or CRC", member=member.name)
        self._check_extra(
            self._data[names_at + name_len : start], member.name, (member.size_bytes, member.packed_bytes)
        )
        if not member.name.endswith("/"):
            self._starts[member.name] = start
        if flags & _DESCRIPTOR:
            return self._descriptor_end(member, end, declared)
        return int(end)

    def _descriptor_end(self, member: Member, at: int, declared: tuple[int, int, int]) -> int:
        signed = at + 16 <= self._directory and bytes(self._data[at : at + 4]) == b"PK\x07\x08"
        at += 4 if signed else 0
        if at + 12 > self._directory or struct.unpack_from("<3L", self._data, at) != declared:
            self._refuse(f"{member.name}: its descriptor disagrees with the directory", member=member.name)
        return at + 12
