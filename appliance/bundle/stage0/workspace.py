"""Private folders for the time of a block, of which a killed process leaves none behind for good.

A signal that cannot be caught keeps everybody from tidying up. So each folder is locked by its owner as long as it is
in use, and whoever makes the next one removes those that nobody holds any more; the kernel frees a dead owner's lock.
"""

from __future__ import annotations

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
