"""Killed, or out of space, before every single change of a file: the old release or the new one, never neither.

The changes are not listed by hand: Python's audit events enumerate them while an installation runs. The releases are
genuine and tiny, so that hundreds of installations take seconds; `test_interrupted_installs` breaks real ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bundle.releases import installed_releases, rollback
from appliance.bundle.stage0.journal import Prefix
from tests.support import children, tiny
from tests.support.tiny import bring, running
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow

DISK_BYTES = 24 * 1024 * 1024


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """In memory where there is room: what is tested is the order of changes, not the disk's speed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def authority(work):
    return make_authority(work / "ca")


@pytest.fixture(scope="module")
def old(work, authority):
    return tiny.release(work / "old", authority, "1.0.0", epoch=1)


@pytest.fixture(scope="module")
def new(work, authority):
    return tiny.release(work / "new", authority, "1.1.0", epoch=2)


@pytest.fixture(scope="module")
def host(work, old) -> Path:
    """A prefix on which the old release runs."""
    bring(old, work / "host")
    return work / "host"


def start(place: Path, host: Path | None) -> Path:
    """A host before the installation: with the old release, or with nothing."""
    if host is not None:
        shutil.copytree(host, place, symlinks=True)
    return place


def before_every_change(attempt: Callable[[int], str]) -> list[str]:
    """What became of an installation broken before its first change, its second, and so on to the last."""
    outcomes: list[str] = []
    while "done" not in outcomes[-1:]:
        outcomes.append(attempt(len(outcomes)))
    return outcomes


@pytest.mark.parametrize("upgrade", [False, True], ids=["first", "upgrade"])
def test_killed_before_any_change_of_a_file_it_is_old_or_new_and_is_taken_up_again(work, host, old, new, upgrade):
    ids = (old.built.manifest.release_id if upgrade else None, new.built.manifest.release_id)
    seen = set()

    def attempt(number: int) -> str:
        prefix = start(work / "killed", host if upgrade else None)
        try:
            outcome = children.run(lambda: (children.kill_before_change(prefix, number), bring(new, prefix)))
            left = running(prefix)
            assert left in ids, number
            seen.add(left)
            if outcome == "killed":
                assert bring(new, prefix).outcome in ("installed", "already installed"), number
            assert Prefix(prefix).active() == ids[1], number
            assert Prefix(prefix).transaction() is None
            assert {release.id for release in installed_releases(Prefix(prefix))} == {*ids} - {None}
            assert not list(prefix.rglob(".*.new")), number
            return outcome
        finally:
            shutil.rmtree(prefix)

    outcomes = before_every_change(attempt)
    assert len(outcomes) > 60
    assert set(outcomes[:-1]) == {"killed"}
    assert seen == set(ids), "the changes reach from the old state to the new one"


@pytest.mark.parametrize("upgrade", [False, True], ids=["first", "upgrade"])
def test_out_of_space_before_any_change_of_a_file_it_is_old_or_new_and_goes_on_with_space(
    work, host, old, new, upgrade
):
    ids = (old.built.manifest.release_id if upgrade else None, new.built.manifest.release_id)
    disk = work / f"disk-{upgrade}"
    disk.mkdir()

    def scenario(number: int) -> None:
        children.on_small_disk(disk, DISK_BYTES)
        prefix = start(disk / "prefix", host if upgrade else None)
        reached = False

        def fill(at: int) -> None:
            nonlocal reached
            if at == number:
                reached = True
                children.fill(disk)

        children.before_changes(prefix, fill)
        refusal = None
        try:
            bring(new, prefix)
        except Exception as error:
            refusal = error
        assert running(prefix) in ids
        (disk / "filler").unlink(missing_ok=True)
        assert bring(new, prefix).outcome in ("installed", "already installed")
        assert running(prefix) == ids[1]
        if refusal is not None:
            raise refusal
        if reached:
            raise _EndedWell

    outcomes = before_every_change(lambda number: _outcome(lambda: scenario(number)))
    assert len(outcomes) > 60
    assert set(outcomes[:-1]) <= {"INSTALL_NO_SPACE", "FILE_NO_SPACE", "ended well"}, sorted(set(outcomes))
    assert outcomes.count("INSTALL_NO_SPACE") > len(outcomes) // 2


class _EndedWell(Exception):  # noqa: N818 (an outcome: what was left to do needed no space)
    pass


def _outcome(scenario: Callable[[], None]) -> str:
    well, told = os.pipe()

    def act() -> None:
        try:
            scenario()
        except _EndedWell:
            os.write(told, b"x")

    try:
        outcome = children.run(act)
        os.set_blocking(well, False)
        with contextlib.suppress(BlockingIOError):
            return "ended well" if os.read(well, 1) else outcome
        return outcome
    finally:
        os.close(well)
        os.close(told)


def test_of_many_at_once_each_installs_or_is_told_to_wait(work, host, old, new):
    prefix = start(work / "rivals", host)
    outcomes = children.run_together([lambda: bring(new, prefix)] * 12)
    assert set(outcomes) <= {"done", "INSTALL_LOCKED"}
    assert "done" in outcomes
    assert running(prefix) == new.built.manifest.release_id
    assert Prefix(prefix).transaction() is None


def test_an_installation_and_a_return_at_once_leave_one_of_the_two(work, host, old, new):
    for round_ in range(3):
        prefix = start(work / f"race-{round_}", host)
        bring(new, prefix)
        returning = [lambda p=prefix: rollback(Prefix(p), to=None, now=datetime.now(UTC))] * 3
        installing = [lambda p=prefix: bring(new, p)] * 3
        outcomes = children.run_together([*returning, *installing])
        assert set(outcomes) <= {"done", "INSTALL_LOCKED", "INSTALL_NO_PREVIOUS"}, outcomes
        assert running(prefix) in (old.built.manifest.release_id, new.built.manifest.release_id)
        assert Prefix(prefix).transaction() is None
