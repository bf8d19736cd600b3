"""A registry in a directory: a shared volume, a mounted disk, or the target of `appliance sync`.

Every file is replaced whole (temporary file, fsync, rename). Links are followed nowhere below the root: whoever can
write to the volume cannot point a reader outside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from appliance.errors import FileError, RegistryError
from appliance.files import locked, translated, write_atomic
from appliance.registry.contract import Blob, Entry, checked_key

LOCK_NAME = ".registry.lock"
_CHUNK = 1024 * 1024  # bytes


class DirectoryStore:
    """A registry's home in a directory.

    Args:
        root: the directory; `put` makes what is missing below it, never the root itself.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        """The directory."""
        return str(self._root)

    def get(self, key: str, *, max_bytes: int, unless: str | None = None) -> Blob | None:
        """Read an object; see `Store.get`. The ETag is made of inode, size and modification time."""
        with self._open(key) as stream:
            status = os.fstat(stream.fileno())
            etag = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
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
            with translated(self._root):
                shutil.copyfileobj(stream, into, _CHUNK)

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        """Write an object; see `Store.put`. Writers of one volume take turns, so `only_if_absent` is exact."""
        path = self._root / checked_key(key)
        with _as_registry_errors(key), locked(self._root / LOCK_NAME):
            if only_if_absent and os.path.lexists(path):
                raise RegistryError("REGISTRY_EXISTS", f"{key} stands already", key=key)
            self._make_parents(path)
            write_atomic(path, data)
            status = path.stat(follow_symlinks=False)
        return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"

    def list(self, prefix: str) -> list[Entry]:
        """Every object below a prefix; see `Store.list`. Temporary files and links are not objects."""
        start = self._root / prefix if prefix.endswith("/") or not prefix else (self._root / prefix).parent
        found: list[Entry] = []
        with _as_registry_errors(prefix), translated(self._root):
            for folder, folders, names in os.walk(start, followlinks=False):
                folders.sort()
                for name in names:
                    path = Path(folder) / name
                    key = path.relative_to(self._root).as_posix()
                    if name.startswith(".") or not key.startswith(prefix):
                        continue
                    status = path.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append(Entry(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)))
        return sorted(found, key=lambda entry: entry.key)

    def delete(self, key: str) -> None:
        """Remove an object and the folders it leaves empty; see `Store.delete`."""
        path = self._root / checked_key(key)
        with _as_registry_errors(key), locked(self._root / LOCK_NAME), translated(path):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._root:
                    break
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def check_present(self) -> None:
        """Refuse a volume that is not there, before anything is fetched for it.

        Raises:
            RegistryError: REGISTRY_VOLUME.
        """
        if not self._root.is_dir():
            raise RegistryError("REGISTRY_VOLUME", f"{self._root} is no folder", path=str(self._root))

    def _make_parents(self, path: Path) -> None:
        for parent in reversed(path.relative_to(self._root).parents):
            with translated(path):
                folder = self._root / parent
                if folder != self._root:
                    folder.mkdir(exist_ok=True)
                if not stat.S_ISDIR(folder.stat(follow_symlinks=False).st_mode) and folder != self._root:
                    raise RegistryError("REGISTRY_DENIED", f"{folder} is not a folder", path=str(folder))

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[BinaryIO]:
        """Open an object for reading, part by part, following no link below the root."""
        *folders, name = checked_key(key).split("/")
        with _as_registry_errors(key), contextlib.ExitStack() as opened, translated(self._root / key):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            current = os.open(self._root, flags)
            opened.callback(os.close, current)
            for folder in folders:
                current = os.open(folder, flags | os.O_NOFOLLOW, dir_fd=current)
                opened.callback(os.close, current)
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=current)
            stream = opened.enter_context(open(descriptor, "rb"))
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RegistryError("REGISTRY_DENIED", f"{key} is not a regular file", key=key)
            yield stream


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
        raise RegistryError(code, error.cause, key=key, **error.evidence) from None
    except OSError as error:
        raise RegistryError("REGISTRY_UNREACHABLE", f"the volume failed: {error.strerror}", key=key) from error
