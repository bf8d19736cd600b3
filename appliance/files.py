"""Files the way the appliance needs them: read once without following links, replaced whole or not at all.

Everything that is verified is read through `read_regular` (or a descriptor opened the same way) and used from those
bytes; nothing is opened a second time by path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from appliance.errors import FileError

_RIVALS_AT_MOST = 32  # writers of one file at the same time; those of more may leave something for a later one
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}\Z")
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}


def safe_relative(name: str) -> str:
    """Accept a relative path whose every part travels between file systems; return it unchanged.

    Raises:
        FileError: FILE_UNSAFE_NAME for absolute paths, `..`, empty parts, control characters, backslashes, reserved
            names of other systems, or more than 1024 characters.
    """
    parts = name.split("/")
    bad = len(name) > 1024 or any(
        not _NAME.match(part) or part.endswith(".") or part.split(".")[0].lower() in _RESERVED
        if not part.startswith(".")
        else not _NAME.match(part[1:])
        for part in parts
    )
    if bad:
        raise FileError("FILE_UNSAFE_NAME", f"unsafe name {name[:120]!r}", name=name[:1024])
    return name


def read_regular(path: Path | str, *, max_bytes: int, dir_fd: int | None = None) -> bytes:
    """Read a regular file in one go, never through a link at its last part.

    Args:
        path: the file, relative to `dir_fd` where that is given.
        max_bytes: refuse anything longer.
        dir_fd: an open directory below which the path is resolved.

    Raises:
        FileError: FILE_MISSING, FILE_NOT_REGULAR, FILE_TOO_LARGE, FILE_PERMISSION.
    """
    with translated(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # before `open`, which leaves a folder's descriptor behind
            os.close(descriptor)
            raise FileError("FILE_NOT_REGULAR", f"{path} is not a regular file", path=str(path))
        with open(descriptor, "rb") as stream:
            told = min(status.st_size, max_bytes)
            data = stream.read(told + 1) if status.st_size <= max_bytes else b""
            if len(data) > told:  # it grew, or lies in /proc, whose files tell no size
                data += stream.read(max_bytes + 1 - len(data))
    if max(len(data), status.st_size) > max_bytes:
        raise FileError(
            "FILE_TOO_LARGE", f"{path} is larger than {max_bytes} bytes", path=str(path), max_bytes=max_bytes
        )
    return data


def read_tree(directory: Path, *, max_files: int, max_bytes: int) -> dict[str, bytes]:
    """Read every regular file below a directory, once: relative name -> bytes. Links and special files are refused.

    Args:
        max_files: at most so many files.
        max_bytes: at most so many bytes together.

    Raises:
        FileError: FILE_MISSING, FILE_NOT_REGULAR, FILE_TOO_LARGE, FILE_UNSAFE_NAME, FILE_PERMISSION.
    """
    found: dict[str, bytes] = {}
    left = max_bytes

    def visit(parent_fd: int, prefix: str) -> None:
        nonlocal left
        for name in sorted(os.listdir(parent_fd)):
            relative = safe_relative(f"{prefix}{name}")
            if stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
                try:
                    visit(child, f"{relative}/")
                finally:
                    os.close(child)
                continue
            if len(found) >= max_files:
                raise FileError("FILE_TOO_LARGE", f"{directory} holds more than {max_files} files", path=str(directory))
            found[relative] = read_regular(name, max_bytes=left, dir_fd=parent_fd)
            left -= len(found[relative])

    with translated(directory):
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            visit(root, "")
        finally:
            os.close(root)
    return found


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file whole; see `replaced`."""
    with replaced(path, mode=mode) as stream:
        stream.write(data)


@contextlib.contextmanager
def replaced(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Replace a file by what is written into the stream: temporary file beside it, fsync, rename, fsync of the folder.

    A kill leaves old or new, and a temporary file that the next replacement of the same file removes; an exception
    leaves the old. Of several at once, each writes its own, and the last to end wins.

    Raises:
        FileError: FILE_NO_SPACE, FILE_PERMISSION, FILE_MISSING (the folder); FILE_NOT_REGULAR for a device, a pipe, a
            folder, or a link to one: root would put a file in the place of /dev/stdout.
    """
    with translated(path):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise FileError("FILE_NOT_REGULAR", f"{path} is no file that could be replaced", path=str(path))
        temporary, descriptor = _temporary_beside(path, mode)
        held = os.dup(descriptor)  # the lock ends with the last descriptor, after the file has its name or is gone
        try:
            with open(descriptor, "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(held)
        sync_directory(path.parent)


def _temporary_beside(path: Path, mode: int) -> tuple[Path, int]:
    """A new temporary file, locked as long as its writer lives; those of killed writers are removed on the way.

    The first free number names it, so that leftovers are found without listing the folder; who was killed among rivals
    left one with gaps before it. One that is locked has a living writer, one that is another user's or no regular file
    is not ours: both are passed over.
    """
    for number in itertools.count():
        temporary = path.with_name(f".{path.name}.{number}.tmp")
        while True:
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(
                    temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
                )
                if _lock_of(temporary, descriptor) is not False:
                    for later in range(number + 1, number + _RIVALS_AT_MOST):
                        _remove_leftover(path.with_name(f".{path.name}.{later}.tmp"))
                    return temporary, descriptor
                os.close(descriptor)  # somebody took it for a leftover in the moment before it was locked
                continue
            if not _remove_leftover(temporary):
                break
    raise AssertionError


def _remove_leftover(temporary: Path) -> bool:
    """Remove what a killed writer left under this name; whether the name is free now."""
    if not os.path.lexists(temporary):
        return True
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            return False
        if _lock_of(temporary, descriptor):
            temporary.unlink()
            return True
        return not temporary.exists()
    finally:
        os.close(descriptor)


def _lock_of(path: Path, descriptor: int) -> bool | None:
    """Lock an open file, if nobody else has and it still is the one of that name; None where files have no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def require_room(folder: Path, needed_bytes: int, *, what: str, remedy: str | None = None) -> None:
    """Refuse before the first byte what would not fit.

    Args:
        folder: where it will be written; must be there.
        needed_bytes: what it takes.
        what: begins the sentence, in the plural: `3 volumes`.
        remedy: where this place knows better than the catalogue.

    Raises:
        FileError: FILE_NO_SPACE.
    """
    with translated(folder):
        free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise FileError(
            "FILE_NO_SPACE",
            f"{what} need {needed_bytes / 1e6:.0f} MB, {folder} has {free / 1e6:.0f} MB free",
            path=str(folder),
            needed_bytes=needed_bytes,
            free_bytes=free,
            remedy=remedy,
        )


def sync_directory(path: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes, lower-case hex."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a lock file (kernel-held: a killed holder frees it).

    Raises:
        FileError: FILE_LOCKED where `wait` is false and another process holds it.
    """
    with translated(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise FileError("FILE_LOCKED", f"another process holds {path}", path=str(path)) from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn the operating system's refusals about `path` into `FileError`s."""
    try:
        yield
    except OSError as error:
        code = {
            errno.ENOENT: "FILE_MISSING",
            errno.ENOTDIR: "FILE_MISSING",
            errno.ELOOP: "FILE_NOT_REGULAR",
            errno.ENXIO: "FILE_NOT_REGULAR",
            errno.EISDIR: "FILE_NOT_REGULAR",
            errno.ENOSPC: "FILE_NO_SPACE",
            errno.EDQUOT: "FILE_NO_SPACE",
            errno.EFBIG: "FILE_NO_SPACE",
            errno.EEXIST: "FILE_EXISTS",
            errno.EACCES: "FILE_PERMISSION",
            errno.EPERM: "FILE_PERMISSION",
            errno.EROFS: "FILE_PERMISSION",
        }.get(error.errno or 0)
        if code is None:
            raise
        where = error.filename if error.filename is not None else path
        raise FileError(code, f"{where}: {error.strerror}", path=str(where)) from error
