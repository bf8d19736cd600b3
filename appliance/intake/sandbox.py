"""The border's side of the confined worker: start it with nothing, feed it bytes, believe none of what it says.

Two walls: bubblewrap, where it works, gives the worker its own namespaces (no network, no other process, a read-only
root, an empty /tmp); inside, `confine` takes the rest. The inner wall is required, the outer one is recorded.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import appliance
from appliance import documents
from appliance.errors import ApplianceError, ArtifactError, DocumentError, IntakeError, RouterError
from appliance.intake import frames

MAX_ANSWER_BYTES = 1024**3
_TEMPORARY = Path("/tmp")  # noqa: S108 (made empty)
_CHUNK = 256 * 1024  # bytes
WORKER_CODES: dict[str, type[ApplianceError]] = {
    **dict.fromkeys(
        ("INTAKE_CONVERSION", "INTAKE_DIMENSIONS", "INTAKE_PICKLE_FORM", "INTAKE_PICKLE_IMPORT"), IntakeError
    ),
    **dict.fromkeys(("INTAKE_SANDBOX",), IntakeError),
    **dict.fromkeys(("ARTIFACT_METADATA", "ARTIFACT_MISSING", "ARTIFACT_VERSION"), ArtifactError),
    **dict.fromkeys(("ROUTER_NETWORK", "ROUTER_PARAMETERS", "ROUTER_SCORES", "ROUTER_STRATEGY"), RouterError),
    **dict.fromkeys(
        ("ROUTER_WEIGHTS", "ROUTER_INPUT", "ROUTER_ENCODER", "ROUTER_MODEL", "ROUTER_MODEL_IMPORT"), RouterError
    ),
}


@dataclass(frozen=True)
class Limits:
    """What a conversion may use.

    Attributes:
        wall_seconds: from start to answer, imports included.
        cpu_seconds: once confined.
        memory_bytes: once confined, beside what the libraries took.
    """

    wall_seconds: float = 180.0
    cpu_seconds: int = 60
    memory_bytes: int = 3 * 1024**3


@dataclass(frozen=True)
class Answer:
    """What the worker said.

    Attributes:
        report: its JSON.
        parts: its other frames.
        walls: the walls that stood: `landlock-7`, `seccomp`, `bubblewrap`.
    """

    report: dict[str, Any]
    parts: list[bytes]
    walls: tuple[str, ...]


def run(job: Sequence[bytes], *, limits: Limits) -> Answer:
    """Run one job in a confined worker.

    Args:
        job: frames, the first one JSON (see `worker`).
        limits: what it may use.

    Raises:
        IntakeError: INTAKE_CONVERSION_KILLED, INTAKE_SANDBOX, or the worker's own refusal.
    """
    outer = _bubblewrap()
    command = [*(outer or ()), sys.executable, "-I", "-B", "-W", "ignore", "-m", "appliance.intake.worker"]
    command += [str(limits.memory_bytes), str(limits.cpu_seconds)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
        close_fds=True,
    )
    try:
        said = _converse(process, frames.pack(job), wall_seconds=limits.wall_seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _check_end(process.returncode)
    return _answer(said, ("bubblewrap",) if outer else ())


def _converse(process: subprocess.Popen[bytes], job: bytes, *, wall_seconds: float) -> bytes:
    """Hand over the job and hear the answer, no longer and no more than allowed.

    `communicate` would keep whatever comes: a worker that was taken over would fill this process's memory instead.
    """
    assert process.stdin is not None  # noqa: S101 (both are pipes)
    assert process.stdout is not None  # noqa: S101
    late = IntakeError("INTAKE_CONVERSION_KILLED", "the conversion took too long", wall_seconds=wall_seconds)
    ends, said, left = time.monotonic() + wall_seconds, bytearray(), memoryview(job)
    os.set_blocking(process.stdin.fileno(), False)
    with process.stdin as asking, process.stdout as answer, selectors.DefaultSelector() as ready:
        ready.register(asking, selectors.EVENT_WRITE)
        ready.register(answer, selectors.EVENT_READ)
        while ready.get_map():
            found = ready.select(max(0.0, ends - time.monotonic()))
            if not found:
                raise late
            if any(key.fileobj is asking for key, _ in found):
                with contextlib.suppress(BlockingIOError):
                    left = left[_some(asking.fileno(), left) :]
                if not left:
                    ready.unregister(asking)
                    asking.close()
            if any(key.fileobj is answer for key, _ in found):
                chunk = os.read(answer.fileno(), _CHUNK)
                said += chunk
                if not chunk:
                    ready.unregister(answer)
                if len(said) > MAX_ANSWER_BYTES:
                    raise IntakeError("INTAKE_CONVERSION_KILLED", "the answer does not end", max_bytes=MAX_ANSWER_BYTES)
    try:
        process.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise late from None
    return bytes(said)


def _some(descriptor: int, job: memoryview) -> int:
    """Write what the pipe takes; a worker that has stopped listening is told nothing more."""
    try:
        return os.write(descriptor, job[:_CHUNK])
    except BrokenPipeError:
        return len(job)


_ENVIRONMENT = {
    "PATH": "/nonexistent",
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "TOKENIZERS_PARALLELISM": "false",
    # one thread each: the confined worker can start none
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
}


@cache
def _bubblewrap() -> tuple[str, ...] | None:
    """The outer wall's command, or None where it does not work here."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    alone = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    sees = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", str(_TEMPORARY))
    itself = [word for folder in _under(_TEMPORARY) for word in ("--ro-bind", folder, folder)]
    wall = (program, *alone, *sees, *itself, "--chdir", "/", "--")
    tried = subprocess.run([*wall, "/bin/true"], capture_output=True, check=False, env=_ENVIRONMENT)
    return wall if tried.returncode == 0 else None


def _under(folder: Path) -> list[str]:
    """Where Python and this package lie, as far as they lie below `folder` (a trial in /tmp hides them else)."""
    own = {Path(sys.prefix), Path(sys.base_prefix), Path(appliance.__file__).parent}
    return sorted(str(place) for place in own | {place.resolve() for place in own} if folder in place.parents)


def _check_end(code: int) -> None:
    if code == 0:
        return
    number = -code if code < 0 else code - 128  # bubblewrap reports a signal as a shell does
    name = signal.Signals(number).name if number in {one.value for one in signal.Signals} else ""
    cause = {
        "SIGSYS": "the conversion tried a forbidden system call",
        "SIGKILL": "the conversion used up its processor time",
        "SIGXCPU": "the conversion used up its processor time",
        "SIGSEGV": "the conversion crashed",
        "SIGABRT": "the conversion crashed",
    }.get(name, f"the conversion ended with status {code}")
    raise IntakeError("INTAKE_CONVERSION_KILLED", cause, status=code, signal=name)


def _answer(said: bytes, outer: tuple[str, ...]) -> Answer:
    """The worker may have been taken over: its answer is read like a stranger's."""
    unreadable = IntakeError("INTAKE_CONVERSION_KILLED", "the conversion gave no readable answer")
    if len(said) > MAX_ANSWER_BYTES:
        raise unreadable
    try:
        first, *parts = frames.unpack(said)
        report = documents.read_json(first, what="the worker's report")
    except (ValueError, DocumentError):
        raise unreadable from None
    if not isinstance(report, dict):
        raise unreadable
    refused = report.get("refused")
    if refused is not None:
        code = refused if isinstance(refused, str) and refused in WORKER_CODES else "INTAKE_CONVERSION"
        raise WORKER_CODES[code](code, str(report.get("cause", "no reason given"))[:500])
    inner = report.pop("walls", [])
    walls = tuple(str(wall)[:40] for wall in inner) if isinstance(inner, list) else ()
    return Answer(report, parts, (*walls, *outer))
