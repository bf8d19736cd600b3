"""Locks: what pip-tools wrote, read so strictly that nothing but pinned, hashed, named packages can stand in them.

A lock that names an index, a URL, a local path, an option or an unpinned requirement is refused: it would make the
release depend on something that its hashes do not cover.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import InvalidMarker, Marker
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from appliance.errors import VendorError
from appliance.files import read_regular, sha256_hex

MAX_LOCK_BYTES = 16 * 1024 * 1024  # bytes
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\]+?))?\s*\Z")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})\Z")
# builds of torch for graphics cards draw these in: gigabytes that no host of the zone can use
_FOREIGN = re.compile(r"(nvidia-|cuda-|triton\Z)")


@dataclass(frozen=True)
class Pin:
    """One locked distribution.

    Attributes:
        name: normalised name (PEP 503).
        version: exact version (PEP 440).
        hashes: SHA-256 (hex) of every file that may stand for it.
        marker: PEP 508 marker under which it is needed, or None.
    """

    name: str
    version: Version
    hashes: frozenset[str]
    marker: Marker | None = None

    def applies(self, environment: Mapping[str, str]) -> bool:
        """Whether the pin is needed in a marker environment."""
        return self.marker is None or self.marker.evaluate(dict(environment))

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Lock:
    """A parsed lock file.

    Attributes:
        name: the file's name, for messages.
        digest: SHA-256 (hex) of the file.
        pins: in the file's order.
    """

    name: str
    digest: str
    pins: tuple[Pin, ...]


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        VendorError: VENDOR_LOCK_MALFORMED, VENDOR_LOCK_UNHASHED, VENDOR_LOCK_FOREIGN.
        FileError: the file cannot be read.
    """
    return parse_lock(read_regular(path, max_bytes=MAX_LOCK_BYTES), name=path.name)


def parse_lock(data: bytes, *, name: str) -> Lock:
    """Parse a lock's bytes; see `read_lock`."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VendorError("VENDOR_LOCK_MALFORMED", f"{name}: not UTF-8 at byte {error.start}", lock=name) from None
    pins: dict[str, Pin] = {}
    for number, words in _logical_lines(text):
        pin = _pin(words, name, number)
        if pin.name in pins:
            raise VendorError(
                "VENDOR_LOCK_MALFORMED", f"{name}: {pin.name} stands twice", lock=name, line=number, package=pin.name
            )
        pins[pin.name] = pin
    if not pins:
        raise VendorError("VENDOR_LOCK_MALFORMED", f"{name}: holds no package", lock=name)
    return Lock(name, sha256_hex(data), tuple(pins.values()))


def merged(locks: Iterable[Lock]) -> tuple[Pin, ...]:
    """All pins of a profile's locks, in order.

    Raises:
        VendorError: VENDOR_LOCK_CONFLICT where two locks pin one package differently.
    """
    pins: dict[str, Pin] = {}
    for lock in locks:
        for pin in lock.pins:
            known = pins.setdefault(pin.name, pin)
            if known != pin:
                raise VendorError(
                    "VENDOR_LOCK_CONFLICT",
                    f"{lock.name} pins {pin}, another lock of the same profile {known}",
                    package=pin.name,
                )
    return tuple(pins.values())


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """Lines joined at their backslashes, without comments: (number of the first line, text)."""
    parts: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.split(" #", 1)[0].strip() if not line.lstrip().startswith("#") else ""
        if not stripped and not parts:
            continue
        if not parts:
            first = number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            yield first, " ".join(part for part in parts if part)
            parts = []
    if parts:
        yield first, " ".join(part for part in parts if part)


def _pin(words: str, lock: str, line: int) -> Pin:
    requirement, *options = re.split(r"\s+(?=--)", words)
    match = _PIN.match(requirement)
    if match is None:
        raise VendorError(
            "VENDOR_LOCK_MALFORMED",
            f"{lock}, line {line}: not a pinned package (name==version): {requirement[:80]!r}",
            lock=lock,
            line=line,
        )
    name = canonicalize_name(match["name"])
    hashes = [_HASH.match(option) for option in options]
    if not hashes or not all(hashes):
        raise VendorError(
            "VENDOR_LOCK_UNHASHED",
            f"{lock}, line {line}: {name} needs --hash=sha256:... and nothing else",
            lock=lock,
            line=line,
            package=name,
        )
    if _FOREIGN.match(name):
        raise VendorError(
            "VENDOR_LOCK_FOREIGN", f"{lock}, line {line}: {name} belongs to a CUDA build", lock=lock, package=name
        )
    try:
        marker = Marker(match["marker"]) if match["marker"] else None
        version = Version(match["version"])
    except (InvalidMarker, InvalidVersion) as error:
        raise VendorError(
            "VENDOR_LOCK_MALFORMED", f"{lock}, line {line}: {' '.join(str(error).split())}", lock=lock, line=line
        ) from None
    return Pin(name, version, frozenset(found[1] for found in hashes if found), marker)
