"""Killed, or out of space, before every single change of a file: the old release or the new one, never neither.

The changes are not listed by hand: Python's audit events enumerate them while an installation runs. The releases are
genuine and tiny, so that hundreds of installations take seconds; `test_interrupted_installs` breaks real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bundle.releases import installed_releases, rollback, state_version
from appliance.bundle.stage0.journal import Prefix
from appliance.errors import ApplianceError
from tests.support import children, tiny
from tests.support.tiny import bring, running
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow

DISK_BYTES = 24 * 1024 * 1024


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """In memory where there is room, temporary files and all: tested is the order of changes, not the disk's speed."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        (Path(folder) / "tmp").mkdir()
        patch.setattr(tempfile, "tempdir", f"{folder}/tmp")
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
def relaid(work, authority):
    """A release that reads another layout of the state."""
    return tiny.release(work / "relaid", authority, "2.0.0", epoch=3, state=2)


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


def tree(place: Path) -> frozenset[tuple[str, int, bytes]]:
    """What lies on a disk, apart from the time of day and from names drawn by lot: equal trees need one trial."""
    found = set()
    for path in [place, *place.rglob("*")] if place.exists() else ():
        status = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = _TIME.sub(b"TIME", path.read_bytes())
        found.add((_DRAWN.sub("DRAWN", str(path.relative_to(place))), status.st_mode, content))
    return frozenset(found)


_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?")
_DRAWN = re.compile(r"(?<=/tmp)\w{8}$")


def has_half_a_cache(prefix: Path) -> bool:
    """Whether a copy was made while the environment maker's cache was being removed."""
    caches = [*prefix.glob("releases/*/.cache")]
    return any(not [*cache.rglob("python")] for cache in caches)


@pytest.mark.parametrize("upgrade", [False, True], ids=["first", "upgrade"])
def test_killed_before_any_change_of_a_file_it_is_old_or_new_and_is_taken_up_again(work, host, old, relaid, upgrade):
    """One installation is copied before every change: a kill there leaves that copy, as real kills show."""
    ids = (old.built.manifest.release_id if upgrade else None, relaid.built.manifest.release_id)
    layouts = {None: 0, old.built.manifest.release_id: 1, ids[1]: 2}
    prefix, copies = work / "killed", work / f"copies-{upgrade}"
    copies.mkdir()

    def copy(number: int) -> None:
        if prefix.exists():
            shutil.copytree(prefix, copies / str(number), symlinks=True)

    def installed_once() -> None:
        with children.Changes(start(prefix, host if upgrade else None)).watched(copy):
            bring(relaid, prefix)

    assert children.run(installed_once) == "done"
    shutil.rmtree(prefix)
    numbers = range(1 + max(int(entry.name) for entry in copies.iterdir()))
    assert len(numbers) > 60
    half_cleared = [number for number in numbers if has_half_a_cache(copies / str(number))]
    assert half_cleared, "the removal of the environment maker's cache is among the changes"

    for number in [*numbers[:: len(numbers) // 8], *half_cleared[:1]]:
        start(prefix, host if upgrade else None)
        assert children.kill_before_change(prefix, number, lambda: bring(relaid, prefix)) == "killed"
        assert tree(prefix) == tree(copies / str(number)), number
        shutil.rmtree(prefix, ignore_errors=True)

    seen, tried = set(), set()
    for number in numbers:
        left_behind = tree(copies / str(number))
        if left_behind in tried:
            continue
        tried.add(left_behind)
        if left_behind:
            (copies / str(number)).rename(prefix)
        left = running(prefix)
        assert left in ids, number
        assert state_version(Prefix(prefix)) == layouts[left], number
        seen.add(left)
        assert bring(relaid, prefix).outcome in ("installed", "already installed"), number
        assert Prefix(prefix).active() == ids[1], number
        assert Prefix(prefix).transaction() is None
        assert {release.id for release in installed_releases(Prefix(prefix))} == {*ids} - {None}
        assert not [*prefix.rglob(".*.new"), *prefix.rglob(".*.tmp"), *prefix.rglob(".cache")], number
        shutil.rmtree(prefix)
    assert len(tried) > 40
    assert seen == set(ids), "the changes reach from the old state to the new one"
    assert not list(Path(tempfile.gettempdir()).iterdir()), "the killed left nothing that the others did not clear away"


def test_a_return_killed_before_any_change_of_a_file_leaves_one_of_the_two_and_can_be_repeated(work, host, old, new):
    both = start(work / "both", host)
    bring(new, both)
    seen, number, outcome = set(), 0, "killed"
    while outcome == "killed":
        prefix = start(work / "returning", both)
        back = lambda p=prefix: rollback(Prefix(p), to=None, now=datetime.now(UTC))  # noqa: E731
        outcome = children.kill_before_change(prefix, number, back)
        left = running(prefix)
        seen.add(left)
        if left == new.built.manifest.release_id:
            back()
        assert running(prefix) == old.built.manifest.release_id, number
        assert rollback(Prefix(prefix), to=new.built.manifest.release_id, now=datetime.now(UTC)).current
        assert running(prefix) == new.built.manifest.release_id, number
        shutil.rmtree(prefix)
        number += 1
    assert outcome == "done"
    assert number > 4
    assert seen == {old.built.manifest.release_id, new.built.manifest.release_id}


def test_two_prefixes_are_installed_at_once_and_do_not_meet(work, new):
    places = [work / f"apart-{number}" for number in range(4)]
    assert children.run_together([lambda p=place: bring(new, p) for place in places]) == ["done"] * 4
    assert {running(place) for place in places} == {new.built.manifest.release_id}


@pytest.mark.parametrize("upgrade", [False, True], ids=["first", "upgrade"])
def test_out_of_space_before_any_change_of_a_file_it_is_old_or_new_and_goes_on_with_space(
    work, host, old, new, upgrade
):
    ids = (old.built.manifest.release_id if upgrade else None, new.built.manifest.release_id)
    disk = work / f"disk-{upgrade}"
    disk.mkdir()

    def before_every_change() -> None:
        children.on_small_disk(disk, DISK_BYTES)
        prefix = disk / "prefix"
        changes = children.Changes(prefix)
        outcomes: list[str] = []
        goes_on: set[object] = set()
        while outcomes[-1:] != ["done"]:
            start(prefix, host if upgrade else None)
            outcomes.append(filled_before_change(changes, len(outcomes), prefix))
            assert running(prefix) in ids
            (disk / "filler").unlink(missing_ok=True)
            left = tree(prefix)
            if left not in goes_on:
                goes_on.add(left)
                assert bring(new, prefix).outcome in ("installed", "already installed")
                assert running(prefix) == ids[1]
            shutil.rmtree(prefix)
        assert len(outcomes) > 60
        assert set(outcomes[:-1]) <= {"INSTALL_NO_SPACE", "FILE_NO_SPACE", "ended well"}, outcomes
        assert outcomes.count("INSTALL_NO_SPACE") > len(outcomes) // 2

    def filled_before_change(changes: children.Changes, number: int, prefix: Path) -> str:
        reached = False

        def fill(at: int) -> None:
            nonlocal reached
            if at == number:
                reached = True
                children.fill(disk)

        try:
            with changes.watched(fill):
                bring(new, prefix)
        except ApplianceError as refusal:
            if not refusal.code.endswith("_NO_SPACE"):
                raise
            return refusal.code
        return "ended well" if reached else "done"  # what was left to do needed no space

    assert children.run(before_every_change) == "done"


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
