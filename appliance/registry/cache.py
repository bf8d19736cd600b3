"""What a host keeps of the registry: file contents under their digests, and the last pointer of each channel.

```
<cache>/blobs/<sha256>            verified content, shared by every worker of the host, read-only
<cache>/partial/<sha256>          a transfer that was interrupted; the next one goes on from its end
<cache>/channels/<name>.json      the highest pointer seen (epoch memory) and the last one that was served
<cache>/channels/<name>.contact   when the registry last answered with a sound pointer
<cache>/locks/<two digits>        one fetch a host; never removed, so that two holders never hold different files
```
A blob enters `blobs/` only after its SHA-256 was compared, and is hashed again when it is read: a rotten disk is a
miss, not a router.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path

from appliance import documents
from appliance.artifact import ArtifactFiles, from_files
from appliance.errors import ApplianceError, FileError, RegistryError
from appliance.files import locked, read_regular, safe_relative, sha256_hex, sync_directory, translated, write_atomic
from appliance.registry.channel import FileRecord, Target, split
from appliance.registry.contract import POINTER_MAX_BYTES, Store, checked_name, file_key

GRACE_S = 24 * 3600.0  # a blob that was fetched since may be another worker's next
# a home, or a proxy before it, that has no rest of an object to give; it may still give the whole
_NOT_RESUMABLE = frozenset({"REGISTRY_ANSWER", "REGISTRY_CHANGED"})
_FOLDERS = ("blobs", "partial", "channels", "locks")

FetchSlot = Callable[[str], AbstractContextManager[object]]


def no_slot(_digest: str) -> AbstractContextManager[object]:
    """No limit on fetches across hosts."""
    return nullcontext()


class Cache:
    """A host's cache.

    Args:
        directory: made with mode 0700 where it is missing.
        slot: gives the right to fetch one digest; `leases.py` has those that hold across hosts.
    """

    def __init__(self, directory: Path, *, slot: FetchSlot = no_slot) -> None:
        self._directory = directory
        self._slot = slot
        with translated(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in _FOLDERS:
                (directory / folder).mkdir(mode=0o700, exist_ok=True)

    def artifact(self, target: Target, store: Store) -> ArtifactFiles:
        """A channel's target, from the cache or the registry; every byte has the digest the pointer names.

        Raises:
            RegistryError: REGISTRY_DIGEST; what the home refuses.
            FileError: FILE_NO_SPACE, FILE_PERMISSION.
        """
        files = {
            name: self.blob(record, store, file_key(target.kind, target.name, target.version, name))
            for name, record in target.files.items()
        }
        artifact = from_files(files)
        if artifact.digest != target.digest:
            raise RegistryError(
                "REGISTRY_DIGEST",
                f"the pointer of {target.name} {target.version} contradicts itself",
                expected=target.digest,
                actual=artifact.digest,
            )
        return artifact

    def holds(self, target: Target) -> bool:
        """Whether everything of a target is here (not whether it is sound)."""
        return all((self._directory / "blobs" / record.sha256).exists() for record in target.files.values())

    def blob(self, record: FileRecord, store: Store, key: str) -> bytes:
        """One file's content by digest; fetched where it is missing or rotten, once per host at a time."""
        data = self._sound(record)
        if data is not None:
            return data
        with locked(self._directory / "locks" / record.sha256[:2]):
            data = self._sound(record)
            if data is not None:
                return data
            with self._slot(record.sha256):
                return self._fetch(record, store, key)

    def _sound(self, record: FileRecord) -> bytes | None:
        try:
            data = read_regular(self._directory / "blobs" / record.sha256, max_bytes=record.size_bytes)
        except FileError as error:
            if error.code not in {"FILE_MISSING", "FILE_TOO_LARGE"}:
                raise
            return None
        return data if sha256_hex(data) == record.sha256 else None

    def _fetch(self, record: FileRecord, store: Store, key: str) -> bytes:
        partial = self._directory / "partial" / record.sha256
        with translated(partial):
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "r+b") as stream, translated(partial):
            if os.fstat(stream.fileno()).st_size > record.size_bytes:
                stream.truncate(0)
            resumed = stream.seek(0, os.SEEK_END)
            try:
                store.copy(key, stream, size_bytes=record.size_bytes)
            except RegistryError as error:
                if not resumed or error.code not in _NOT_RESUMABLE:
                    raise
                partial.unlink()
                return self._fetch(record, store, key)
            stream.flush()
            stream.seek(0)
            data = stream.read(record.size_bytes + 1)
            actual = hashlib.sha256(data).hexdigest()
            if actual != record.sha256:
                partial.unlink()
                if resumed:  # what lay there may be the culprit: once more from the beginning
                    return self._fetch(record, store, key)
                raise RegistryError(
                    "REGISTRY_DIGEST",
                    f"{key} is not what the signed pointer names",
                    key=key,
                    expected=record.sha256,
                    actual=actual,
                    bytes=len(data),
                )
            os.fchmod(stream.fileno(), 0o400)
            os.fsync(stream.fileno())
            partial.rename(self._directory / "blobs" / record.sha256)
            sync_directory(self._directory / "blobs")
        return data

    def pointer(self, channel: str, role: str) -> bytes | None:
        """A kept pointer.

        Args:
            channel: its name.
            role: `seen` (the highest epoch) or `served`.
        """
        try:
            return read_regular(self._channel_path(channel, f"{role}.json"), max_bytes=POINTER_MAX_BYTES)
        except FileError as error:
            if error.code != "FILE_MISSING":
                raise
            return None

    def keep_pointer(self, channel: str, role: str, envelope: bytes) -> None:
        """Keep a pointer, whole or not at all."""
        write_atomic(self._channel_path(channel, f"{role}.json"), envelope, mode=0o600)

    def channels(self) -> list[str]:
        """The channels this host has served."""
        paths = (self._directory / "channels").glob("*.served.json")
        return sorted(path.name.removesuffix(".served.json") for path in paths)

    def _channel_path(self, channel: str, suffix: str) -> Path:
        return self._directory / "channels" / safe_relative(f"{checked_name(channel)}.{suffix}")

    def collect(self, keep: frozenset[str]) -> list[str]:
        """Remove every blob and interrupted transfer whose digest is not in `keep`; return the removed digests."""
        removed = set()
        for folder in ("blobs", "partial"):
            for path in sorted((self._directory / folder).iterdir()):
                if path.name not in keep:
                    with locked(self._directory / "locks" / path.name[:2]):
                        path.unlink(missing_ok=True)
                    removed.add(path.name)
        return sorted(removed)

    def collect_unused(self, *, now_s: float) -> list[str]:
        """Remove what no kept pointer names and nobody touched for a day; return the digests."""
        keep: set[str] = set()
        for path in (self._directory / "channels").glob("*.json"):
            with contextlib.suppress(ApplianceError):
                statement, _ = split(read_regular(path, max_bytes=POINTER_MAX_BYTES))
                value = documents.read_json(statement, what="kept pointer")  # only decides what stays
                target = value.get("target") if isinstance(value, dict) else None
                keep |= {record["sha256"] for record in (target or {}).get("files", {}).values()}
        for folder in ("blobs", "partial"):
            for path in (self._directory / folder).iterdir():
                with contextlib.suppress(FileNotFoundError):  # another worker tidies too, or has just fetched it
                    keep |= {path.name} if now_s - path.stat().st_mtime < GRACE_S else set()
        return self.collect(frozenset(keep))

    def contact(self, channel: str) -> datetime | None:
        """When the registry last answered for this channel with a sound pointer, as far as is known."""
        try:
            text = read_regular(self._channel_path(channel, "contact"), max_bytes=64)
            return datetime.fromisoformat(text.decode("ascii"))
        except (FileError, ValueError):
            return None

    def keep_contact(self, channel: str, at: datetime) -> None:
        """Remember that the registry answered."""
        write_atomic(self._channel_path(channel, "contact"), at.isoformat().encode("ascii"), mode=0o600)
