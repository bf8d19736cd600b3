"""Run a function in a forked child, to be killed there; without the cost of starting Python anew."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from appliance.bundle.stage0.refusal import Refused
from appliance.errors import ApplianceError

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_CHANGING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run(action: Callable[[], object]) -> str:
    """Fork, act, and tell how it ended: `done`, `killed`, or the code of a refusal.

    Anything else that goes wrong in the child is an AssertionError here.
    """
    return _ended(*_forked(action))


def run_together(actions: Iterable[Callable[[], object]]) -> list[str]:
    """`run`, all at the same time."""
    return [_ended(child, reading) for child, reading in [_forked(action) for action in actions]]


def _forked(action: Callable[[], object]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        outcome = "broken"
        try:
            action()
            outcome = "done"
        except (ApplianceError, Refused) as refusal:
            outcome = refusal.code
            traceback.print_exc()  # shown where the outcome was not the one expected
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                os.write(writing, outcome.encode())
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    return child, reading


def _ended(child: int, reading: int) -> str:
    with open(reading, "rb") as pipe:
        outcome = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    assert outcome not in ("", "broken"), "the child broke; its traceback is above"
    return outcome


def kill_at(number: int) -> Callable[[str], None]:
    """A checkpoint that kills its own process, as a power cut would, the n-th time it is reached (from 0)."""
    left = number

    def checkpoint(_name: str) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    return checkpoint


def on_small_disk(folder: Path, size_bytes: int, *, noexec: bool = False) -> None:
    """Give this process a file system of its own at a folder (in a child only: it stays until the process ends)."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC: nothing of it is seen outside
    if libc.mount(b"none", b"/", None, private, None):
        raise OSError(ctypes.get_errno(), "mount private")
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 8 if noexec else 0, b"size=%d" % size_bytes):
        raise OSError(ctypes.get_errno(), "mount tmpfs")


def fill(folder: Path) -> Path:
    """Leave no byte free on a file system; returns the filler."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while stream.write(bytes(size)) == size:
                    pass
    return filler


class Changes:
    """Act before every system call of this process that changes files below a folder.

    Python's audit events tell them (PEP 578), so that no hand-placed list can forget one. In a child only: an audit
    hook stays until the process ends.
    """

    def __init__(self, below: Path) -> None:
        self._inside = os.fspath(below).lstrip("/")
        self._act: Callable[[int], None] | None = None
        self._number = 0
        self._one_at_a_time = threading.RLock()  # a tree is removed by several threads
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watched(self, act: Callable[[int], None]) -> Iterator[None]:
        """Within the block `act` is called with 0 before the first change, with 1 before the second, and so on."""
        self._act, self._number = act, 0
        try:
            yield
        finally:
            self._act = None

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._act is None or not _changes(event, arguments):
            return
        path, folder = _place(event, arguments)
        if path.startswith("/"):
            place = path
        elif folder:
            place = f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
        else:
            place = self._inside  # `open` does not tell its folder: of relative names only the installer's are written
        if place.lstrip("/").startswith(self._inside):
            with self._one_at_a_time:
                self._act(self._number)
                self._number += 1


def _changes(event: str, arguments: tuple[object, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(arguments[0], str) and isinstance(flags, int) and bool(flags & _WRITING)
    return event in _CHANGING


def _place(event: str, arguments: tuple[object, ...]) -> tuple[str, int]:
    """Path and folder descriptor (0 where there is none) of what an event changes."""
    path, *more = arguments
    if event == "open":
        return str(path), 0
    if event in ("os.link", "os.symlink", "os.rename"):
        path, *more = more
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}"), 0
    folders = [value for value in more[-1:] if isinstance(value, int) and value > 2]
    return os.fspath(path), folders[0] if folders else 0  # type: ignore[call-overload]


def kill_before_change(below: Path, number: int, action: Callable[[], object]) -> str:
    """`run` an action, and kill it, as a power cut would, before its n-th change (from 0) of a file below a folder."""

    def act(reached: int) -> None:
        if reached == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def until_killed() -> None:
        with Changes(below).watched(act):
            action()

    return run(until_killed)
