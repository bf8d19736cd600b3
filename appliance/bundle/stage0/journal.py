"""What an installation under a prefix has reached, written down before and after every step.

The journal is one small document, replaced whole (`transaction.json`), and a history that only grows
(`activations.jsonl`). The truth about which release runs is one symbolic link, `PREFIX/current`, replaced by `rename`:
at any moment it names the old release or the new one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from .refusal import Refused, space_refusals

STEPS = ("begun", "staged", "environment", "verified", "healthy", "activated", "confirmed")
REMOVED_AT_ONCE = 16  # folders
# the release's files may still be on their way to the disk; those of `staged` are hashed again whoever takes it up
NOT_YET_DURABLE = ("environment", "verified")


@dataclass(frozen=True)
class Transaction:
    """An installation that was begun.

    Attributes:
        release: folder name of the release.
        digest: the manifest's SHA-256.
        step: the last of `STEPS` that is complete.
        previous: release that ran when it was begun, or None.
        boot: the boot of this host in which the step was reached; what was not yet durable is lost with it.
    """

    release: str
    digest: str
    step: str
    previous: str | None
    boot: str


def current_boot(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Name of this boot; the empty word where the kernel does not tell, which then counts as the same boot."""
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


class Prefix:
    """The folders of an installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.releases = root / "releases"
        self.current = root / "current"
        self.configuration = root / "etc"
        self.state = root / "state"
        self.journal = root / "state" / "install"

    def release(self, release_id: str) -> Path:
        """Folder of one release."""
        return self.releases / release_id

    def payload(self, release_id: str) -> Path:
        """Its extracted members."""
        return self.release(release_id) / "payload"

    def environment(self, release_id: str) -> Path:
        """Its Python environment."""
        return self.release(release_id) / "env"

    def active(self) -> str | None:
        """Name of the release that `current` points to."""
        try:
            return self.current.readlink().name
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refused("INSTALL_PREFIX", f"{self.current} is not the appliance's link: {error.strerror}") from None

    def create(self) -> None:
        """Make the folders that are missing.

        Raises:
            Refused: INSTALL_PERMISSION, INSTALL_NO_SPACE, INSTALL_PREFIX.
        """
        with space_refusals(f"creating {self.root}"):
            try:
                for folder in (self.releases, self.configuration, self.journal):
                    folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise Refused("INSTALL_PREFIX", f"{error.filename} is in the way", path=str(error.filename)) from None

    @contextlib.contextmanager
    def locked(self, inherited: int | None = None) -> Iterator[int]:
        """Keep every other installation under this prefix out; a killed holder frees the lock.

        Args:
            inherited: descriptor of the lock that the calling process (stage 0) holds already.

        Returns:
            The lock's descriptor.

        Raises:
            Refused: INSTALL_LOCKED.
        """
        self.create()
        path = self.journal / "lock"
        with space_refusals(f"locking {self.root}"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if inherited is not None and os.path.sameopenfile(inherited, descriptor):
                os.close(descriptor)
                descriptor = inherited  # the same open file: locking it again is no conflict
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("INSTALL_LOCKED", "another installation is at work here", lock=str(path)) from None
            yield descriptor
        finally:
            os.close(descriptor)

    def transaction(self) -> Transaction | None:
        """The installation that was begun and not finished, or None."""
        try:
            document = json.loads((self.journal / "transaction.json").read_text("utf-8"))
            transaction = Transaction(**document)
            if transaction.step not in STEPS:
                raise ValueError(transaction.step)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise Refused(
                "INSTALL_JOURNAL", "the installation journal is unreadable", path=str(self.journal / "transaction.json")
            ) from None
        return transaction

    def record(self, transaction: Transaction) -> None:
        """Write down a step, durably."""
        self.write(self.journal / "transaction.json", json.dumps(asdict(transaction), sort_keys=True) + "\n")

    def close(self) -> None:
        """Forget the transaction: it is finished or undone."""
        with contextlib.suppress(FileNotFoundError):
            (self.journal / "transaction.json").unlink()
        sync_folder(self.journal)

    def point_to(self, release_id: str, *, reason: str, now: dt.datetime) -> None:
        """Make a release the current one: the history first, then one rename."""
        entry = {"from": self.active(), "to": release_id, "reason": reason, "at": now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        with space_refusals("activating the release"):
            history = self.journal / "activations.jsonl"
            _mend_last_line(history)
            with history.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, sort_keys=True) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        self.switch(release_id)

    def switch(self, release_id: str) -> None:
        """The rename alone, without the history."""
        with space_refusals("activating the release"):
            temporary = self.root / ".current.new"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path("releases") / release_id)
            temporary.rename(self.current)
            sync_folder(self.root)

    def point_to_nothing(self) -> None:
        """Undo a first activation."""
        self.current.unlink(missing_ok=True)
        sync_folder(self.root)

    def activations(self) -> list[dict[str, str | None]]:
        """The history of `current`, oldest first; a line cut short by a power failure is left out."""
        entries = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.journal / "activations.jsonl").read_text("utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    entries.append(json.loads(line))
        return entries

    def previous(self) -> str | None:
        """The whole release that ran before the active one, by the history."""
        active = self.active()
        for entry in reversed(self.activations()):
            before = entry.get("from")
            if entry.get("to") == active and before and before != active:
                return before if (self.release(before) / "release.json").is_file() else None
        return None

    def write(self, path: Path, text: str) -> None:
        """Replace a small file whole."""
        temporary = path.with_name(f".{path.name}.new")
        with space_refusals(f"writing {path}"):
            try:
                with open(temporary, "w", encoding="utf-8") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def discard(self, release_id: str) -> None:
        """Remove a release that nothing points to: it stops being a release before its files go."""
        folder = self.release(release_id)
        (folder / "release.json").unlink(missing_ok=True)
        remove_tree(folder)


def remove_tree(root: Path) -> None:
    """Remove a folder and everything in it, as far as that is possible.

    Many folders at a time: where a disk discards what is freed (mount option `discard`), each of the thousands of files
    and folders of an environment waits for it, alone for more than a minute and together for seconds.
    """
    levels = [[] if root.is_symlink() else [str(root)]]
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        while levels[-1]:
            levels.append([path for folders in pool.map(_emptied, levels[-1]) for path in folders])
        for level in reversed(levels):
            list(pool.map(_removed, level))


def _emptied(folder: str) -> list[str]:
    """Remove what is no folder from a folder; returns the folders."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108 (tens of thousands of times)
    return folders


def _removed(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)  # noqa: PTH106


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend_last_line(path: Path) -> None:
    """End a line that a power failure cut short, so that the next entry stands on its own."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
