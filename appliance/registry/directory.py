"""A registry in a directory: a shared volume, a mounted disk, or the target of `appliance sync`.

Every file is replaced whole (temporary file, fsync, rename). Links are followed nowhere below the root, and nothing is
looked up by path twice: whoever can write to the volume cannot point a reader or a writer outside it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from appliance.errors import FileError, RegistryError
from appliance.files import locked, translated, write_atomic
from appliance.registry.contract import Blob, Entry, KeyRule, checked_key, foreign_key

LOCK_NAME = ".registry.lock"
_CHUNK = 1024 * 1024  # bytes
_DESCRIPTORS = "/proc/self/fd"  # proc_pid_fd(5): a path that begins at an open folder


class DirectoryStore:
    """A registry's home in a directory.

    Args:
        root: the directory; `put` makes what is missing below it, never the root itself.
        keys: which keys may be read: a registry's own, or those of whoever fills it (`foreign_key`).
    """

    def __init__(self, root: Path, *, keys: KeyRule = checked_key) -> None:
        self._root = root
        self._checked = keys

    @property
    def location(self) -> str:
        """The directory."""
        return str(self._root)

    def get(self, key: str, *, max_bytes: int, unless: str | None = None) -> Blob | None:
        """Read an object; see `Store.get`. The ETag is made of inode, size and modification time."""
        with self._open(key) as stream:
            etag = _etag(os.fstat(stream.fileno()))
            if etag == unless:
                return None
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise RegistryError("REGISTRY_TOO_LARGE", f"{key} is larger than allowed", key=key, max_bytes=max_bytes)
        return Blob(data, etag)

    def copy(self, key: str, into: BinaryIO, *, size_bytes: int) -> None:
        """Append the rest of an object; see `Store.copy`."""
        with self._open(key) as stream:
            actual = os.fstat(stream.fileno()).st_size
            if actual != size_bytes:
                code = "REGISTRY_TOO_LARGE" if actual > size_bytes else "REGISTRY_INCOMPLETE"
                raise RegistryError(code, f"{key} has another length", key=key, bytes=actual, expected_bytes=size_bytes)
            stream.seek(into.tell())
            left = size_bytes - into.tell()  # a file that grows while it is read does not decide how much
            with translated(self._root):
                while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
                    left -= into.write(chunk)
            if left > 0:
                raise RegistryError("REGISTRY_INCOMPLETE", f"{key} became shorter", key=key, missing_bytes=left)

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        """Write an object; see `Store.put`. Writers of one volume take turns, so `only_if_absent` is exact."""
        *folders, name = checked_key(key).split("/")
        with _as_registry_errors(key), locked(self._root / LOCK_NAME), self._opened(folders, make=True) as [*_, folder]:
            if only_if_absent and _stands(name, folder):
                raise RegistryError("REGISTRY_EXISTS", f"{key} stands already", key=key)
            write_atomic(Path(f"{_DESCRIPTORS}/{folder}/{name}"), data)  # by descriptor, not by a path that may change
            return _etag(os.stat(name, dir_fd=folder, follow_symlinks=False))

    def list(self, prefix: str) -> list[Entry]:
        """Every object below a prefix; see `Store.list`. Temporary files and links are not objects."""
        folders = prefix.split("/")[:-1]
        begin, found = "".join(f"{each}/" for each in folders), []
        try:
            with _as_registry_errors(prefix), self._opened(folders) as [*_, start]:
                for folder, _, names, descriptor in os.fwalk(dir_fd=start):
                    for name in names:
                        key = begin + f"{folder}/{name}".removeprefix("./")
                        if name.startswith(".") or not key.startswith(prefix):
                            continue
                        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found.append(Entry(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)))
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND" or not self._root.is_dir():
                raise
        return sorted(found, key=lambda entry: entry.key)

    def pages(self, prefix: str) -> Iterator[Sequence[Entry]]:
        """Every object below a prefix, in one page; see `Objects.pages`."""
        yield self.list(prefix and foreign_key(prefix))

    def delete(self, key: str) -> None:
        """Remove an object and the folders it leaves empty; see `Store.delete`."""
        *folders, name = checked_key(key).split("/")
        try:
            with _as_registry_errors(key), locked(self._root / LOCK_NAME), self._opened(folders) as opened:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=opened[-1])
                for folder, parent in zip(reversed(folders), reversed(opened[:-1]), strict=True):
                    with contextlib.suppress(OSError):
                        os.rmdir(folder, dir_fd=parent)
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND":
                raise

    def check_present(self) -> None:
        """Refuse a volume that is not there, before anything is fetched for it.

        Raises:
            RegistryError: REGISTRY_VOLUME.
        """
        if not self._root.is_dir():
            raise RegistryError("REGISTRY_VOLUME", f"{self._root} is no folder", path=str(self._root))

    @contextlib.contextmanager
    def _opened(self, folders: Sequence[str], *, make: bool = False) -> Iterator[Sequence[int]]:
        """Descriptors of the root and of each folder below it, one by one, following no link."""
        with contextlib.ExitStack() as opened, translated(self._root.joinpath(*folders)):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            descriptors = [os.open(self._root, flags)]
            opened.callback(os.close, descriptors[0])
            for folder in folders:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder, dir_fd=descriptors[-1])
                descriptors.append(os.open(folder, flags | os.O_NOFOLLOW, dir_fd=descriptors[-1]))
                opened.callback(os.close, descriptors[-1])
            yield descriptors

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        """Open an object for reading."""
        *folders, name = self._checked(key).split("/")
        with _as_registry_errors(key), self._opened(folders) as [*_, folder], translated(self._root / key):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
            with open(descriptor, "rb") as stream:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise RegistryError("REGISTRY_DENIED", f"{key} is not a regular file", key=key)
                yield stream


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def _stands(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _as_registry_errors(key: str) -> Iterator[None]:
    """Give the file system's refusals the contract's codes."""
    try:
        yield
    except FileError as error:
        code = {
            "FILE_MISSING": "REGISTRY_NOT_FOUND",
            "FILE_NO_SPACE": "REGISTRY_NO_SPACE",
        }.get(error.code, "REGISTRY_DENIED")
        cause = f"{key}: {error.cause.rpartition(': ')[2]}" if error.cause.startswith(_DESCRIPTORS) else error.cause
        raise RegistryError(code, cause, **{**error.evidence, "key": key}) from None
    except OSError as error:
        raise RegistryError("REGISTRY_UNREACHABLE", f"the volume failed: {error.strerror}", key=key) from error
