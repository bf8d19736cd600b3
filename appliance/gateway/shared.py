"""A small record that the workers of a host change together, and that outlives them: a file, a lock, one JSON object.

Read and written in place with `pread` and `pwrite`, never mapped: on a full disk a mapped page kills the process, a
write merely fails. Where the file cannot be used, each worker goes on with a record of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("appliance.shared")
SIZE = 1024  # bytes


class Record:
    """A record; without a path it is this process's alone.

    Args:
        path: of the file; made where it is missing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._own, self._lock = path, "{}", threading.Lock()
        self._descriptor: int | None = None

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """The record, nobody else's until the block ends; what was changed in it is kept."""
        with self._lock, self._held() as descriptor:
            before = self._read(descriptor)
            value = _parsed(before)
            yield value
            after = json.dumps(value, separators=(",", ":"))
            if after != before:
                self._write(descriptor, after)

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        descriptor = self._open()
        if descriptor is None:
            yield None
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _open(self) -> int | None:
        # opened in the process that uses it: a descriptor from before a fork would share its lock
        if self._descriptor is None and self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = os.open(self._path, flags, 0o640)
                os.posix_fallocate(self._descriptor, 0, SIZE)
            except OSError as error:
                log.warning("workers do not share %s: %s", self._path.name, error.strerror)
                self._path = None
        return self._descriptor if self._path is not None else None

    def _read(self, descriptor: int | None) -> str:
        if descriptor is None:
            return self._own
        return os.pread(descriptor, SIZE, 0).decode("utf-8", "replace").rstrip(" \0\n")

    def _write(self, descriptor: int | None, text: str) -> None:
        self._own = text
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, text.encode().ljust(SIZE)[:SIZE], 0)


def _parsed(text: str) -> dict[str, Any]:
    """What a record holds; nothing where it was never written, or was cut by a power failure."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
