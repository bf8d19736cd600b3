"""Small folders, copied and made durable whole."""

from __future__ import annotations

import os
from pathlib import Path


def copy_tree(source: Path, target: Path) -> None:
    """Copy files, folders and links.

    `shutil.copytree` would do, but hides the operating system's error (a full disk, say) in one of its own.

    Raises:
        OSError: as the system gave it.
    """
    target.mkdir()
    for entry in source.iterdir():
        copy = target / entry.name
        if entry.is_symlink():
            copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy_tree(entry, copy)
        else:
            copy.write_bytes(entry.read_bytes())


def sync_tree(folder: Path) -> None:
    """Make every file and folder below durable before the link moves."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def give_to_owner_of(reference: Path, folder: Path) -> None:
    """Give a folder that root has made to whom `reference` belongs; for everybody else there is nothing to give.

    From the bottom up and by descriptors: as soon as its new owner may write into a folder, nothing in it is touched.

    Raises:
        OSError: as the system gave it.
    """
    owner = reference.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False, follow_symlinks=False):
        for name in [*files, *folders]:
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=descriptor, follow_symlinks=False)
    os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)
