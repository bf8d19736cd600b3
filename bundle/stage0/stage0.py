#!/usr/bin/env python3
"""Stage 0 of the air-gapped LLM routing appliance: check a release and install it, with Python 3.11 and openssl alone.

    python3 stage0.py MEDIA... --prefix DIR --trust anchor.json

Check this file's SHA-256 against the one that reached you by the second channel before you run it. It is joined from
the modules named below by `appliance bundle build`; a test of the project proves that it is nothing else.
"""

import posix  # this one and the next are part of the interpreter itself, and found in no folder
import sys

if __name__ == "__main__" and not sys.flags.isolated:
    # nothing that lies beside this file, or where PYTHONPATH points, may stand in for a module of Python's
    posix.execv(sys.executable, [sys.executable, "-I", __file__, *sys.argv[1:]])

REMEDIES = {
    "BUNDLE_ANCHOR": "Take anchor.json, or its SHA-256, from the second channel and name it with `--trust`.",
    "BUNDLE_CERTIFICATE": "Check that anchor.json is the right one; otherwise have the release signed again.",
    "BUNDLE_DELTA_BASE": "Install the full release, or build the delta from this host's own `appliance inventory`.",
    "BUNDLE_HEAD": "Copy the release again from its source; compare with `sha256sum -c *.sha256`.",
    "BUNDLE_HEADER": "Copy the release again; if it stays so, the archive was altered or not made by `appliance bundle build`.",
    "BUNDLE_IDENTITY": "Have the release signer sign it, see `appliance ca status`.",
    "BUNDLE_INPUT": "Fetch the wheels with `appliance vendor fetch`, then build again.",
    "BUNDLE_INVENTORY": "Export it again in the zone with `appliance inventory`, using the same version on both sides.",
    "BUNDLE_LIMIT": "Leave the file out and build again. The limits are not adjustable.",
    "BUNDLE_MANIFEST": "Use the stage0.py that belongs to the release, or build it again with this version of the appliance.",
    "BUNDLE_MEMBER_DIGEST": "Copy the release again; where volumes have a parity volume, add it and run the command again.",
    "BUNDLE_MEMBER_KIND": "Do not use this media. It was not made by `appliance bundle build`; report it.",
    "BUNDLE_MIXED_MEDIA": "Name only the files of one release, or remove the others from the folder.",
    "BUNDLE_NAME": "Rename the file on the connected side and build the release again with `appliance bundle build`.",
    "BUNDLE_NOT_REPRODUCED": "Check out the commit that the release's evidence/provenance.intoto.json names, without changes; give the same `--encoder` and `--router`; run `appliance bundle reproduce` again.",
    "BUNDLE_NO_MEDIA": "Mount the media and name the archive, or the folder that holds it or its volumes; list it with `ls -la MEDIA`.",
    "BUNDLE_ORDER": "Do not use this media. Copy the release again from its source and report the alteration.",
    "BUNDLE_PADDING": "Do not use this media. Copy the release again from its source and report the alteration.",
    "BUNDLE_SIGNATURE": "Do not use this media. Copy the release again from its source and report the alteration.",
    "BUNDLE_SIGNATURE_FORM": "Build and sign the release again with `appliance bundle build`.",
    "BUNDLE_TIMESTAMP": "Check that anchor.json is the right one; otherwise have the release signed again.",
    "BUNDLE_TRAILING": "Do not use this media. Copy the release again from its source and report the alteration.",
    "BUNDLE_TRUNCATED": "Copy it again and compare with `sha256sum -c *.sha256`.",
    "BUNDLE_UNREADABLE": "Try another drive or another copy; with volumes, add the parity volume and run the command again. See `dmesg`.",
    "BUNDLE_VOLUME_DAMAGED": "Bring another copy of the volume named, or the parity volume.",
    "BUNDLE_VOLUME_MISSING": "Bring the volumes named; every folder that holds one may be given, in any order.",
    "BUNDLE_VOLUME_SIZE": "Choose a larger `--volume-size`, for example 3900M.",
    "INSTALL_ARCHITECTURE": "Bring the release for this architecture; see `uname -m`.",
    "INSTALL_CLOCK": "Set the clock (`date -u -s ...`) and run the command again.",
    "INSTALL_CPU": "Use another host, or give the virtual machine the host's processor model; see `lscpu`.",
    "INSTALL_DOWNGRADE": "Return to an installed release with `appliance rollback`; if this older one is wanted on purpose, have it authorised (`appliance ca authorise downgrade VERSION --machine ID`) and add `--allow-downgrade TOKEN`.",
    "INSTALL_ENVIRONMENT": "Read what uv says; check that the prefix is not noexec, then run the command again.",
    "INSTALL_GLIBC": "Use a newer distribution; see `ldd --version`.",
    "INSTALL_JOURNAL": "Look at the file named; if it is empty or damaged, move it away and run the installation again.",
    "INSTALL_LOCKED": "Wait for it to end; find it with `fuser -v PREFIX/state/install/lock`.",
    "INSTALL_NOEXEC": "Choose another prefix, or remount with `mount -o remount,exec MOUNTPOINT`.",
    "INSTALL_NO_PREVIOUS": "See `appliance releases`; install the wanted release from its media.",
    "INSTALL_NO_SPACE": "Free space (`df -h`, `df -i`, `appliance releases`), then run the same command again; it goes on where it stood.",
    "INSTALL_OPENSSL": "Install openssl 3.0 or newer from the distribution; check with `openssl version`.",
    "INSTALL_PERMISSION": "Run as the owner of the prefix (`ls -ld PREFIX`), on a file system that may be written (`findmnt -T PREFIX`).",
    "INSTALL_PREFIX": "Check `--prefix`; an installation has releases/, state/, etc/ and the link current.",
    "INSTALL_PYTHON": "Run stage 0 with the Python that the release names, see `appliance bundle inspect`.",
    "INSTALL_RELEASE_DAMAGED": "Install the same release again from its media; it is put right where it runs. Then check the disk and who may write below the prefix.",
    "INSTALL_SERVICE": "Read `journalctl -u appliance-gateway.service`, check the configuration with `appliance serve --check --config PREFIX/etc/appliance.yaml`, and install again; `--no-restart` leaves the service alone.",
    "INSTALL_STAGED_ALTERED": "Check the disk and who may write below the prefix, then run the command again. Nothing was activated; the damaged file is taken from the media anew.",
    "INSTALL_STATE_NEWER": "Install the newer release again, or restore the state of the older one from its backup.",
    "INSTALL_UNCHECKED": "See what the host is short of (`free -m`, `dmesg | tail`, `ulimit -a`), then run the same command again; it goes on where it stood.",
    "INSTALL_UNHEALTHY": "Read the finding named; `appliance doctor` says more about the host."
}


# ---- refusal.py ----

"""How the shared modules refuse: a code of the appliance's catalogue, the cause, the evidence."""


import contextlib
import errno
from collections.abc import Iterator
from typing import Any


class Refused(Exception):  # noqa: N818 (it is a verdict, not a defect)
    """A refusal with a stable code, whose remedy stands in the catalogue.

    Args:
        code: a code of `catalogue/bundle.yaml` or `catalogue/install.yaml`.
        cause: what went wrong here, one sentence.
        remedy: in place of the catalogue's, where this place knows better; empty where it does not.
        evidence: the values that show it.
    """

    def __init__(self, code: str, cause: str, *, remedy: str = "", **evidence: Any) -> None:
        super().__init__(f"{code}: {cause}")
        self.code = code
        self.cause = cause
        self.remedy = remedy
        self.evidence = evidence


@contextlib.contextmanager
def space_refusals(doing: str) -> Iterator[None]:
    """Turn a full, read-only or forbidding file system into a refusal that says what was being done."""
    try:
        yield
    except OSError as error:
        where = str(error.filename) if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Refused("INSTALL_NO_SPACE", f"no space left while {doing}", path=where) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Refused("INSTALL_PERMISSION", f"not permitted while {doing}: {error.strerror}", path=where) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
            raise Refused("INSTALL_PREFIX", f"something is in the way while {doing}", path=where) from error
        raise


# ---- ustar.py ----

"""The one tar dialect a release uses: POSIX ustar, regular files, and nothing a header could say twice.

A header is a pure function of name, size and mode (`tar_header`). Reading is therefore no parsing: the header that the
writer would have written is made again and compared byte for byte, so that pax records, GNU names, sparse maps, links,
devices, foreign checksums or two ways to write a number cannot be expressed at all (POSIX.1-1988, section 10.1.1).
"""



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


# ---- manifest.py ----

"""The release manifest: what a release is, to the byte, in the order in which it travels."""


import datetime as dt
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any


RELEASE_TYPE = "https://appliance.internal/release/v1"
DELTA_TYPE = "https://appliance.internal/delta/v1"
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # a manifest of a million segments stays below
MAX_MEMBERS = 20_000
MAX_TOTAL_BYTES = 64 * 1024**3

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z")
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){1,3}([a-z0-9.+-]{0,40})\Z")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")
_WORD = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")
_PAIR = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\Z")


@dataclass(frozen=True)
class Member:
    """One file of a release.

    Attributes:
        path: relative name, safe on every file system.
        size_bytes: length of the content.
        sha256: digest of the content, lower-case hex.
        executable: mode 0755 instead of 0644.
    """

    path: str
    size_bytes: int
    sha256: str
    executable: bool = False

    @property
    def header(self) -> bytes:
        """The only tar header this member can have."""
        return tar_header(archive_name(self.path, self.sha256), self.size_bytes, executable=self.executable)

    def as_dict(self) -> dict[str, Any]:
        """As the manifest holds it."""
        mode = "0755" if self.executable else "0644"
        return {"path": self.path, "size": self.size_bytes, "sha256": self.sha256, "mode": mode}


@dataclass(frozen=True)
class Manifest:
    """A release.

    Attributes:
        name, version, epoch: what it is; the epoch rises with every release of a name.
        profile: `gateway`, `training` or `full`.
        target: `python`, `architecture`, `glibc` that its wheels need.
        created: RFC 3339, UTC.
        state_version: layout of `PREFIX/state` and of the configuration that it reads.
        installed_bytes, installed_files: what its wheels take on the disk when they are unpacked.
        trust: the trust metadata that precedes it on the media.
        members: the payload, in the archive's order.
        segment_bytes, segments: SHA-256 of every such piece of the payload region, so that a damaged volume is named.
        digest: SHA-256 of the manifest's bytes; the release's identity.
    """

    name: str
    version: str
    epoch: int
    profile: str
    target: dict[str, str]
    created: str
    state_version: int
    installed_bytes: int
    installed_files: int
    trust: tuple[Member, ...]
    members: tuple[Member, ...]
    segment_bytes: int
    segments: tuple[str, ...]
    digest: str

    @property
    def release_id(self) -> str:
        """Folder name of the installed release."""
        return f"{self.version}-{self.digest[:12]}"

    @property
    def payload_bytes(self) -> int:
        """All members' contents together."""
        return sum(member.size_bytes for member in self.members)


@dataclass(frozen=True)
class Delta:
    """A release that travels without what the zone has already.

    Attributes:
        base: digest of the release it builds upon.
        target: digest of the release it completes to.
        carried: paths of the members that travel, in the manifest's order.
        segment_bytes, segments: as in `Manifest`, over the delta's own payload region.
    """

    base: str
    target: str
    carried: tuple[str, ...]
    segment_bytes: int
    segments: tuple[str, ...]


def region_bytes(members: tuple[Member, ...]) -> int:
    """Length of the payload region: members with headers and padding, and the two closing blocks."""
    return sum(span(member.size_bytes) for member in members) + len(END_BLOCKS)


def read_manifest(data: bytes) -> Manifest:
    """Parse a manifest whose signature was verified over these bytes.

    Raises:
        Refused: BUNDLE_MANIFEST, BUNDLE_NAME (unsafe, duplicate or colliding names), BUNDLE_LIMIT.
    """
    fields = _Fields(_document(data, "manifest.json"), "manifest.json")
    fields.constant("_type", RELEASE_TYPE)
    fields.constant("schema_version", 1)
    target = fields.mapping("target", {"python": _PAIR, "architecture": _WORD, "glibc": _PAIR})
    segment_bytes, segments = _segments(fields)
    manifest = Manifest(
        name=fields.text("name", _WORD),
        version=fields.text("version", _VERSION),
        epoch=fields.number("epoch"),
        profile=fields.text("profile", _WORD),
        target=target,
        created=fields.time("created"),
        state_version=fields.number("state_version"),
        installed_bytes=fields.number("installed_bytes"),
        installed_files=fields.number("installed_files"),
        trust=_members(fields, "trust"),
        members=_members(fields, "members"),
        segment_bytes=segment_bytes,
        segments=segments,
        digest=hashlib.sha256(data).hexdigest(),
    )
    fields.finish()
    if any(not member.path.startswith("trust/") for member in manifest.trust):
        raise Refused("BUNDLE_MANIFEST", "manifest.json lists something else than trust metadata before itself")
    _check_region(manifest.members, segment_bytes, segments, "manifest.json")
    return manifest


def read_delta(data: bytes, manifest: Manifest) -> Delta:
    """Parse a delta statement whose signature was verified over these bytes, for this manifest.

    Raises:
        Refused: BUNDLE_MANIFEST, BUNDLE_DELTA_BASE where it belongs to another release.
    """
    fields = _Fields(_document(data, "delta.json"), "delta.json")
    fields.constant("_type", DELTA_TYPE)
    fields.constant("schema_version", 1)
    segment_bytes, segments = _segments(fields)
    delta = Delta(
        base=fields.text("base", _SHA256),
        target=fields.text("target", _SHA256),
        carried=tuple(fields.texts("carried")),
        segment_bytes=segment_bytes,
        segments=segments,
    )
    fields.finish()
    if delta.target != manifest.digest:
        raise Refused(
            "BUNDLE_DELTA_BASE",
            "the delta statement belongs to another release than the manifest beside it",
            delta=delta.target,
            manifest=manifest.digest,
        )
    carried = set(delta.carried)
    members = tuple(member for member in manifest.members if member.path in carried)
    if tuple(member.path for member in members) != delta.carried:
        raise Refused(
            "BUNDLE_MANIFEST", "delta.json carries members that the manifest does not have, or in another order"
        )
    _check_region(members, segment_bytes, segments, "delta.json")
    return delta


def archive_name(path: str, sha256: str) -> str:
    """What a member is called in the archive: its path, or its digest where the last part outgrows a tar header."""
    return path if fits(path) else f"long/{sha256}"


def safe_name(name: str) -> bool:
    """Whether a relative name means the same on every file system and stays below its folder."""
    return 0 < len(name) <= 255 and all(
        _PART.match(part) and not part.endswith(".") and part.split(".")[0].lower() not in _RESERVED
        for part in name.split("/")
    )


def check_names(names: list[str]) -> None:
    """Refuse unsafe names, duplicates, names that differ by case only, and files that are folders of others.

    Raises:
        Refused: BUNDLE_NAME.
    """
    written: dict[str, str] = {}  # case-folded path of every file and folder -> its spelling
    files: set[str] = set()
    for name in names:
        if not safe_name(name):
            raise Refused("BUNDLE_NAME", "a member's name is unsafe", name=repr(name[:300]))
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            if written.setdefault(path.lower(), path) != path:
                raise Refused("BUNDLE_NAME", "two names differ by case only", name=path, other=written[path.lower()])
            if depth < len(parts) and path.lower() in files:
                raise Refused("BUNDLE_NAME", "a file is also the folder of another", name=name, file=path)
        files.add(name.lower())
    if len(files) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise Refused("BUNDLE_NAME", "a name stands twice", names=twice[:5])
    folders = {"/".join(name.lower().split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    if folders & files:
        raise Refused("BUNDLE_NAME", "a file is also the folder of another", names=sorted(folders & files)[:5])


def _check_region(members: tuple[Member, ...], segment_bytes: int, segments: tuple[str, ...], what: str) -> None:
    if len(segments) != -(-region_bytes(members) // segment_bytes):
        raise Refused("BUNDLE_MANIFEST", f"{what} has another number of segments than its members fill")


class _Fields:
    """A mapping whose keys must all be asked for, each with its kind."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise Refused("BUNDLE_MANIFEST", f"{what} is not a mapping")
        self._left = dict(value)
        self.what = what

    def _take(self, key: str, kind: type) -> Any:
        value = self._left.pop(key, None)
        if type(value) is not kind:
            raise Refused("BUNDLE_MANIFEST", f"{self.what}: {key} is missing or not a {kind.__name__}", key=key)
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value: str = self._take(key, str)
        if pattern is not None and not pattern.match(value):
            raise Refused("BUNDLE_MANIFEST", f"{self.what}: {key} has an impossible value", value=value[:120])
        return value

    def number(self, key: str) -> int:
        value: int = self._take(key, int)
        return value

    def sequence(self, key: str) -> list[Any]:
        value: list[Any] = self._take(key, list)
        return value

    def texts(self, key: str) -> list[str]:
        value = self.sequence(key)
        if not all(type(item) is str for item in value):
            raise Refused("BUNDLE_MANIFEST", f"{self.what}: {key} holds something else than text")
        return value

    def time(self, key: str) -> str:
        value = self.text(key, _TIME)
        try:
            dt.datetime.fromisoformat(value)  # a day that a calendar has
        except ValueError:
            raise Refused("BUNDLE_MANIFEST", f"{self.what}: {key} has an impossible value", value=value) from None
        return value

    def mapping(self, key: str, patterns: dict[str, re.Pattern[str]]) -> dict[str, str]:
        value: dict[str, str] = self._take(key, dict)
        if set(value) != set(patterns):
            raise Refused("BUNDLE_MANIFEST", f"{self.what}: {key} must have exactly {', '.join(sorted(patterns))}")
        entries = _Fields(value, f"{self.what}: {key}")
        return {name: entries.text(name, pattern) for name, pattern in patterns.items()}

    def constant(self, key: str, expected: Any) -> None:
        if self._take(key, type(expected)) != expected:
            raise Refused("BUNDLE_MANIFEST", f"{self.what}: {key} is not {expected!r}")

    def finish(self) -> None:
        if self._left:
            raise Refused("BUNDLE_MANIFEST", f"{self.what} has unknown keys", keys=sorted(self._left)[:5])


def _segments(fields: _Fields) -> tuple[int, tuple[str, ...]]:
    size = fields.number("segment_bytes")
    if size < BLOCK or size > 64 * 1024**2 or size % BLOCK:
        raise Refused("BUNDLE_MANIFEST", f"{fields.what}: segment_bytes is out of range", segment_bytes=size)
    segments = tuple(fields.texts("segments"))
    if not all(_SHA256.match(digest) for digest in segments):
        raise Refused("BUNDLE_MANIFEST", f"{fields.what}: a segment's digest is not SHA-256 in hex")
    return size, segments


def _members(fields: _Fields, key: str) -> tuple[Member, ...]:
    entries = fields.sequence(key)
    if len(entries) > MAX_MEMBERS:
        raise Refused("BUNDLE_LIMIT", f"{key} lists too many files", count=len(entries), limit=MAX_MEMBERS)
    members = []
    for entry in entries:
        part = _Fields(entry, f"{fields.what}: {key}")
        mode = part.text("mode", re.compile(r"0(644|755)\Z"))
        size = part.number("size")
        members.append(Member(part.text("path"), size, part.text("sha256", _SHA256), executable=mode == "0755"))
        part.finish()
        if size > MAX_MEMBER_BYTES:
            raise Refused("BUNDLE_LIMIT", "a member is too large", path=members[-1].path, bytes=size)
    check_names([member.path for member in members])
    if sum(member.size_bytes for member in members) > MAX_TOTAL_BYTES:
        raise Refused("BUNDLE_LIMIT", f"{key} is larger than any release", limit_bytes=MAX_TOTAL_BYTES)
    return tuple(members)


def _document(data: bytes, what: str) -> Any:
    """Strict JSON of whole numbers, text, lists and mappings: one document for every reader."""

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice")
        return result

    def number(digits: str) -> int:
        if len(digits) > 16 or not digits.isdigit():
            raise ValueError("a number is not a small whole one")
        return int(digits)

    if len(data) > MAX_DOCUMENT_BYTES:
        raise Refused("BUNDLE_LIMIT", f"{what} is too large", bytes=len(data), limit_bytes=MAX_DOCUMENT_BYTES)
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=mapping, parse_int=number, parse_float=number, parse_constant=number
        )
    except (ValueError, RecursionError) as error:
        raise Refused("BUNDLE_MANIFEST", f"{what} is not a strict JSON document: {error}") from None


# ---- media.py ----

"""Media as they come: one archive, or volumes of it in any order on any mount points, read in place.

Every file on the media starts with the same *head* (trust metadata, manifest, signature), so that any volume alone
says what the release is. What follows is either the payload region itself, or one member `volume/003-of-007` holding a
slice of it, or `volume/parity-of-007`, the XOR of all slices. The manifest signs the digest of every segment of the
region: a damaged piece names its volume, and what parity rebuilds counts only if it has the signed digest.
"""


import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar


MANIFEST = "manifest.json"
SIGNATURE = "manifest.sigstore.json"
DELTA = "delta.json"
DELTA_SIGNATURE = "delta.sigstore.json"
MAX_HEAD_FILES = 64
MAX_HEADS_BYTES = 64 * 1024 * 1024  # all different heads of a medium together: each is held before anything is verified
MAX_VOLUMES = 999
_VOLUME = re.compile(r"volume/([0-9]{3}|parity)-of-([0-9]{3})\Z")
_FILE_NAME = re.compile(r".+\.tar(\.v[0-9]{3}|\.parity)?\Z")

Genuine = TypeVar("Genuine")


@dataclass(frozen=True)
class Head:
    """What stands before the payload, as bytes that nothing has verified yet.

    Attributes:
        files: name -> content, in the archive's order.
        size_bytes: its length with headers and padding.
    """

    files: dict[str, bytes]
    size_bytes: int

    @property
    def trust(self) -> dict[str, bytes]:
        """The trust metadata: name below `trust/` -> content."""
        return {name.removeprefix("trust/"): data for name, data in self.files.items() if name.startswith("trust/")}


@dataclass
class Source:
    """One file of the media, held open: what is checked is what is read.

    Attributes:
        path: where it lies.
        descriptor: open for reading.
        head: its head.
        index: number of the slice from 0; None for a whole archive, -1 for parity.
        total: how many slices the release has.
        offset, size_bytes: where the payload or slice lies in the file.
        fault: what the operating system said when the media could not be read.
    """

    path: Path
    descriptor: int
    head: Head
    index: int | None
    total: int
    offset: int
    size_bytes: int
    fault: str = ""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from the slice; returns how many bytes the file, or a scratched disc, could give."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], self.offset + offset + done)
            except OSError as error:
                self.fault = error.strerror or "unreadable"
                break
            if count == 0:
                break
            done += count
        return done


@contextlib.contextmanager
def open_sources(paths: Sequence[str | Path]) -> Iterator[tuple[list[Source], list[str]]]:
    """Open every release file among the paths; a folder stands for the release files in it.

    Returns:
        The files that start like a release, and the paths of those that do not.

    Raises:
        Refused: BUNDLE_NO_MEDIA, and what `read_head` refuses when there is only one file.
    """
    with contextlib.ExitStack() as stack:
        sources: list[Source] = []
        heads: dict[tuple[tuple[str, bytes], ...], Head] = {}
        problems: dict[Path, Refused] = {}
        for path, named in _candidates(paths).items():
            try:
                descriptor = _open_regular(path)
                stack.callback(os.close, descriptor)
                source = _open_source(path, descriptor)
                sources.append(replace(source, head=_only_once(source.head, heads)))
            except OSError as error:
                cause = f"{path.name} cannot be read: {error.strerror}"
                problems[path] = Refused("BUNDLE_UNREADABLE", cause, file=str(path))
            except Refused as refused:
                if refused.code == "BUNDLE_NO_MEDIA" and named:
                    raise
                problems[path] = Refused(refused.code, refused.cause, **{"file": str(path)} | refused.evidence)
        if not sources:
            for problem in problems.values():
                raise problem
            raise Refused("BUNDLE_NO_MEDIA", "no release file there", paths=[str(path) for path in paths])
        yield sources, [str(path) for path in problems]


def choose(
    sources: Sequence[Source], authenticate: Callable[[Head], Genuine]
) -> tuple[Genuine, list[Source], list[str]]:
    """Authenticate the head and keep the files that carry it.

    Where a volume's own head is damaged the heads differ; each different one is tried, and only one may be genuine.

    Returns:
        What `authenticate` made of the head, the files with that head, and the paths set aside.

    Raises:
        Refused: BUNDLE_MIXED_MEDIA where two genuine releases lie side by side; where none is, what it says.
    """
    groups: dict[tuple[tuple[str, bytes], ...], list[Source]] = {}
    for source in sources:
        groups.setdefault(tuple(source.head.files.items()), []).append(source)
    accepted: list[tuple[Genuine, list[Source]]] = []
    failure: Exception | None = None
    for group in sorted(groups.values(), key=len, reverse=True):
        try:
            accepted.append((authenticate(group[0].head), group))
        except Exception as error:  # noqa: BLE001 (whatever the verifier raises is raised again below)
            failure = failure or error
    if not accepted:
        raise failure or Refused("BUNDLE_NO_MEDIA", "no release file there")
    if len(accepted) > 1:
        names = [group[0].path.name for _, group in accepted]
        raise Refused("BUNDLE_MIXED_MEDIA", "files of different releases lie side by side", files=names)
    genuine, chosen = accepted[0]
    return genuine, chosen, [str(source.path) for source in sources if source not in chosen]


def _candidates(paths: Sequence[str | Path]) -> dict[Path, bool]:
    """Files to open, and whether each was named itself, not only the folder that it lies in."""
    found: dict[Path, bool] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found.update((each, False) for each in sorted(path.iterdir()) if _looks_like_ours(each))
        elif path.exists():
            found[path] = True
        else:
            raise Refused("BUNDLE_NO_MEDIA", f"{path} does not exist", path=str(path))
    return found


def _looks_like_ours(path: Path) -> bool:
    """By its name, or, where a file system has shortened that (`RELEAS~1.V01`), by its first member's."""
    if _FILE_NAME.match(path.name):
        return True
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as stream:
            return stream.read(6) == b"trust/"
    except OSError:
        return False


def _open_regular(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("BUNDLE_NO_MEDIA", f"{path} cannot be opened: {error.strerror}", path=str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused("BUNDLE_NO_MEDIA", f"{path} is not a regular file", path=str(path))
    return descriptor


def _only_once(head: Head, heads: dict[tuple[tuple[str, bytes], ...], Head]) -> Head:
    """The head itself, or the equal one of an earlier file: volumes by the hundred share one.

    Raises:
        Refused: BUNDLE_LIMIT where the different ones together are more than any medium needs.
    """
    known = heads.setdefault(tuple(head.files.items()), head)
    if sum(each.size_bytes for each in heads.values()) > MAX_HEADS_BYTES:
        heads.pop(tuple(head.files.items()))
        raise Refused("BUNDLE_LIMIT", "the heads of the files are larger than any release's", bytes=head.size_bytes)
    return known


def _open_source(path: Path, descriptor: int) -> Source:
    head = read_head(descriptor)
    size = os.fstat(descriptor).st_size
    rest = size - head.size_bytes
    first = os.pread(descriptor, BLOCK, head.size_bytes)
    if len(first) == BLOCK and any(first) and first[:7] == b"volume/":
        name, slice_bytes, _ = parse_tar_header(first)
        match = _VOLUME.match(name)
        if not match or not 1 <= int(match[2]) <= MAX_VOLUMES:
            raise Refused("BUNDLE_HEADER", "a volume's name is impossible", name=name[:100])
        total = int(match[2])
        number = 0 if match[1] == "parity" else int(match[1])
        if number > total or (number == 0 and match[1] != "parity"):
            raise Refused("BUNDLE_HEADER", "a volume's number is impossible", name=name)
        return Source(path, descriptor, head, number - 1, total, head.size_bytes + BLOCK, slice_bytes)
    return Source(path, descriptor, head, None, 1, head.size_bytes, rest)


def read_head(descriptor: int) -> Head:
    """Read trust metadata, manifest and signature from the start of a file; sizes are bounded before memory is taken.

    Raises:
        Refused: BUNDLE_TRUNCATED, BUNDLE_HEADER, BUNDLE_MEMBER_KIND, BUNDLE_ORDER, BUNDLE_LIMIT, BUNDLE_PADDING,
            BUNDLE_NAME.
    """
    files: dict[str, bytes] = {}
    offset = 0
    left = 2 * MAX_DOCUMENT_BYTES
    while True:
        block = os.pread(descriptor, BLOCK, offset)
        complete = DELTA_SIGNATURE if DELTA in files else SIGNATURE
        if complete in files and (DELTA in files or not block.startswith(DELTA.encode() + b"\0")):
            check_names(list(files))
            return Head(files, offset)
        name, size, executable = parse_tar_header(block)
        if name not in _next_names(files) and not (
            name.startswith("trust/") and safe_name(name) and MANIFEST not in files
        ):
            raise Refused("BUNDLE_ORDER", "a member stands where the head of a release must be", name=name[:120])
        if name in files or executable:
            raise Refused("BUNDLE_ORDER", "a member of the head stands twice or is executable", name=name)
        left -= size
        if size > MAX_DOCUMENT_BYTES or left < 0 or len(files) >= MAX_HEAD_FILES:
            raise Refused("BUNDLE_LIMIT", "the head of the archive is larger than any release's", name=name, bytes=size)
        content = os.pread(descriptor, padded(size), offset + BLOCK)
        if len(content) < padded(size):
            raise Refused("BUNDLE_TRUNCATED", f"the archive ends inside {name}", name=name)
        if any(content[size:]):
            raise Refused("BUNDLE_PADDING", f"bytes are hidden behind {name}", name=name)
        files[name] = content[:size]
        offset += span(size)


def _next_names(files: dict[str, bytes]) -> set[str]:
    for before, after in ((DELTA, DELTA_SIGNATURE), (SIGNATURE, DELTA), (MANIFEST, SIGNATURE)):
        if before in files:
            return {after}
    return {MANIFEST}


# ---- region.py ----

"""The payload region as one readable stretch of bytes, whatever it lies on."""


import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol



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


# ---- extract.py ----

"""Extraction driven by the signed manifest: each byte is hashed and written from the same buffer, in one pass.

Nothing is decided by the archive. The manifest says which members there are, in which order and how long; the archive
either is exactly that, byte for byte, or it is refused. Files are created new (`O_EXCL`, `O_NOFOLLOW`) below an open
folder; what lies there already counts only after it was hashed again.
"""


import contextlib
import ctypes
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor


Progress = Callable[[int, int], None]  # bytes done, bytes in all
CHUNK_BYTES = 1024 * 1024
# sync_file_range(2), where the C library has it: the disk begins while the next member is read; it promises nothing
_BEGIN_WRITING = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
if _BEGIN_WRITING is not None:
    _BEGIN_WRITING.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def check_members(region: Region, members: Sequence[Member], *, progress: Progress = lambda _done, _all: None) -> None:
    """Hash every byte of the region against the manifest and write nothing.

    Raises:
        Refused: as `extract_members`, without those of the file system.
    """
    _walk(region, members, None, present={}, progress=progress, checkpoint=lambda _: None)


def extract_members(
    region: Region,
    members: Sequence[Member],
    folder: int,
    *,
    present: dict[str, int] | None = None,
    progress: Progress = lambda _done, _all: None,
    checkpoint: Callable[[str], None] = lambda _: None,
) -> None:
    """Write every member below an open folder.

    Nothing is durable yet when this returns: what lies there after a power cut is hashed before it counts, and
    `settle_environment` writes the file system out before anything points to the release.

    Args:
        region: the archive's payload.
        members: what it must hold, in order.
        folder: descriptor of the folder to fill.
        present: paths that `verified_present` found complete; they are read past.
        checkpoint: called with a name at every point where a kill leaves a different state behind.

    Raises:
        Refused: BUNDLE_MEMBER_DIGEST, BUNDLE_ORDER, BUNDLE_PADDING, BUNDLE_TRUNCATED, INSTALL_NO_SPACE,
            INSTALL_PERMISSION, and what the region refuses.
    """
    with space_refusals("extracting the release"):
        _walk(region, members, folder, present=present or {}, progress=progress, checkpoint=checkpoint)
        checkpoint("extracted")


def verified_present(members: Sequence[Member], folder: int) -> dict[str, int]:
    """The members that lie below the folder already with the right content; anything else in their place is removed."""
    present: dict[str, int] = {}
    for member in members:
        with contextlib.suppress(OSError), _parent(folder, member.path, create=False) as (parent, name):
            if _matches(parent, name, member):
                present[member.path] = member.size_bytes
            else:
                os.unlink(name, dir_fd=parent)
    return present


def link_from(members: Sequence[Member], source: int, folder: int) -> list[Member]:
    """Take members from an installed release by hard link, each hashed before it counts; returns those not to be had.

    Args:
        members: wanted members (by content; the path must be the same).
        source: descriptor of the installed release's payload folder.
        folder: descriptor of the folder to fill.
    """
    lacking = []
    for member in members:
        try:
            with _parent(source, member.path, create=False) as (old, name), _parent(folder, member.path) as (new, _):
                if not _matches(old, name, member):
                    raise FileNotFoundError(member.path)
                with contextlib.suppress(FileExistsError):
                    os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            lacking.append(member)
    return lacking


def _walk(
    region: Region,
    members: Sequence[Member],
    folder: int | None,
    *,
    present: dict[str, int],
    progress: Progress,
    checkpoint: Callable[[str], None],
) -> None:
    total = region.size_bytes
    offset = 0
    with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing:
        for member in members:
            block = bytearray(BLOCK)
            region.read_into(offset, memoryview(block))
            if block != member.header:
                _refuse_header(bytes(block), member)
            offset += BLOCK
            if member.path in present:
                offset += padded(member.size_bytes)
                progress(offset, total)
                continue
            with _created(folder, member) as output:
                stream = _Stream(region, member, output, hashing, writing)
                digest = stream.run(offset, lambda done, at=offset: progress(at + done, total))  # type: ignore[misc]
                if digest != member.sha256:
                    raise Refused(
                        "BUNDLE_MEMBER_DIGEST",
                        f"{member.path} is not what the manifest signs",
                        expected=member.sha256,
                        found=digest,
                    )
            offset += padded(member.size_bytes)
            if folder is not None:
                checkpoint("member")
    end = bytearray(len(END_BLOCKS))
    region.read_into(offset, memoryview(end))
    if any(end):
        raise Refused("BUNDLE_TRAILING", "the archive goes on behind its last member")
    progress(total, total)


class _Stream:
    """Hash and write one member's content from the same buffers, while the next buffer is read.

    Each executor has one thread, so hashing and writing keep the order in which the buffers were handed over.
    """

    def __init__(
        self,
        region: Region,
        member: Member,
        output: int | None,
        hashing: ThreadPoolExecutor,
        writing: ThreadPoolExecutor,
    ) -> None:
        self._region, self._member, self._output = region, member, output
        self._hashing, self._writing = hashing, writing

    def run(self, offset: int, progress: Callable[[int], None]) -> str:
        """Read the content from that offset of the region; returns its SHA-256."""
        size, length = self._member.size_bytes, padded(self._member.size_bytes)
        digest = hashlib.sha256()
        chunk = min(max(self._region.step_bytes, CHUNK_BYTES), 4 * CHUNK_BYTES)
        buffers = [bytearray(min(chunk, length)) for _ in range(min(3, -(-length // chunk)))]
        pending: list[list[Future[None]]] = [[] for _ in buffers]
        try:
            for number, start in enumerate(range(0, length, chunk)):
                turn = number % len(buffers)
                _wait(pending[turn])
                view = memoryview(buffers[turn])[: length - start]
                self._region.read_into(offset + start, view)
                content = view[: size - start]
                if any(view[len(content) :]):
                    raise Refused(
                        "BUNDLE_PADDING", f"bytes are hidden behind {self._member.path}", path=self._member.path
                    )
                self._take(digest.update, content, pending[turn], alone=length <= chunk)
                progress(start + len(view))
            for futures in pending:
                _wait(futures)
        finally:
            for futures in pending:  # a buffer must not be freed under a thread that still uses it
                for future in futures:
                    future.exception()
        return digest.hexdigest()

    def _take(
        self, update: Callable[[memoryview], None], content: memoryview, pending: list[Future[None]], *, alone: bool
    ) -> None:
        if alone:  # small files: two threads would cost more than they save
            update(content)
            if self._output is not None:
                _write(self._output, content)
            return
        pending.append(self._hashing.submit(update, content))
        if self._output is not None:
            pending.append(self._writing.submit(_write, self._output, content))


def _wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
    futures.clear()


def _write(output: int, content: memoryview) -> None:
    while len(content):
        content = content[os.write(output, content) :]


def _refuse_header(block: bytes, member: Member) -> None:
    """Say what stands where a member's header must be."""
    if not any(block):
        raise Refused("BUNDLE_TRUNCATED", f"the archive ends where {member.path} must stand", expected=member.path)
    name, size, _ = parse_tar_header(block)
    raise Refused(
        "BUNDLE_ORDER",
        f"the archive holds {name[:120]!r} ({size} bytes) where the manifest has {member.path!r}",
        expected=member.path,
        expected_bytes=member.size_bytes,
        found=name[:200],
        found_bytes=size,
    )


@contextlib.contextmanager
def _created(folder: int | None, member: Member) -> Iterator[int | None]:
    """A new file for the member; without a folder nothing is written."""
    if folder is None:
        yield None
        return
    with _parent(folder, member.path) as (parent, name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            yield descriptor
            os.fchmod(descriptor, 0o755 if member.executable else 0o644)
            if _BEGIN_WRITING is not None:
                _BEGIN_WRITING(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _parent(folder: int, path: str, *, create: bool = True) -> Iterator[tuple[int, str]]:
    """The folder that holds a path, opened part by part without following a link, and the last part's name."""
    *folders, name = path.split("/")
    current = os.dup(folder)
    try:
        for part in folders:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = below
        yield current, name
    finally:
        os.close(current)


def _matches(parent: int, name: str, member: Member) -> bool:
    """Whether a file is regular and has the member's length, mode and digest."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
    except FileNotFoundError:
        return False
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != member.size_bytes:
            return False
        if stat.S_IMODE(status.st_mode) != (0o755 if member.executable else 0o644):
            return False
        return hashlib.file_digest(stream, "sha256").hexdigest() == member.sha256


def check_tree(members: Sequence[Member], folder: int) -> None:
    """Hash an extracted payload again, from the disk.

    Raises:
        Refused: INSTALL_STAGED_ALTERED naming the first file that is not what the manifest signs.
    """
    for member in members:
        try:
            with _parent(folder, member.path, create=False) as (parent, name):
                good = _matches(parent, name, member)
        except OSError:
            good = False
        if not good:
            raise Refused(
                "INSTALL_STAGED_ALTERED", f"{member.path} is no longer what the manifest signs", path=member.path
            )


# ---- workspace.py ----

"""Private folders for the time of a block, of which a killed process leaves none behind for good.

A signal that cannot be caught keeps everybody from tidying up. So each folder is locked by its owner as long as it is
in use, and whoever makes the next one removes those that nobody holds any more; the kernel frees a dead owner's lock.
"""


import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def workspace(purpose: str) -> Iterator[Path]:
    """A folder that only this user may enter, gone when the block ends.

    Args:
        purpose: a word; the folder's name begins with `appliance.PURPOSE.`.
    """
    prefix = f"appliance.{purpose}."
    _sweep(prefix)
    folder, lock = _claimed(prefix)
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def _sweep(prefix: str) -> None:
    """Remove what killed processes of this user left."""
    with contextlib.suppress(OSError):  # a folder for temporary files need not be one that may be listed
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(prefix) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                _remove_unowned(entry.path)


def _remove_unowned(folder: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = _opened(folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _claimed(prefix: str) -> tuple[Path, int]:
    """A new folder and the lock on it; another's sweep may take the folder in the moment before it is locked."""
    while True:
        folder = tempfile.mkdtemp(prefix=prefix)
        try:
            descriptor = _opened(folder)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except OSError:
            return Path(folder), descriptor  # a file system without locks: nobody can sweep there, either
        if os.fstat(descriptor).st_nlink:
            return Path(folder), descriptor
        os.close(descriptor)


def _opened(folder: str) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


# ---- openssl.py ----

"""A release's signature checked with the `openssl` command alone, before anything of the release runs.

This is the first of two verdicts. It checks the anchor's fingerprint, the RFC 3161 time, the certificate chain at that
time, the signer's identity and the signature over the manifest. The second, by the appliance's own verifier in the new
environment, adds what openssl cannot: the transparency log, the trust repository, deny-lists and epochs.
"""


import base64
import binascii
import datetime as dt
import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


ANCHOR_TYPE = "https://appliance.internal/anchor/v1"
MAX_ANCHOR_BYTES = 1024 * 1024
_CODE_SIGNING = "Code Signing"


@dataclass(frozen=True)
class Anchor:
    """What reached the zone by the second channel.

    Attributes:
        fingerprint: SHA-256 of the file.
        identity: the release signer's SAN.
        release_chain: PEM, intermediates first, root last.
        timestamp_chain: PEM, the time-stamping authority's, root last.
    """

    fingerprint: str
    identity: str
    release_chain: tuple[str, ...]
    timestamp_chain: tuple[str, ...]


@dataclass(frozen=True)
class FirstVerdict:
    """What openssl could establish: who signed, and when at the latest."""

    identity: str
    signed_at: dt.datetime
    digest: str


def read_anchor(data: bytes) -> Anchor:
    """Parse `anchor.json`.

    Raises:
        Refused: BUNDLE_ANCHOR.
    """
    try:
        document = json.loads(data[: MAX_ANCHOR_BYTES + 1].decode("utf-8"))
        if document["_type"] != ANCHOR_TYPE:
            raise ValueError(document["_type"])
        release = document["release"]
        anchor = Anchor(
            hashlib.sha256(data).hexdigest(),
            str(release["identity"]),
            tuple(map(str, release["certificate_chain"])),
            tuple(map(str, document["timestamp_chain"])),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("BUNDLE_ANCHOR", f"the anchor is not an anchor document: {error!r}") from None
    if not anchor.identity or not anchor.release_chain or not anchor.timestamp_chain:
        raise Refused("BUNDLE_ANCHOR", "the anchor names no identity or no certificates")
    return anchor


def verify_with_openssl(manifest: bytes, signature: bytes, anchor: Anchor) -> FirstVerdict:
    """Check the signature over the manifest, in numbered steps.

    Args:
        manifest: the signed bytes.
        signature: Sigstore bundle v0.3 with a message signature and an RFC 3161 time-stamp.
        anchor: whom to trust.

    Raises:
        Refused: BUNDLE_SIGNATURE_FORM, BUNDLE_TIMESTAMP, BUNDLE_CERTIFICATE, BUNDLE_IDENTITY, BUNDLE_SIGNATURE,
            INSTALL_OPENSSL where there is no usable openssl.
    """
    leaf, value, answer, claimed_digest = _signature_parts(signature)
    digest = hashlib.sha256(manifest).digest()
    with workspace("stage0") as work:
        files = _PrivateFiles(work)
        # (1) the time-stamp: a signed statement of when this signature existed, checked at the time it names. It comes
        # in an answer whose other part nobody has signed, and openssl prints that part's words, too: they are cut off
        answer_file, value_file = files.add("answer.tsr", answer), files.add("signature", value)
        token_file = str(work / "token.der")
        _openssl("ts", "-reply", "-in", answer_file, "-token_out", "-out", token_file, code="BUNDLE_TIMESTAMP")
        stated = _openssl("ts", "-reply", "-in", token_file, "-token_in", "-text", code="BUNDLE_TIMESTAMP")
        signed_at = _token_time(stated)
        at = str(int(signed_at.timestamp()))
        _openssl(
            "ts", "-verify", "-data", value_file, "-in", token_file, "-token_in", "-attime", at,
            *files.chain("tsa", anchor.timestamp_chain),
            code="BUNDLE_TIMESTAMP",
        )  # fmt: skip
        # (2) the certificate's chain at that time
        leaf_file = files.add("leaf.pem", _pem(leaf))
        _openssl(
            "verify", "-x509_strict", "-attime", at, "-no-CApath", "-no-CAstore",
            *files.chain("release", anchor.release_chain),
            leaf_file,
            code="BUNDLE_CERTIFICATE",
        )  # fmt: skip
        # (3) it is for code signing, and (4) it names the release signer and nobody else
        names = _openssl(
            "x509", "-in", leaf_file, "-noout", "-ext", "extendedKeyUsage,subjectAltName", code="BUNDLE_CERTIFICATE"
        )
        usages = _extension(names, "X509v3 Extended Key Usage")
        if usages != [_CODE_SIGNING]:
            raise Refused("BUNDLE_CERTIFICATE", "the certificate is not for code signing alone", usages=usages)
        identities = [name.partition(":")[2] for name in _extension(names, "X509v3 Subject Alternative Name")]
        if identities != [anchor.identity]:
            raise Refused(
                "BUNDLE_IDENTITY",
                "the release was signed by somebody else than the anchor names",
                signer=", ".join(identities) or "nobody",
                expected=anchor.identity,
            )
        # (5) the signature over the manifest, by the certificate's key
        key = _openssl("x509", "-in", leaf_file, "-noout", "-pubkey", code="BUNDLE_CERTIFICATE")
        _openssl(
            "dgst", "-sha256", "-verify", files.add("key.pem", key.encode()), "-signature", value_file,
            files.add("manifest", manifest),
            code="BUNDLE_SIGNATURE",
        )  # fmt: skip
        # (6) the digest that the bundle states is the digest that was signed
        if claimed_digest != digest:
            raise Refused("BUNDLE_SIGNATURE", "the signature file states another digest than the manifest has")
    return FirstVerdict(anchor.identity, signed_at, digest.hex())


def check_openssl() -> str:
    """The version line of a usable openssl (3.0 or newer).

    Raises:
        Refused: INSTALL_OPENSSL.
    """
    version = _openssl("version", code="INSTALL_OPENSSL").strip()
    match = re.match(r"OpenSSL ([0-9]+)\.", version)
    if not match or int(match[1]) < 3:
        raise Refused("INSTALL_OPENSSL", "openssl is older than 3.0", version=version)
    return version


def _signature_parts(signature: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Certificate, signature, time-stamp token and stated digest out of a Sigstore bundle."""
    try:
        document: Any = json.loads(signature.decode("utf-8"))
        material, message = document["verificationMaterial"], document["messageSignature"]
        (token,) = material["timestampVerificationData"]["rfc3161Timestamps"]
        if message["messageDigest"]["algorithm"] != "SHA2_256":
            raise ValueError(message["messageDigest"]["algorithm"])
        leaf, value, stamp, digest = (
            base64.b64decode(text, validate=True)
            for text in (
                material["certificate"]["rawBytes"],
                message["signature"],
                token["signedTimestamp"],
                message["messageDigest"]["digest"],
            )
        )
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise Refused("BUNDLE_SIGNATURE_FORM", f"not a Sigstore bundle with one time-stamp: {error!r}") from None
    return leaf, value, stamp, digest


def _token_time(text: str) -> dt.datetime:
    match = re.search(r"^Time stamp: (.+)$", text, re.MULTILINE)
    try:
        stated = (match[1] if match else "").replace(" GMT", "")
        stated = re.sub(r"(:\d\d)\.\d+", r"\1", stated)  # a fraction of a second, where the authority gives one
        return dt.datetime.strptime(stated, "%b %d %H:%M:%S %Y").replace(tzinfo=dt.UTC)
    except ValueError:
        raise Refused("BUNDLE_TIMESTAMP", "the time-stamp states no time", text=text[:200]) from None


def _extension(text: str, name: str) -> list[str]:
    lines = text.splitlines()
    for number, line in enumerate(lines[:-1]):
        if line.strip().startswith(name):
            return [item.strip() for item in lines[number + 1].split(",")]
    return []


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der).decode("ascii")
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n".encode("ascii")


class _PrivateFiles:
    """The private folder whose files openssl reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, data: bytes) -> str:
        path = self._folder / name
        with path.open("xb") as stream:
            stream.write(data)
        return str(path)

    def chain(self, name: str, chain: tuple[str, ...]) -> list[str]:
        """Options for a chain: its last certificate is the root, the others help to reach it."""
        options = ["-CAfile", self.add(f"{name}-root.pem", chain[-1].encode())]
        if chain[:-1]:
            options += ["-untrusted", self.add(f"{name}-chain.pem", "\n".join(chain[:-1]).encode())]
        return options


def _openssl(*arguments: str, code: str) -> str:
    # `.` or an empty entry would be the folder one stands in, which may be the medium
    path = [folder for folder in os.environ.get("PATH", os.defpath).split(":") if folder.startswith("/")]
    environment = {"PATH": ":".join(path), "LC_ALL": "C", "OPENSSL_CONF": os.devnull}
    try:
        done = subprocess.run(
            ["openssl", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused("INSTALL_OPENSSL", f"openssl cannot be run: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise Refused(code, f"openssl {arguments[0]} refused", openssl=said[:400])
    return done.stdout


# ---- journal.py ----

"""What an installation under a prefix has reached, written down before and after every step.

The journal is one small document, replaced whole (`transaction.json`), and a history that only grows
(`activations.jsonl`). The truth about which release runs is one symbolic link, `PREFIX/current`, replaced by `rename`:
at any moment it names the old release or the new one.
"""


import contextlib
import datetime as dt
import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path


STEPS = ("begun", "staged", "environment", "verified", "healthy", "activated", "confirmed")
REMOVED_AT_ONCE = 16  # folders
# the release's files may still be on their way to the disk; those of `staged` are hashed again whoever takes it up
NOT_YET_DURABLE = ("environment", "verified")


@dataclass(frozen=True)
class Transaction:
    """An installation that was begun.

    Attributes:
        release: folder name of the release.
        digest: the manifest's SHA-256.
        step: the last of `STEPS` that is complete.
        previous: release that ran when it was begun, or None.
        boot: the boot of this host in which the step was reached; what was not yet durable is lost with it.
    """

    release: str
    digest: str
    step: str
    previous: str | None
    boot: str


def current_boot(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Name of this boot; the empty word where the kernel does not tell, which then counts as the same boot."""
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


class Prefix:
    """The folders of an installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.releases = root / "releases"
        self.current = root / "current"
        self.configuration = root / "etc"
        self.state = root / "state"
        self.journal = root / "state" / "install"

    def release(self, release_id: str) -> Path:
        """Folder of one release."""
        return self.releases / release_id

    def payload(self, release_id: str) -> Path:
        """Its extracted members."""
        return self.release(release_id) / "payload"

    def environment(self, release_id: str) -> Path:
        """Its Python environment."""
        return self.release(release_id) / "env"

    def active(self) -> str | None:
        """Name of the release that `current` points to."""
        try:
            return self.current.readlink().name
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused("INSTALL_PREFIX", f"{self.current} is not the appliance's link: {error.strerror}") from None

    def create(self) -> None:
        """Make the folders that are missing.

        Raises:
            Refused: INSTALL_PERMISSION, INSTALL_NO_SPACE, INSTALL_PREFIX.
        """
        with space_refusals(f"creating {self.root}"):
            try:
                for folder in (self.releases, self.configuration, self.journal):
                    folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise Refused("INSTALL_PREFIX", f"{error.filename} is in the way", path=str(error.filename)) from None

    @contextlib.contextmanager
    def locked(self, inherited: int | None = None) -> Iterator[int]:
        """Keep every other installation under this prefix out; a killed holder frees the lock.

        Args:
            inherited: descriptor of the lock that the calling process (stage 0) holds already.

        Returns:
            The lock's descriptor.

        Raises:
            Refused: INSTALL_LOCKED.
        """
        self.create()
        path = self.journal / "lock"
        with space_refusals(f"locking {self.root}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if inherited is not None and os.path.sameopenfile(inherited, descriptor):
                os.close(descriptor)
                descriptor = inherited  # the same open file: locking it again is no conflict
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("INSTALL_LOCKED", "another installation is at work here", lock=str(path)) from None
            yield descriptor
        finally:
            os.close(descriptor)

    def transaction(self) -> Transaction | None:
        """The installation that was begun and not finished, or None."""
        try:
            document = json.loads((self.journal / "transaction.json").read_text("utf-8"))
            transaction = Transaction(**document)
            if transaction.step not in STEPS:
                raise ValueError(transaction.step)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise Refused(
                "INSTALL_JOURNAL", "the installation journal is unreadable", path=str(self.journal / "transaction.json")
            ) from None
        return transaction

    def record(self, transaction: Transaction) -> None:
        """Write down a step, durably."""
        self.write(self.journal / "transaction.json", json.dumps(asdict(transaction), sort_keys=True) + "\n")

    def close(self) -> None:
        """Forget the transaction: it is finished or undone."""
        with contextlib.suppress(FileNotFoundError):
            (self.journal / "transaction.json").unlink()
        sync_folder(self.journal)

    def point_to(self, release_id: str, *, reason: str, now: dt.datetime) -> None:
        """Make a release the current one: the history first, then one rename."""
        entry = {"from": self.active(), "to": release_id, "reason": reason, "at": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        with space_refusals("activating the release"):
            history = self.journal / "activations.jsonl"
            _mend_last_line(history)
            with history.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, sort_keys=True) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.switch(release_id)

    def switch(self, release_id: str) -> None:
        """The rename alone, without the history."""
        with space_refusals("activating the release"):
            temporary = self.root / ".current.new"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path("releases") / release_id)
            temporary.rename(self.current)
            sync_folder(self.root)

    def point_to_nothing(self) -> None:
        """Undo a first activation."""
        self.current.unlink(missing_ok=True)
        sync_folder(self.root)

    def activations(self) -> list[dict[str, str | None]]:
        """The history of `current`, oldest first; a line cut short by a power failure is left out."""
        entries = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.journal / "activations.jsonl").read_text("utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    entries.append(json.loads(line))
        return entries

    def previous(self) -> str | None:
        """The whole release that ran before the active one, by the history."""
        active = self.active()
        for entry in reversed(self.activations()):
            before = entry.get("from")
            if entry.get("to") == active and before and before != active:
                return before if (self.release(before) / "release.json").is_file() else None
        return None

    def write(self, path: Path, text: str) -> None:
        """Replace a small file whole."""
        temporary = path.with_name(f".{path.name}.new")
        with space_refusals(f"writing {path}"):
            try:
                with open(temporary, "w", encoding="utf-8") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def discard(self, release_id: str) -> None:
        """Remove a release that nothing points to: it stops being a release before its files go."""
        folder = self.release(release_id)
        (folder / "release.json").unlink(missing_ok=True)
        remove_tree(folder)


def remove_tree(root: Path) -> None:
    """Remove a folder and everything in it, as far as that is possible.

    Many folders at a time: where a disk discards what is freed (mount option `discard`), each of the thousands of files
    and folders of an environment waits for it, alone for more than a minute and together for seconds.
    """
    levels = [[] if root.is_symlink() else [str(root)]]
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        while levels[-1]:
            levels.append([path for folders in pool.map(_emptied, levels[-1]) for path in folders])
        for level in reversed(levels):
            list(pool.map(_removed, level))


def _emptied(folder: str) -> list[str]:
    """Remove what is no folder from a folder; returns the folders."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108 (tens of thousands of times)
    return folders


def _removed(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # noqa: PTH106


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend_last_line(path: Path) -> None:
    """End a line that a power failure cut short, so that the next entry stands on its own."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


# ---- preflight.py ----

"""Whether a host can carry a release, asked before anything is written: named checks, each with its remedy.

`read_host` gathers facts, `findings` judges them and nothing else, so that every check can be tested without the host
it warns about.
"""


import datetime as dt
import os
import platform
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


_BASELINE = {"x86_64": {"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"}, "aarch64": {"asimd"}}  # what the wheels assume
_FAST = {"x86_64": {"avx2", "fma"}, "aarch64": {"asimddp"}}  # what the encoder is quick with
CLOCK_TOLERANCE = dt.timedelta(hours=24)
CLOCK_FAR = dt.timedelta(days=2 * 365)  # after the release: nothing here can tell whether it is true
GATEWAY_PORT = 8443  # of the configuration that a first installation brings
_BYTECODE = 1.2  # compiled modules lie beside their sources
_OURS = {"releases", "current", "state", "etc", "lost+found"}
_WITHOUT_LINKS = {"vfat", "msdos", "exfat"}  # the switch between releases is a symbolic link


@dataclass(frozen=True)
class Host:
    """Facts of a host.

    Attributes:
        python: (major, minor) of the interpreter for the environment.
        architecture: as `uname -m` prints it.
        glibc: (major, minor), or None where the C library is another.
        cpu_features: flags of the first processor; empty where unknown.
        free_bytes, free_inodes: on the prefix's file system; inodes None where it does not count them.
        file_system, mount_point: of the prefix, as the kernel names them; empty where unknown.
        noexec, read_only: whether it forbids execution, or writing.
        foreign: what lies below a prefix that holds no installation yet, and belongs to none.
        exists: whether the prefix is there.
        writable: whether the prefix, or the nearest folder above it that exists, may be written.
        selinux_enforcing: whether SELinux enforces.
        ports, busy_ports: those asked about, and of them those in use.
        now: the clock.
    """

    python: tuple[int, int]
    architecture: str
    glibc: tuple[int, int] | None
    cpu_features: frozenset[str]
    free_bytes: int
    free_inodes: int | None
    file_system: str
    mount_point: str
    noexec: bool
    read_only: bool
    foreign: tuple[str, ...]
    exists: bool
    writable: bool
    selinux_enforcing: bool
    ports: tuple[int, ...]
    busy_ports: tuple[int, ...]
    now: dt.datetime


@dataclass(frozen=True)
class Finding:
    """The outcome of one named check.

    Attributes:
        check: its name.
        status: `ok`, `warning` or `refused`.
        text: what was found.
        code: for `refused`, the code.
        remedy: what to do about it; empty for `ok`.
    """

    check: str
    status: str
    text: str
    code: str = ""
    remedy: str = ""


def read_host(prefix: Path, *, now: dt.datetime, python: tuple[int, int], ports: Sequence[int] = ()) -> Host:
    """Gather the facts; touches nothing.

    Args:
        prefix: where the appliance shall live.
        now: the clock.
        python: (major, minor) of the interpreter for the environment.
        ports: to ask about; where none is named and nothing runs here yet, the gateway's.
    """
    nearest = prefix.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    space = os.statvfs(nearest)
    mount_point, file_system = _mounted(nearest)
    ports = tuple(ports) or (() if (prefix / "current").is_symlink() else (GATEWAY_PORT,))
    return Host(
        python=python,
        architecture=platform.machine(),
        glibc=_glibc(),
        cpu_features=_cpu_features(),
        free_bytes=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail if space.f_files else None,
        file_system=file_system,
        mount_point=mount_point,
        noexec=bool(space.f_flag & os.ST_NOEXEC),
        read_only=bool(space.f_flag & os.ST_RDONLY),
        foreign=_foreign(prefix.absolute()),
        exists=nearest == prefix.absolute(),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        selinux_enforcing=_text("/sys/fs/selinux/enforce").strip() == "1",
        ports=ports,
        busy_ports=tuple(port for port in ports if _busy(port)),
        now=now,
    )


def preflight_findings(manifest: Manifest, host: Host, prefix: Path, *, staged_bytes: int = 0) -> list[Finding]:
    """Judge a host for a release.

    Args:
        manifest: the release.
        host: the facts.
        prefix: for messages.
        staged_bytes: what an earlier, killed run has extracted already.
    """
    return [
        _python(manifest, host),
        _architecture(manifest, host),
        _c_library(manifest, host),
        _cpu(host),
        _disk(manifest, host, prefix, staged_bytes),
        _inodes(manifest, host, prefix),
        _prefix(host, prefix),
        _permissions(host, prefix),
        _mount(host, prefix),
        _clock(manifest, host),
        _ports(host),
        _selinux(host, prefix),
    ]


def refuse_unfit(findings: Sequence[Finding]) -> None:
    """Refuse with the first finding that forbids the installation; all of them are evidence.

    Raises:
        Refused: the code of that finding.
    """
    bad = [finding for finding in findings if finding.status == "refused"]
    if bad:
        evidence = {finding.check: f"{finding.text} ({finding.remedy})" for finding in bad[1:]}
        raise Refused(bad[0].code, bad[0].text, remedy=f"{bad[0].remedy}.", **evidence)


def _python(manifest: Manifest, host: Host) -> Finding:
    have, need = ".".join(map(str, host.python)), manifest.target["python"]
    if have == need:
        return Finding("python", "ok", f"Python {have}")
    return Finding(
        "python", "refused", f"the release is for Python {need}, this is {have}", "INSTALL_PYTHON",
        f"Run it with Python {need}: python{need} stage0.py ..., or build for this Python",
    )  # fmt: skip


def _architecture(manifest: Manifest, host: Host) -> Finding:
    need = manifest.target["architecture"]
    if host.architecture == need:
        return Finding("architecture", "ok", need)
    return Finding(
        "architecture", "refused", f"the release is for {need}, this is {host.architecture}", "INSTALL_ARCHITECTURE",
        "Bring the release built for this architecture",
    )  # fmt: skip


def _c_library(manifest: Manifest, host: Host) -> Finding:
    need = tuple(int(part) for part in manifest.target["glibc"].split("."))
    if host.glibc is not None and host.glibc >= need:
        return Finding("glibc", "ok", f"glibc {host.glibc[0]}.{host.glibc[1]}")
    have = f"glibc {host.glibc[0]}.{host.glibc[1]}" if host.glibc else "no glibc"
    return Finding(
        "glibc", "refused", f"the release needs glibc {manifest.target['glibc']}, here is {have}", "INSTALL_GLIBC",
        "Use a distribution with a newer glibc, see `ldd --version`",
    )  # fmt: skip


def _cpu(host: Host) -> Finding:
    if not host.cpu_features:
        return Finding("cpu", "warning", "processor features are unknown", remedy="Check `lscpu`")
    missing = _BASELINE.get(host.architecture, set()) - host.cpu_features
    if missing:
        return Finding(
            "cpu", "refused", f"the processor lacks {', '.join(sorted(missing))}", "INSTALL_CPU",
            "Use a newer processor, or give the virtual machine the host's CPU model",
        )  # fmt: skip
    slow = _FAST.get(host.architecture, set()) - host.cpu_features
    if slow:
        return Finding(
            "cpu", "warning", f"without {', '.join(sorted(slow))} prompts are encoded several times more slowly",
            remedy="Give the virtual machine the host's CPU model",
        )  # fmt: skip
    return Finding("cpu", "ok", "all features that the wheels use")


def _disk(manifest: Manifest, host: Host, prefix: Path, staged_bytes: int) -> Finding:
    need = max(0, manifest.payload_bytes - staged_bytes) + int(manifest.installed_bytes * _BYTECODE)
    text = f"{need / 1e9:.2f} GB needed, {host.free_bytes / 1e9:.2f} GB free at {prefix}"
    if host.free_bytes >= need:
        return Finding("disk", "ok", text)
    return Finding(
        "disk", "refused", text, "INSTALL_NO_SPACE", f"Free {(need - host.free_bytes) / 1e9:.2f} GB, see `df -h`"
    )


def _inodes(manifest: Manifest, host: Host, prefix: Path) -> Finding:
    need = int(manifest.installed_files * 2.2) + len(manifest.members)
    if host.free_inodes is None or host.free_inodes >= need:
        return Finding("inodes", "ok", f"{need} needed")
    return Finding(
        "inodes", "refused", f"{need} inodes needed, {host.free_inodes} free at {prefix}", "INSTALL_NO_SPACE",
        "Remove files or make the file system with more inodes, see `df -i`",
    )  # fmt: skip


def _prefix(host: Host, prefix: Path) -> Finding:
    if host.file_system in _WITHOUT_LINKS:
        return Finding(
            "prefix", "refused", f"{prefix} lies on {host.file_system}, which knows no symbolic links",
            "INSTALL_PREFIX", "Choose a prefix on ext4, xfs or the like, see `findmnt -D`",
        )  # fmt: skip
    if host.foreign:
        return Finding(
            "prefix", "refused", f"{prefix} holds other things: {', '.join(host.foreign[:5])}",
            "INSTALL_PREFIX", "Choose an empty folder, or one that does not exist yet",
        )  # fmt: skip
    return Finding("prefix", "ok", f"{prefix} is the appliance's own")


def _permissions(host: Host, prefix: Path) -> Finding:
    place = shlex.quote(str(prefix))
    if host.read_only:
        return Finding(
            "permissions", "refused", f"{prefix} lies on a file system mounted read-only", "INSTALL_PERMISSION",
            f"Choose another prefix, or: mount -o remount,rw {shlex.quote(host.mount_point)}",
        )  # fmt: skip
    if host.writable:
        return Finding("permissions", "ok", f"{prefix} may be written")
    return Finding(
        "permissions", "refused", f"{prefix} may not be written by this user", "INSTALL_PERMISSION",
        f"Run as its owner, see: ls -ld {place}" if host.exists
        else f"Run as root, or have it made for you: sudo install -d -o $USER {place}",
    )  # fmt: skip


def _mount(host: Host, prefix: Path) -> Finding:
    if not host.noexec:
        return Finding("mount", "ok", "execution is allowed")
    return Finding(
        "mount", "refused", f"{prefix} lies on a file system mounted noexec", "INSTALL_NOEXEC",
        f"Choose another prefix, or: mount -o remount,exec {shlex.quote(host.mount_point)}",
    )  # fmt: skip


def _clock(manifest: Manifest, host: Host) -> Finding:
    created = dt.datetime.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)
    if host.now > created + CLOCK_FAR:
        return Finding(
            "clock", "warning", f"clock {host.now:%Y-%m-%d}, long after the release, which is of {created:%Y-%m-%d}",
            remedy="Compare it with a watch; if it is wrong: date -u -s 'YYYY-MM-DD HH:MM'",
        )  # fmt: skip
    if host.now >= created - CLOCK_TOLERANCE:
        return Finding("clock", "ok", host.now.strftime("%Y-%m-%d %H:%M UTC"))
    return Finding(
        "clock", "refused", f"clock {host.now:%Y-%m-%d}, but the release is of {created:%Y-%m-%d}", "INSTALL_CLOCK",
        f"Set the clock: date -u -s '{created:%Y-%m-%d %H:%M}' or later",
    )  # fmt: skip


def _ports(host: Host) -> Finding:
    if not host.busy_ports:
        free = f"free: {', '.join(map(str, host.ports))}" if host.ports else "none asked about: the gateway has its own"
        return Finding("ports", "ok", free)
    busy = ", ".join(map(str, host.busy_ports))
    return Finding(
        "ports", "warning", f"in use: {busy}", remedy=f"See who holds it: ss -ltnp 'sport = :{host.busy_ports[0]}'"
    )


def _selinux(host: Host, prefix: Path) -> Finding:
    if not host.selinux_enforcing:
        return Finding("selinux", "ok", "not enforcing")
    return Finding(
        "selinux", "warning", "SELinux enforces",
        remedy=f"Label the programs: semanage fcontext -a -t bin_t '{prefix}/releases/[^/]+/env/bin(/.*)?' "
        f"&& restorecon -R {shlex.quote(str(prefix))}",
    )  # fmt: skip


def _foreign(prefix: Path) -> tuple[str, ...]:
    try:
        if (prefix / "state" / "install").is_dir():
            return ()
        names = sorted(entry.name for entry in prefix.iterdir())
    except OSError:  # not there yet, or not to be entered: another check says so
        return ()
    return tuple(name for name in names if name not in _OURS and not name.startswith("."))


def _mounted(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> tuple[str, str]:
    """Where the file system that a folder lies on is mounted, and its kind; proc(5) describes the table."""
    where, found, kind = f"{folder.resolve()}/", "", ""
    for line in _text(str(table)).splitlines():
        fields = line.split(" ")
        if len(fields) < 8 or "-" not in fields[6:-1]:
            continue
        point = fields[4].replace("\\040", " ").rstrip("/") + "/"
        if where.startswith(point) and len(point) >= len(found):  # of two at one place the later covers the earlier
            found, kind = point, fields[fields.index("-", 6) + 1]
    return found.rstrip("/") or found, kind


def _glibc() -> tuple[int, int] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (ValueError, OSError):
        return None


def _cpu_features() -> frozenset[str]:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


# ---- environment.py ----

"""The release's Python environment, made offline by the uv that the release brought."""


import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path


REQUIREMENTS = "requirements.txt"
MAX_UV_BYTES = 256 * 1024 * 1024
START_S = 120.0
FULL_BYTES = 64 * 1024  # with less than this left a disk is full
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_PRCTL = _LIBRARY.prctl  # looked up here: between fork and exec the loader's lock may be held by a thread that is gone
_PR_SET_PDEATHSIG = 1


def make_environment(payload: Path, release: Path, *, python: str = sys.executable) -> None:
    """Create `release/env` from the verified wheels, replacing whatever a killed attempt left.

    uv checks every wheel against the signed `requirements.txt` once more, fetches nothing (`--offline`, `--no-index`)
    and builds nothing. Its cache lies beside the environment, so that files are linked instead of copied. Nothing is
    durable yet when this returns: `settle_environment` sees to that while the next steps run.

    Args:
        payload: the extracted members.
        release: folder of the release.
        python: the interpreter of the host.

    Raises:
        Refused: INSTALL_ENVIRONMENT, INSTALL_NO_SPACE, INSTALL_PERMISSION.
    """
    environment, cache = release / "env", release / ".cache"
    with space_refusals("making the environment"):
        for folder in (environment, cache):
            remove_tree(folder)
        uv = _unpack_uv(payload, release)
        try:
            _run_uv(uv, cache, "venv", "--python", python, "--no-project", "--quiet", str(environment))
            _run_uv(
                uv, cache, "pip", "install", "--python", str(environment / "bin" / "python"),
                "--no-index", "--find-links", str(payload / "wheels"), "--no-build", "--no-deps", "--require-hashes",
                "--link-mode", "hardlink", "--requirement", str(payload / REQUIREMENTS), "--quiet",
            )  # fmt: skip
            (environment / ".lock").unlink(missing_ok=True)  # uv's own, which everybody may write
        finally:
            uv.unlink(missing_ok=True)


def starts(program: Path) -> bool:
    """Whether a program of an environment starts; True also where the host alone kept it from starting."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [str(program), "--version"], env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, timeout=START_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP)
    return done.returncode <= 0 or b"MemoryError" in done.stderr  # ended by a signal: by the host's hand, too


def settle_environment(release: Path) -> None:
    """Make a release and its environment durable; slow on a slow disk, so it runs beside the next steps.

    Raises:
        Refused: INSTALL_NO_SPACE.
    """
    with space_refusals("making the release durable"):
        _sync_file_system(release)


def clear_cache(release: Path) -> None:
    """Remove uv's cache, whose files the environment shares."""
    remove_tree(release / ".cache")


def die_with_parent() -> None:
    """In a child, between fork and exec: a killed installer leaves nobody behind who goes on writing (prctl(2))."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _sync_file_system(folder: Path) -> None:
    """Make thousands of small files durable at once; `os.sync` would wait for every other file system as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBRARY.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def _unpack_uv(payload: Path, release: Path) -> Path:
    """Take the one executable out of uv's (verified) wheel."""
    wheels = sorted((payload / "wheels").glob("uv-*.whl"))
    if len(wheels) != 1:
        raise Refused(
            "INSTALL_ENVIRONMENT", "the release does not carry exactly one uv", found=[w.name for w in wheels]
        )
    target = release / ".uv"
    target.unlink(missing_ok=True)
    with zipfile.ZipFile(wheels[0]) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".data/scripts/uv")]
        if len(entries) != 1 or entries[0].file_size > MAX_UV_BYTES:
            raise Refused("INSTALL_ENVIRONMENT", "uv's wheel does not hold one uv", wheel=wheels[0].name)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
        with archive.open(entries[0]) as source, open(descriptor, "wb") as output:
            shutil.copyfileobj(source, output, 1024 * 1024)
    target.chmod(stat.S_IRWXU)
    return target


def _run_uv(uv: Path, cache: Path, *arguments: str) -> None:
    environment = {
        "PATH": os.defpath,
        "HOME": str(cache),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(cache.parent),
        "UV_CACHE_DIR": str(cache),
        "UV_OFFLINE": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    try:
        done = subprocess.run(
            [str(uv), *arguments], env=environment, capture_output=True, text=True, errors="replace", check=False,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    except OSError as error:
        remark = "is the prefix mounted noexec?" if isinstance(error, PermissionError) else str(error)
        raise Refused("INSTALL_ENVIRONMENT", f"uv cannot be run: {remark}", path=str(uv)) from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        space = os.statvfs(cache.parent)  # asked, because a tool may word it in its own way, or not at all
        full = "os error 28" in said or space.f_bavail * space.f_frsize < FULL_BYTES
        raise Refused(
            "INSTALL_NO_SPACE" if full else "INSTALL_ENVIRONMENT", f"uv {arguments[0]} failed", uv=said[-600:]
        )


# ---- preparing.py ----

"""The first half of an installation: from authenticated media to a staged release with its environment.

Stage 0 runs exactly this, then hands over; the installed appliance runs it too and goes on. A killed run is taken up
where it stood: the journal names the last finished step, and files that lie there are hashed before they count.
"""


import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path



@dataclass(frozen=True)
class Authenticated:
    """A release whose manifest was verified.

    Attributes:
        manifest: parsed from the verified bytes.
        manifest_bytes, signature: as they came.
        delta: the verified delta statement, where the media hold one.
    """

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes
    delta: Delta | None = None

    @property
    def carried(self) -> tuple[str, ...] | None:
        """Paths that the media hold; None means all."""
        return self.delta.carried if self.delta else None

    @property
    def carried_bytes(self) -> int:
        """What the media hold of the payload."""
        carried = set(self.carried if self.carried is not None else (m.path for m in self.manifest.members))
        return sum(member.size_bytes for member in self.manifest.members if member.path in carried)


@dataclass(frozen=True)
class Conduct:
    """How a run behaves towards its surroundings.

    Attributes:
        say: called with one line for each step.
        progress: called with bytes done and in all.
        checkpoint: called with a name at every point where a kill leaves another state behind.
        python: the host's interpreter for the environment.
    """

    say: Callable[[str], None] = lambda _: None
    progress: Callable[[int, int], None] = lambda _done, _all: None
    checkpoint: Callable[[str], None] = lambda _: None
    python: str = "python3"


def prepare(prefix: Prefix, release: Authenticated, region: Region, conduct: Conduct) -> Transaction:
    """Bring a release to the step `environment`; the caller holds the prefix's lock.

    Returns:
        The transaction, at `environment` or beyond where an earlier run came further.

    Raises:
        Refused: whatever makes a step impossible; what was done so far stays for the next run to take up.
    """
    require_base(prefix, release)
    transaction = _begin(prefix, release, conduct)
    folder = prefix.release(transaction.release)
    if not reached(transaction, "staged"):
        conduct.say(f"extracting {release.carried_bytes / 1e6:.1f} MB")
        _stage(prefix, release, region, conduct)
        transaction = advance(prefix, transaction, "staged", conduct)
    if not reached(transaction, "environment"):
        conduct.say("making the environment")
        make_environment(prefix.payload(transaction.release), folder, python=conduct.python)
        transaction = advance(prefix, transaction, "environment", conduct)
    return transaction


def is_settled(prefix: Prefix, release: Authenticated) -> bool:
    """Whether this very release runs already and nothing is left to do."""
    return prefix.active() == release.manifest.release_id and prefix.transaction() is None


def begin_anew(prefix: Prefix, release: Authenticated) -> None:
    """Have the release that runs made anew where it lies: its program no longer starts, there is nothing to spare."""
    manifest = release.manifest
    prefix.record(Transaction(manifest.release_id, manifest.digest, "begun", prefix.previous(), current_boot()))


def reached(transaction: Transaction, step: str) -> bool:
    """Whether a transaction has finished a step."""
    return STEPS.index(transaction.step) >= STEPS.index(step)


def advance(prefix: Prefix, transaction: Transaction, step: str, conduct: Conduct) -> Transaction:
    """Write down that a step is finished."""
    conduct.checkpoint(f"{step}: done, not written down")
    transaction = replace(transaction, step=step, boot=current_boot())
    prefix.record(transaction)
    conduct.checkpoint(f"{step}: written down")
    return transaction


def _begin(prefix: Prefix, release: Authenticated, conduct: Conduct) -> Transaction:
    """Take up the transaction of this very release, or undo another's and begin."""
    found = prefix.transaction()
    if found is not None and found.digest == release.manifest.digest:
        conduct.say(f"taking up the installation of {found.release} after step {found.step!r}")
        # one that is complete was durable long ago, unless it is the one that runs and is being made anew
        complete = find_base(prefix, found.digest) is not None and prefix.active() != found.release
        lost = found.step in NOT_YET_DURABLE and found.boot != current_boot() and not complete
        if lost:
            conduct.say("the host was restarted meanwhile: making the environment anew")
            found = replace(found, step="staged", boot=current_boot())
            prefix.record(found)
        if found.step == "staged":
            try:
                check_payload(prefix, release.manifest)
            except Refused as refusal:
                conduct.say(f"{refusal.cause}: taking it from the media again")
                found = stage_again(prefix, found)
        elif reached(found, "activated") and prefix.active() != found.release:
            conduct.say("it was rolled back meanwhile: activating it again")
            found = replace(found, step="healthy", previous=prefix.active(), boot=current_boot())
            prefix.record(found)
        return found
    if found is not None:
        conduct.say(f"undoing the unfinished installation of {found.release}")
        if prefix.active() != found.release:
            prefix.discard(found.release)
        conduct.checkpoint("other transaction undone")
    # a release that was complete before needs no new environment: it is verified, asked for its health and activated
    step = "environment" if find_base(prefix, release.manifest.digest) else "begun"
    manifest = release.manifest
    active = prefix.active()
    previous = active if active != manifest.release_id else prefix.previous()
    transaction = Transaction(manifest.release_id, manifest.digest, step, previous, current_boot())
    prefix.record(transaction)
    conduct.checkpoint("begun: written down")
    return transaction


def check_payload(prefix: Prefix, manifest: Manifest) -> None:
    """Hash what was staged again, from the disk.

    Raises:
        Refused: INSTALL_STAGED_ALTERED.
    """
    payload = prefix.payload(manifest.release_id)
    try:
        descriptor = os.open(payload, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("INSTALL_STAGED_ALTERED", f"{payload}: {error.strerror}", path=str(payload)) from None
    try:
        check_tree(manifest.members, descriptor)
    finally:
        os.close(descriptor)


def stage_again(prefix: Prefix, transaction: Transaction) -> Transaction:
    """Step back to where every file that lies there is hashed, and taken from the media where it is damaged.

    It stops being a release that `rollback` could return to; the one that runs keeps its mark, and its epoch with it.
    """
    if prefix.active() != transaction.release:
        (prefix.release(transaction.release) / "release.json").unlink(missing_ok=True)
    transaction = replace(transaction, step="begun", boot=current_boot())
    prefix.record(transaction)
    return transaction


def _stage(prefix: Prefix, release: Authenticated, region: Region, conduct: Conduct) -> None:
    manifest = release.manifest
    folder, payload = prefix.release(manifest.release_id), prefix.payload(manifest.release_id)
    with space_refusals("staging the release"):
        payload.mkdir(parents=True, exist_ok=True)
        for name, data in ((MANIFEST, release.manifest_bytes), (SIGNATURE, release.signature)):
            prefix.write(folder / name, data.decode("utf-8"))
        conduct.checkpoint("staging: manifest written")
    descriptor = os.open(payload, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        present = verified_present(manifest.members, descriptor)
        members = manifest.members
        if release.delta is not None:
            carried = set(release.delta.carried)
            members = tuple(member for member in manifest.members if member.path in carried)
            wanted = [
                member for member in manifest.members if member.path not in carried and member.path not in present
            ]
            conduct.say(f"taking {len(wanted)} files from release {release.delta.base[:12]}, each hashed")
            _link_base(prefix, release.delta.base, wanted, descriptor)
            conduct.checkpoint("staging: base linked")
        extract_members(
            region, members, descriptor, present=present, progress=conduct.progress, checkpoint=conduct.checkpoint
        )
    finally:
        os.close(descriptor)
    sync_folder(folder)


def _link_base(prefix: Prefix, base: str, wanted: list[Member], descriptor: int) -> None:
    source = find_base(prefix, base)
    if source is None:
        raise Refused(
            "BUNDLE_DELTA_BASE", "the release that this delta builds upon has just been removed", base=base[:12]
        )
    handle = os.open(source / "payload", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lacking = link_from(wanted, handle, descriptor)
    finally:
        os.close(handle)
    if lacking:
        raise Refused(
            "BUNDLE_DELTA_BASE",
            f"{len(lacking)} files of the installed base are damaged or gone",
            files=[member.path for member in lacking[:5]],
        )


def require_base(prefix: Prefix, release: Authenticated) -> None:
    """Refuse a delta whose base is not here, before anything is written.

    Raises:
        Refused: BUNDLE_DELTA_BASE.
    """
    if release.delta is not None and find_base(prefix, release.delta.base) is None:
        installed = sorted(path.name for path in prefix.releases.iterdir()) if prefix.releases.is_dir() else []
        raise Refused(
            "BUNDLE_DELTA_BASE",
            f"this delta builds upon release {release.delta.base[:12]}, which is not installed here",
            installed=installed,
        )


def find_base(prefix: Prefix, digest: str) -> Path | None:
    """Folder of the complete installed release with a manifest digest, or None."""
    if prefix.releases.is_dir():
        for folder in sorted(prefix.releases.iterdir()):
            if folder.name.endswith(f"-{digest[:12]}") and (folder / "release.json").is_file():
                return folder
    return None


# ---- main.py ----

"""Stage 0's command: the anchor, openssl's verdict, staging, and the hand-over to the full verifier."""


import argparse
import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path


LOCK_VARIABLE = "APPLIANCE_INSTALL_LOCK"


def main(arguments: list[str] | None = None) -> int:
    """Run stage 0. Exit status: 0 done, 1 refused, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="stage0.py", description="Check a release with openssl and install it below a prefix."
    )
    parser.add_argument("media", nargs="+", help="the archive, its volumes, or folders that hold them")
    parser.add_argument("--prefix", required=True, type=Path, help="where the appliance lives, e.g. /opt/appliance")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--trust", type=Path, help="anchor.json as it reached you by the second channel")
    trust.add_argument("--trust-sha256", metavar="HEX", help="its SHA-256; the copy on the media is then taken")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    options = parser.parse_args(arguments)
    try:
        return _stage0(options)
    except Refused as refused:
        _print_refused(refused)
        return 1


def authenticate_with_openssl(head: Head, anchor_bytes: bytes) -> tuple[Authenticated, Anchor, FirstVerdict]:
    """Stage 0's verdict on a head: the signature, then the manifest's own text, then the trust metadata's digests.

    Raises:
        Refused: what `verify_with_openssl`, `read_manifest` and `check_head` refuse.
    """
    anchor = read_anchor(anchor_bytes)
    try:
        verdict = verify_with_openssl(head.files[MANIFEST], head.files[SIGNATURE], anchor)
    except Refused as refusal:
        carried = head.files.get("trust/anchor.json", b"")
        if refusal.code not in {"BUNDLE_TIMESTAMP", "BUNDLE_CERTIFICATE"} or carried == anchor_bytes:
            raise
        raise Refused(
            "BUNDLE_ANCHOR", "the release was made for another anchor than the one given",
            given=anchor.fingerprint, carried=hashlib.sha256(carried).hexdigest(), because=refusal.code,
        ) from None  # fmt: skip
    manifest = read_manifest(head.files[MANIFEST])
    delta = None
    if DELTA in head.files:
        verify_with_openssl(head.files[DELTA], head.files[DELTA_SIGNATURE], anchor)
        delta = read_delta(head.files[DELTA], manifest)
    release = Authenticated(manifest, head.files[MANIFEST], head.files[SIGNATURE], delta)
    check_head(head, release)
    return release, anchor, verdict


def check_head(head: Head, release: Authenticated) -> None:
    """The trust metadata on the media are those that the manifest signs, in its order.

    Raises:
        Refused: BUNDLE_HEAD.
    """
    found = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in head.files.items()]
    found = [entry for entry in found if entry[0].startswith("trust/")]
    signed = [(member.path, member.size_bytes, member.sha256) for member in release.manifest.trust]
    if found != signed:
        names = sorted({name for name, _, _ in set(found) ^ set(signed)}) or ["order"]
        raise Refused(
            "BUNDLE_HEAD", "the trust metadata on the media are not those the manifest signs", files=names[:5]
        )


def release_region(sources: list, release: Authenticated, set_aside: list[str], say) -> Region:  # type: ignore[no-untyped-def,type-arg]
    """The payload region that belongs to an authenticated release."""
    manifest, delta = release.manifest, release.delta
    signed = delta or manifest
    members = tuple(member for member in manifest.members if delta is None or member.path in set(delta.carried))
    return open_region(
        sources, region_bytes(members), signed.segment_bytes, signed.segments, set_aside=set_aside, report=say
    )


def _stage0(options: argparse.Namespace) -> int:
    now = dt.datetime.now(dt.UTC)
    os.umask(0o022)  # what is installed is run by the service's account, whatever mask the operator works under
    _say(f"stage 0 with {check_openssl()}")
    with open_sources(options.media) as (sources, unreadable):
        anchors: dict[str, bytes] = {}

        def authenticate(head: Head) -> Authenticated:
            anchor_bytes = _anchor_bytes(options, head)
            release, anchor, verdict = authenticate_with_openssl(head, anchor_bytes)
            anchors[release.manifest.digest] = anchor_bytes
            _say(f"anchor {anchor.fingerprint}")
            _say(f"signed by {verdict.identity}, {verdict.signed_at:%Y-%m-%d %H:%M:%S} UTC")
            return release

        release, chosen, set_aside = choose(sources, authenticate)
        manifest = release.manifest
        _say(f"release {manifest.name} {manifest.version} ({manifest.profile}), manifest {manifest.digest}")
        region = release_region(chosen, release, set_aside + unreadable, _say)
        host = read_host(options.prefix, now=now, python=sys.version_info[:2])
        findings = preflight_findings(manifest, host, options.prefix)
        for finding in findings:
            if finding.status == "warning":
                _say(f"{finding.check}: {finding.text}. {finding.remedy}")
        prefix = Prefix(options.prefix.absolute())
        if not is_settled(prefix, release):
            refuse_unfit(findings)
        conduct = Conduct(say=_say, progress=_Rate(), python=sys.executable)
        if options.dry_run:
            carried = None if release.delta is None else set(release.delta.carried)
            check_members(
                region, [m for m in manifest.members if carried is None or m.path in carried], progress=_Rate()
            )
            _say("everything on the media is what the manifest signs; nothing was written")
            return 0
        with prefix.locked() as lock:
            program = prefix.environment(manifest.release_id) / "bin" / "appliance"
            if is_settled(prefix, release) and not starts(program):
                _say("it is installed, and its program does not start: making it anew")
                begin_anew(prefix, release)
            if not is_settled(prefix, release):
                prepare(prefix, release, region, conduct)
            anchor_file = prefix.journal / "anchor.json"
            prefix.write(anchor_file, anchors[manifest.digest].decode("utf-8"))
            _say("handing over to the appliance's own verifier")
            command = [
                str(program), "install", *map(os.path.abspath, options.media),
                "--prefix", str(prefix.root), "--trust", str(anchor_file),
            ]  # fmt: skip
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            environment |= {LOCK_VARIABLE: str(lock), "PYTHONDONTWRITEBYTECODE": "1"}
            return subprocess.run(command, env=environment, pass_fds=[lock], check=False).returncode


def _anchor_bytes(options: argparse.Namespace, head: Head) -> bytes:
    """The anchor: the file given, or the media's copy if it has the fingerprint given."""
    copy = head.files.get("trust/anchor.json", b"")
    if options.trust is None:
        expected = options.trust_sha256.lower().replace(":", "")
        found = hashlib.sha256(copy).hexdigest()
        if found != expected:
            raise Refused(
                "BUNDLE_ANCHOR", "the anchor on the media is not the one you expect", expected=expected, found=found
            )
        return copy
    try:
        if options.trust.exists() and not options.trust.is_file():  # a pipe or a device would be waited for
            raise Refused("BUNDLE_ANCHOR", f"{options.trust} is no file")
        with open(options.trust, "rb") as stream:
            return stream.read(MAX_ANCHOR_BYTES + 1)
    except OSError as error:
        raise Refused("BUNDLE_ANCHOR", f"{options.trust} cannot be read: {error.strerror}") from None


class _Rate:
    """Progress with rate and time left: a live line on a terminal, a line for every quarter elsewhere."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._shown = 0.0
        self._quarter = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        live = sys.stderr.isatty()
        quarter = done * 4 // max(total, 1)
        if (live and now - self._shown < 0.2 and done < total) or (not live and quarter == self._quarter):
            return
        self._shown, self._quarter = now, quarter
        sys.stderr.write(("\r\033[K" if live else "") + rate_text(done, total, now - self._begun))
        sys.stderr.write("" if live and done < total else "\n")
        sys.stderr.flush()


def rate_text(done: int, total: int, seconds: float) -> str:
    """`  120 of 530 MB, 410 MB/s, 1 s left`."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
    digits = 0 if total >= 10e6 else 1
    return f"  {done / 1e6:.{digits}f} of {total / 1e6:.{digits}f} MB, {rate / 1e6:.{digits}f} MB/s{left}"


def _say(text: str) -> None:
    """One line of ours: names from the medium bring no line, and nothing that a terminal acts upon, of their own."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    print(shown, file=sys.stderr, flush=True)


def _print_refused(refused: Refused) -> None:
    remedies: dict[str, str] = globals().get("REMEDIES", {})
    _say(f"refused {refused.code} {refused.cause}")
    for name, value in refused.evidence.items():
        _say(f"  {name}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
    _say(f"next: {refused.remedy or remedies.get(refused.code, f'appliance explain {refused.code}')}")


if __name__ == "__main__":
    raise SystemExit(main())
