"""Run a function in a forked child, to be killed there; without the cost of starting Python anew."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from appliance.errors import ApplianceError

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


def run(action: Callable[[], object]) -> str:
    """Fork, act, and tell how it ended: `done`, `killed`, or the code of a refusal.

    Anything else that goes wrong in the child is an AssertionError here.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        outcome = "broken"
        try:
            action()
            outcome = "done"
        except ApplianceError as error:
            outcome = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                os.write(writing, outcome.encode())
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
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
