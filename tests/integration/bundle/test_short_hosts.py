"""A host that runs short during the health check says so, and does not call the release unhealthy.

The releases are genuine and tiny; what stands in Python's place does what Python would, on purpose.
"""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest

from appliance.bundle import health
from appliance.bundle.releases import installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.errors import ApplianceError
from tests.support import children, tiny
from tests.support.tiny import bring, running
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow

DISK_BYTES = 24 * 1024 * 1024

# like Python, which keeps bytecode while it imports; a host that lacks something is a file beside the releases
NEEDS_ROOM = tiny.PYTHON.replace("read -r", 'echo compiled > "$HOME/bytecode-$$"\nread -r')
ANSWERS_AS_TOLD = tiny.PYTHON.replace("read -r", 'told="$HOME/../../told.sh"\n[ ! -e "$told" ] || . "$told"\nread -r')


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def old(authority, tmp_path_factory):
    return tiny.release(tmp_path_factory.mktemp("old"), authority, "1.0.0", epoch=1)


@pytest.fixture(scope="module")
def needing(authority, tmp_path_factory):
    return tiny.release(tmp_path_factory.mktemp("needing"), authority, "1.1.0", epoch=2, python=NEEDS_ROOM)


@pytest.fixture(scope="module")
def told(authority, tmp_path_factory):
    return tiny.release(tmp_path_factory.mktemp("told"), authority, "1.2.0", epoch=3, python=ANSWERS_AS_TOLD)


@pytest.fixture(scope="module")
def host(old, tmp_path_factory) -> Path:
    """A prefix on which the old release runs."""
    place = tmp_path_factory.mktemp("host") / "prefix"
    bring(old, place)
    return place


@pytest.fixture
def prefix(host, tmp_path) -> Path:
    """A copy of it, to be used up."""
    return shutil.copytree(host, tmp_path / "prefix", symlinks=True)


def name(release) -> str:
    return release.built.manifest.release_id


def at(step: str, act):
    """A checkpoint that acts once, when a step is reached."""

    def checkpoint(reached: str) -> None:
        if reached == step:
            act()

    return checkpoint


def refusal(*arguments) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        bring(*arguments)
    return caught.value


@pytest.mark.parametrize("step", ["verified: written down", "activated: written down"])
def test_a_disk_that_runs_full_during_the_health_check_is_told_and_the_release_stays(
    host, old, needing, tmp_path, step
):
    disk = tmp_path / "disk"
    disk.mkdir()

    def scenario() -> None:
        children.on_small_disk(disk, DISK_BYTES)
        home = Prefix(shutil.copytree(host, disk / "prefix", symlinks=True))
        error = refusal(needing, home.root, at(step, lambda: children.fill(disk)))
        assert error.code == "INSTALL_NO_SPACE", error
        assert "health check broke off" in error.cause
        assert running(home.root) == name(old)
        transaction = home.transaction()
        assert transaction is not None
        assert transaction.release == name(needing)
        (disk / "filler").unlink()
        steps: list[str] = []
        assert bring(needing, home.root, steps.append).outcome == "installed"
        assert "extracted" not in steps, "it goes on where it stood"
        assert running(home.root) == name(needing)
        assert home.transaction() is None

    assert children.run(scenario) == "done"


def test_a_host_without_descriptors_for_the_check_is_not_a_release_s_fault(prefix, told):
    def scenario() -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # noqa: E731
        with pytest.raises(ApplianceError) as caught:
            bring(told, prefix, at("verified: written down", few))
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        raise caught.value

    assert children.run(scenario) == "INSTALL_UNCHECKED"
    assert running(prefix) == Prefix(prefix).active() != name(told)
    assert bring(told, prefix).outcome == "installed"


@pytest.mark.parametrize("step", ["verified: written down", "activated: written down"])
@pytest.mark.parametrize(
    ("order", "code"),
    [
        ("kill -KILL $$", "INSTALL_UNCHECKED"),  # as the kernel does that is out of memory
        ("kill -TERM $$", "INSTALL_UNCHECKED"),
        ("kill -SEGV $$", "INSTALL_UNHEALTHY"),
        ("exit 3", "INSTALL_UNHEALTHY"),
    ],
)
def test_what_ends_the_check_from_outside_is_not_the_release_s_fault_and_a_crash_is(
    prefix, old, told, step, order, code
):
    script = prefix / "told.sh"
    error = refusal(told, prefix, at(step, lambda: script.write_text(order)))
    assert error.code == code
    assert running(prefix) == name(old)
    kept = code == "INSTALL_UNCHECKED"
    assert Prefix(prefix).release(name(told)).exists() is kept
    assert (Prefix(prefix).transaction() is not None) is kept
    script.unlink()
    steps: list[str] = []
    assert bring(told, prefix, steps.append).outcome == "installed"
    assert ("extracted" in steps) is not kept
    assert [release.id for release in installed_releases(Prefix(prefix))] == [name(old), name(told)]


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        (["INSTALL_NO_SPACE", "INSTALL_UNHEALTHY"], "INSTALL_NO_SPACE"),  # the second may follow from the first
        (["INSTALL_UNCHECKED"], "INSTALL_UNCHECKED"),
        (["INSTALL_UNCHECKED", "INSTALL_UNHEALTHY"], "INSTALL_UNHEALTHY"),
        (["BUNDLE_ANCHOR"], "INSTALL_UNHEALTHY"),
    ],
)
def test_the_check_s_own_findings_tell_a_short_host_from_a_bad_release(prefix, told, codes, code):
    findings = [{"check": f"check {n}", "healthy": False, "text": c, "code": c} for n, c in enumerate(codes)]
    script = prefix / "told.sh"
    order = f"echo '{json.dumps(findings)}'; exit 1"
    error = refusal(told, prefix, at("verified: written down", lambda: script.write_text(order)))
    assert error.code == code
    assert error.evidence["check 0"] == codes[0]


def test_a_return_on_a_full_disk_needs_no_room_for_its_line_of_history(host, old, told, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()

    def scenario() -> None:
        children.on_small_disk(disk, DISK_BYTES)
        home = Prefix(shutil.copytree(host, disk / "prefix", symlinks=True))

        def worst() -> None:
            (home.root / "told.sh").write_text("exit 3")
            history = home.journal / "activations.jsonl"
            with history.open("a") as stream:  # to the end of its page: the next line needs a new one
                stream.write("\n" * (-history.stat().st_size % 4096))
            children.fill(disk)

        assert refusal(told, home.root, at("activated: written down", worst)).code == "INSTALL_NO_SPACE"
        assert running(home.root) == name(old)
        (disk / "filler").unlink()
        assert refusal(told, home.root).code == "INSTALL_UNHEALTHY", "the release is bad, and now that can be told"
        assert running(home.root) == name(old)

    assert children.run(scenario) == "done"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("import os; raise OSError(28, os.strerror(28))", "INSTALL_NO_SPACE"),
        (
            "try:\n    raise OSError(28, 'full')\nexcept OSError as e:\n    raise ImportError('x') from e",
            "INSTALL_NO_SPACE",
        ),
        ("raise OSError(12, 'no memory')", "INSTALL_UNCHECKED"),
        ("raise MemoryError", "INSTALL_UNCHECKED"),
        ('raise RuntimeError("can\'t start new thread")', "INSTALL_UNCHECKED"),
        ("raise OSError(2, 'no such file')", "INSTALL_UNHEALTHY"),
        ("import a_module_that_is_not_there", "INSTALL_UNHEALTHY"),
        ("1 / 0", "INSTALL_UNHEALTHY"),
    ],
)
def test_an_import_that_fails_for_want_of_space_or_memory_is_told_from_one_that_is_broken(
    source, code, tmp_path, monkeypatch, capsys
):
    (tmp_path / "imported_by_a_test.py").write_text(source)
    (tmp_path / "requirements.txt").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(health.MODULES, "of a test", ("imported_by_a_test",))
    monkeypatch.setattr(health.gc, "disable", lambda: None)
    assert health.main([str(tmp_path), "of a test"]) == 1
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["imports"]["code"] == code
    assert findings["versions"]["healthy"]
