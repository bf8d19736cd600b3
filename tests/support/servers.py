"""Real servers for tests: on free loopback ports, not as root, stopped by their own process id."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

SERVICE_USER = "nobody"
START_LIMIT_S = 300.0  # after which a server has hung; none takes a tenth of it, on a crowded machine neither


@contextlib.contextmanager
def service_directory() -> Iterator[Path]:
    """A directory that the service's user owns and can reach (pytest's own are closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="appliance-test-"))
    give_to_service(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def give_to_service(*paths: Path) -> None:
    """Make the service's user the owner, where we are root."""
    if _may_drop_root():
        entry = pwd.getpwnam(SERVICE_USER)
        for path in paths:
            os.chown(path, entry.pw_uid, entry.pw_gid)


def write_for_service(path: Path, data: bytes | str, mode: int = 0o600) -> Path:
    """Write a file that the service's user owns."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)
    give_to_service(path)
    return path


def as_service(program: str | Path) -> dict[str, object]:
    """The arguments of `subprocess` that drop root, where we are root and the service's user can reach the program."""
    if not _may_drop_root() or not _reachable(Path(shutil.which(program) or program)):
        return {}
    return {"user": SERVICE_USER, "group": pwd.getpwnam(SERVICE_USER).pw_gid, "extra_groups": []}


def _may_drop_root() -> bool:
    """Whether we are root over other users too (in a user namespace of one user, root has nobody to become)."""
    mapped = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return os.geteuid() == 0 and mapped > 1


def _reachable(program: Path) -> bool:
    """Whether everybody may walk to a program (an interpreter in root's home is nobody else's)."""
    real = program.resolve()
    return all(folder.stat().st_mode & 0o001 for path in (program.absolute(), real) for folder in path.parents)


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], *, directory: Path, log: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as the service's user; stop it, and whatever it started, at the end."""
    with open(directory / log, "ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory), **(environment or {})},
            start_new_session=True,
            **as_service(command[0]),  # type: ignore[call-overload]
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], *, seconds: float = 60.0) -> None:
    """End a server and its session: first politely, then surely."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until(
    ready: Callable[[], bool],
    *,
    what: str,
    seconds: float = START_LIMIT_S,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> None:
    """Poll until `ready`; a server that never is, or that died, is a failure and shows its log."""
    deadline = time.monotonic() + seconds
    while not ready():
        dead = process is not None and process.poll() is not None
        if dead or time.monotonic() > deadline:
            tail = log.read_text("utf-8", "replace")[-3000:] if log is not None and log.exists() else ""
            raise AssertionError(f"{what} {'died' if dead else f'is not ready after {seconds} s'}\n{tail}")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
