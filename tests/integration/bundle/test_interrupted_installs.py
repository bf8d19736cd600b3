"""Kills, full disks and rivals at the turning points of an installation with real wheels, real uv, real health check.

`test_every_step` does the same before every single change of a file, with a tiny release.
"""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bundle.health import check_health
from appliance.bundle.install import install
from appliance.bundle.releases import installed_releases, rollback
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from tests.support import bundle as support
from tests.support import children
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def old(authority, tmp_path_factory):
    return support.small_release(tmp_path_factory.mktemp("old"), authority, "1.0.0", epoch=1)


@pytest.fixture(scope="module")
def new(authority, tmp_path_factory):
    return support.small_release(tmp_path_factory.mktemp("new"), authority, "1.1.0", epoch=2)


@pytest.fixture(scope="module")
def host(old, tmp_path_factory) -> Path:
    """A prefix on which the old release runs."""
    prefix = tmp_path_factory.mktemp("host") / "prefix"
    bring(old, prefix)
    return prefix


def bring(release, prefix: Path, checkpoint=lambda _name: None):
    conduct = Conduct(checkpoint=checkpoint, python=sys._base_executable)
    return install([release.media], prefix, release.anchor, now=datetime.now(UTC), conduct=conduct)


def copy_of(host: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", "--reflink=auto", str(host), str(target)], check=True)
    return target


def running(prefix: Path) -> str:
    """The release that `current` names, proven to work."""
    home = Prefix(prefix)
    name = home.active()
    assert name is not None
    check_health(home.current / "env" / "bin" / "python", home.current / "payload", "small")
    return name


def checkpoints_of(host: Path, release, prefix: Path) -> list[str]:
    names: list[str] = []
    copy_of(host, prefix)
    bring(release, prefix, names.append)
    return names


@pytest.fixture(scope="module")
def steps(host, new, tmp_path_factory) -> list[str]:
    """Every point at which a kill leaves another state behind, enumerated by a run that records them."""
    names = checkpoints_of(host, new, tmp_path_factory.mktemp("steps") / "prefix")
    assert {"begun: written down", "extracted", "staged: written down", "environment: written down"} <= set(names)
    assert {"verified: written down", "healthy: written down", "activated: written down"} <= set(names)
    assert names[-1] == "confirmed: written down"
    return names


TURNING_POINTS = ("member", "staged: written down", "verified: written down", "activating: before the switch")
TURNED = "activated: done, not written down"


def test_an_upgrade_killed_at_a_turning_point_leaves_old_or_new_and_is_taken_up_again(host, old, new, steps, tmp_path):
    seen = set()
    for step in (*TURNING_POINTS, TURNED):
        number = steps.index(step)
        prefix = copy_of(host, tmp_path / f"kill-{number}")
        assert children.run(lambda p=prefix, n=number: bring(new, p, children.kill_at(n))) == "killed", step
        left = running(prefix)
        assert left in (old.built.manifest.release_id, new.built.manifest.release_id), step
        seen.add(left)
        report = bring(new, prefix)
        assert report.outcome == "installed", step
        assert running(prefix) == new.built.manifest.release_id
        assert Prefix(prefix).transaction() is None
        names = {release.id for release in installed_releases(Prefix(prefix))}
        assert names == {old.built.manifest.release_id, new.built.manifest.release_id}
        shutil.rmtree(prefix)
    assert len(seen) == 2, "the steps reach from the old release to the new one"


def test_an_upgrade_killed_again_and_again_still_arrives(host, new, steps, tmp_path):
    prefix = copy_of(host, tmp_path / "prefix")
    kills = 0
    while children.run(lambda: bring(new, prefix, children.kill_at(3))) == "killed":
        assert Prefix(prefix).active() is not None
        kills += 1
        assert kills < len(steps)
    assert kills > 2
    assert running(prefix) == new.built.manifest.release_id


def test_a_kill_does_not_make_the_next_run_start_over(host, new, steps, tmp_path):
    prefix = copy_of(host, tmp_path / "prefix")
    at = steps.index("environment: written down")
    assert children.run(lambda: bring(new, prefix, children.kill_at(at))) == "killed"
    before = (Prefix(prefix).environment(new.built.manifest.release_id) / "pyvenv.cfg").stat().st_ino
    names: list[str] = []
    bring(new, prefix, names.append)
    assert "extracted" not in names
    assert (Prefix(prefix).environment(new.built.manifest.release_id) / "pyvenv.cfg").stat().st_ino == before


def test_after_a_power_cut_what_was_not_yet_durable_is_made_anew(host, new, steps, tmp_path):
    prefix = copy_of(host, tmp_path / "prefix")
    at = steps.index("verified: written down")
    assert children.run(lambda: bring(new, prefix, children.kill_at(at))) == "killed"
    marker = Prefix(prefix).environment(new.built.manifest.release_id) / "from-before-the-power-cut"
    marker.touch()
    lost = Prefix(prefix).payload(new.built.manifest.release_id) / "evidence" / "note.txt"
    os.truncate(lost, 0)  # its content never reached the disk
    journal = prefix / "state" / "install" / "transaction.json"
    document = json.loads(journal.read_text())
    journal.write_text(json.dumps(document | {"boot": "another boot of this host"}))
    assert bring(new, prefix).outcome == "installed"
    assert not marker.exists()
    assert lost.read_text() == "1.1.0"
    assert running(prefix) == new.built.manifest.release_id


def test_an_unconfirmed_release_that_was_rolled_back_is_activated_again(host, old, new, steps, tmp_path):
    for step in ("activated: written down", "confirmed: written down"):
        prefix = copy_of(host, tmp_path / f"prefix-{steps.index(step)}")
        assert children.run(lambda p=prefix, s=step: bring(new, p, children.kill_at(steps.index(s)))) == "killed"
        rollback(Prefix(prefix), to=None, now=datetime.now(UTC))
        assert running(prefix) == old.built.manifest.release_id
        assert bring(new, prefix).outcome == "installed"
        assert running(prefix) == new.built.manifest.release_id


def test_another_release_may_follow_an_unfinished_one(host, authority, new, steps, tmp_path):
    newest = support.small_release(tmp_path / "newest", authority, "1.2.0", epoch=3)
    for step in ("extracted", "environment: written down", "activated: done, not written down"):
        prefix = copy_of(host, tmp_path / f"after-{steps.index(step)}")
        assert children.run(lambda p=prefix, s=step: bring(new, p, children.kill_at(steps.index(s)))) == "killed"
        assert bring(newest, prefix).outcome == "installed"
        assert running(prefix) == newest.built.manifest.release_id


def test_a_full_disk_at_a_turning_point_leaves_old_or_new_and_goes_on_with_space(host, old, new, steps, tmp_path):
    outcomes = {}

    def scenario(number: int) -> None:
        disk = tmp_path / "disk"
        disk.mkdir(exist_ok=True)
        children.on_small_disk(disk, 600 * 1024 * 1024)
        prefix = copy_of(host, disk / "prefix")
        count = 0

        def checkpoint(_name: str) -> None:
            nonlocal count
            if count == number:
                children.fill(disk)
            count += 1

        try:
            bring(new, prefix, checkpoint)
        finally:
            assert running(prefix) in (old.built.manifest.release_id, new.built.manifest.release_id)
            (disk / "filler").unlink(missing_ok=True)
            outcome = bring(new, prefix).outcome
            assert outcome in ("installed", "already installed")
            assert running(prefix) == new.built.manifest.release_id

    for step in (*TURNING_POINTS, TURNED):
        outcomes[step] = children.run(lambda s=step: scenario(steps.index(s)))
    assert set(outcomes.values()) <= {"done", "INSTALL_NO_SPACE", "FILE_NO_SPACE"}, outcomes
    assert list(outcomes.values()).count("INSTALL_NO_SPACE") > len(outcomes) // 2


def test_bytecode_cut_short_by_a_full_disk_does_not_outlive_it(host, new, steps, tmp_path):
    prefix = copy_of(host, tmp_path / "prefix")
    at = steps.index("verified: written down")
    assert children.run(lambda: bring(new, prefix, children.kill_at(at))) == "killed"
    environment = Prefix(prefix).environment(new.built.manifest.release_id)
    source = next(environment.glob("lib/*/site-packages/yaml/__init__.py"))
    cut = Path(importlib.util.cache_from_source(source))
    cut.parent.mkdir(exist_ok=True)
    py_compile.compile(str(source), str(cut))
    cut.write_bytes(cut.read_bytes()[:100])
    assert bring(new, prefix).outcome == "installed"
    assert running(prefix) == new.built.manifest.release_id


def test_a_disk_too_small_is_refused_before_anything_is_written(host, old, new, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()

    def scenario() -> None:
        children.on_small_disk(disk, 600 * 1024 * 1024)
        prefix = copy_of(host, disk / "prefix")
        children.fill(disk)
        before = sorted(str(path) for path in prefix.rglob("*"))
        try:
            bring(new, prefix)
        finally:
            assert sorted(str(path) for path in prefix.rglob("*")) == before
            assert running(prefix) == old.built.manifest.release_id

    assert children.run(scenario) == "INSTALL_NO_SPACE"


def test_a_prefix_mounted_noexec_is_refused_with_the_remedy_before_anything_is_written(new, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()

    def scenario() -> None:
        children.on_small_disk(disk, 600 * 1024 * 1024, noexec=True)
        try:
            bring(new, disk / "prefix")
        finally:
            assert list(disk.iterdir()) == []

    assert children.run(scenario) == "INSTALL_NOEXEC"


def test_a_place_for_temporary_files_that_is_small_and_noexec_is_in_nobody_s_way(new, tmp_path):
    """Programs and anything large are unpacked below the prefix, where the preflight has asked for room."""
    small = tmp_path / "small"
    small.mkdir()

    def scenario() -> None:
        children.on_small_disk(small, 4 * 1024 * 1024, noexec=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(small)  # of the child alone
        assert bring(new, tmp_path / "prefix").outcome == "installed"
        assert list(small.iterdir()) == []

    assert children.run(scenario) == "done"
    assert running(tmp_path / "prefix") == new.built.manifest.release_id


def test_of_rivals_one_installs_and_the_others_are_told_to_wait(host, new, tmp_path):
    prefix = copy_of(host, tmp_path / "prefix")
    holding, go = os.pipe(), os.pipe()

    def first(_name: str) -> None:
        os.write(holding[1], b"x")
        os.read(go[0], 1)

    pid = os.fork()
    if pid == 0:
        try:
            bring(new, prefix, first)
        finally:
            os._exit(0)
    os.read(holding[0], 1)
    for _ in range(5):
        assert children.run(lambda: bring(new, prefix)) == "INSTALL_LOCKED"
    os.write(go[1], b"x" * 100)
    os.waitpid(pid, 0)
    assert running(prefix) == new.built.manifest.release_id
