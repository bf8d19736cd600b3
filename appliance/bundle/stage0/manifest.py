"""The release manifest: what a release is, to the byte, in the order in which it travels."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from .refusal import Refused
from .ustar import BLOCK, END_BLOCKS, MAX_MEMBER_BYTES, fits, span, tar_header

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
