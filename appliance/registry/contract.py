"""The contract of a registry's home: dumb bytes under keys, in a directory or in a bucket.

Everything that makes a registry trustworthy (immutability, signed pointers, digests) is built on top of this in
`registry.py`, `channel.py` and `cache.py`, and rests on no promise of the home: a home that loses, swaps, shortens or
replays bytes is refused, not believed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from appliance.artifact import Kind
from appliance.errors import FileError, RegistryError
from appliance.files import safe_relative

POINTER_MAX_BYTES = 1024 * 1024  # a channel pointer with its signature
SIGNATURE_MAX_BYTES = 1024 * 1024  # `artifact.sigstore.json`
PREFIXES: dict[Kind, str] = {"router": "routers", "encoder": "encoders"}

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_VERSION = re.compile(r"[a-z0-9][a-z0-9._+-]{0,63}\Z")


@dataclass(frozen=True)
class Blob:
    """An object's bytes, and the tag that changes whenever the object does."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    key: str
    size_bytes: int
    modified: datetime


class Store(Protocol):
    """A registry's home.

    Keys are relative paths of safe names. Every method raises `RegistryError` and nothing else: REGISTRY_NOT_FOUND
    where the key is absent, REGISTRY_TOO_LARGE, REGISTRY_DENIED, and the availability codes of `s3.py`.
    """

    @property
    def location(self) -> str:
        """Where it is, for messages; never a secret."""

    def get(self, key: str, *, max_bytes: int, unless: str | None = None) -> Blob | None:
        """Read a small object whole.

        Args:
            key: the object.
            max_bytes: refuse anything longer.
            unless: an ETag; where the object still has it, nothing is transferred.

        Returns:
            The object, or None where it is unchanged.
        """

    def copy(self, key: str, into: BinaryIO, *, size_bytes: int) -> None:
        """Append the rest of an object to `into`, whose position says how much is there already.

        Args:
            key: the object.
            into: an open file at the position to go on from; after a fault it holds what arrived until then.
            size_bytes: the object's length, known from a signed statement; any other is REGISTRY_TOO_LARGE or
                REGISTRY_INCOMPLETE.
        """

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        """Write an object whole or not at all; return its ETag.

        With `only_if_absent` an object that stands already is REGISTRY_EXISTS. Homes differ in how strictly they
        keep that under a race (see `docs/registry.md`), so nothing may rest on it alone.
        """

    def list(self, prefix: str) -> list[Entry]:
        """Every object whose key begins with `prefix`, sorted by key."""

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""


class Objects(Protocol):
    """What somebody else keeps in a bucket or folder: read and never written, under whatever keys it has.

    Refusals are those of `Store`; REGISTRY_NAME is left for the few keys that no request can ask for.
    """

    @property
    def location(self) -> str:
        """Where it is, for messages; never a secret."""

    def get(self, key: str, *, max_bytes: int, unless: str | None = None) -> Blob | None:
        """Read an object whole; see `Store.get`."""

    def pages(self, prefix: str) -> Iterator[Sequence[Entry]]:
        """Every object whose key begins with `prefix`, in the order of the keys, however many there are."""


KeyRule = Callable[[str], str]  # gives an accepted key back, or raises REGISTRY_NAME


def checked_key(key: str) -> str:
    """Accept an object's key.

    Raises:
        RegistryError: REGISTRY_NAME.
    """
    try:
        return safe_relative(key)
    except FileError as error:
        raise RegistryError("REGISTRY_NAME", error.cause, key=key[:200]) from None


def foreign_key(key: str) -> str:
    """Accept a key that somebody else chose: a blank, a letter of any language, a name of no system is none of ours.

    A part `.` or `..` leads elsewhere in a folder and is folded away in an address, so that it cannot be asked for.

    Raises:
        RegistryError: REGISTRY_NAME.
    """
    if not key.strip() or "\0" in key or {".", ".."} & set(key.split("/")):
        raise RegistryError("REGISTRY_NAME", f"no request can ask for {key[:120]!r}", key=key[:200])
    return key


def is_name(name: str) -> bool:
    """Whether a router, an encoder or a channel can have this name."""
    return _NAME.match(name) is not None and ".." not in name


def checked_name(name: str) -> str:
    """Accept the name of a router, encoder or channel.

    Raises:
        RegistryError: REGISTRY_NAME.
    """
    if not is_name(name):
        raise RegistryError("REGISTRY_NAME", f"{name[:80]!r} is not a name the registry keeps", name=name[:80])
    return name


def checked_version(version: str) -> str:
    """Accept a version.

    Raises:
        RegistryError: REGISTRY_NAME.
    """
    if not _VERSION.match(version) or ".." in version:
        raise RegistryError(
            "REGISTRY_NAME", f"{version[:80]!r} is not a version the registry keeps", version=version[:80]
        )
    return version


def version_prefix(kind: Kind, name: str, version: str) -> str:
    """`routers/<name>/<version>/`."""
    return f"{PREFIXES[kind]}/{checked_name(name)}/{checked_version(version)}/"


def file_key(kind: Kind, name: str, version: str, file: str) -> str:
    """`routers/<name>/<version>/<file>`."""
    return version_prefix(kind, name, version) + checked_key(file)


def channel_key(channel: str) -> str:
    """`channels/<channel>.json`."""
    return f"channels/{checked_name(channel)}.json"
