"""The border's side of the confined worker: a worker that was taken over says what it likes, for as long as it may."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import appliance
from appliance.errors import IntakeError
from appliance.intake import sandbox

JOB = bytes(range(256)) * 4096  # more than a pipe holds
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(*command: str) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return running[-1]

    yield begin
    for each in running:
        each.kill()
        each.wait()


def test_a_job_and_an_answer_longer_than_a_pipe_pass_at_the_same_time(start: Start) -> None:
    assert sandbox._converse(start("cat"), JOB, wall_seconds=60) == JOB


def test_a_worker_that_does_not_listen_is_heard_all_the_same(start: Start) -> None:
    worker = start("sh", "-c", "exec 0<&-; echo done")
    assert sandbox._converse(worker, JOB, wall_seconds=60) == b"done\n"


def test_an_answer_that_does_not_end_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_ANSWER_BYTES", 4 * 1024**2)
    begun = time.monotonic()
    with pytest.raises(IntakeError) as info:
        sandbox._converse(start("cat", "/dev/zero"), b"", wall_seconds=60)
    assert info.value.code == "INTAKE_CONVERSION_KILLED"
    assert info.value.evidence == {"max_bytes": 4 * 1024**2}
    assert time.monotonic() - begun < 50, "it was the length, not the time"


@pytest.mark.parametrize("command", ["sleep 60", "exec 1>&-; sleep 60", "exec 0<&-; exec 1>&-; sleep 60"])
def test_a_worker_that_says_nothing_is_not_waited_for(start: Start, command: str) -> None:
    with pytest.raises(IntakeError) as info:
        sandbox._converse(start("sh", "-c", command), JOB, wall_seconds=0.3)
    assert info.value.code == "INTAKE_CONVERSION_KILLED"
    assert info.value.evidence == {"wall_seconds": 0.3}


def test_the_outer_wall_hides_all_of_tmp_but_the_worker_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An appliance that lies in /tmp, as in a trial, called every model hostile: its worker could not even start."""
    package = Path(appliance.__file__).parent
    common = Path(os.path.commonpath([sys.prefix, package]))
    monkeypatch.setattr(sandbox, "_TEMPORARY", common)
    wall = sandbox._bubblewrap.__wrapped__()
    assert wall is not None
    look = f"import os, appliance.intake.frames; print(sorted(os.listdir({str(common)!r})))"
    seen = subprocess.run([*wall, sys.executable, "-I", "-c", look], capture_output=True, text=True, check=True).stdout
    assert seen == f"{sorted({Path(sys.prefix).relative_to(common).parts[0], package.relative_to(common).parts[0]})}\n"
