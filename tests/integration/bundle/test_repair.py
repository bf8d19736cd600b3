"""What an operator does about a finding of drift: install the same release again, and it is put right where it runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.bundle.delta import build_delta
from appliance.bundle.install import install
from appliance.bundle.inventory import Inventory, take_inventory
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from appliance.cli.main import app
from appliance.errors import ApplianceError
from appliance.operations.doctor.facts import release as facts
from tests.support import bundle as support
from tests.support import children
from tests.support.trust import make_authority

WRITTEN = "environment: written down"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def releases(authority, tmp_path_factory):
    return [
        support.small_release(tmp_path_factory.mktemp("release"), authority, f"1.{n}.0", epoch=n + 1) for n in range(2)
    ]


@pytest.fixture
def prefix(releases, tmp_path):
    """A host on which the first release runs."""
    bring(releases[0], tmp_path / "prefix")
    return tmp_path / "prefix"


def bring(release, prefix: Path, *, checkpoint=lambda _name: None):
    conduct = Conduct(checkpoint=checkpoint, python=sys._base_executable)
    return install([release.media], prefix, release.anchor, now=datetime.now(UTC), conduct=conduct)


def current(prefix: Path) -> Path:
    return (prefix / "current").resolve()


def site(prefix: Path) -> Path:
    return next(current(prefix).glob("env/lib/python*/site-packages"))


def drift(prefix: Path) -> set[str]:
    found = facts.drift(prefix, now=datetime.now(UTC), deep=True)
    assert not isinstance(found, ApplianceError), found
    assert found is not None
    return {*found.changed, *found.missing, *found.foreign}


def kept(prefix: Path) -> dict[str, bytes]:
    """What was set aside: its name below the repair's folder."""
    folders = current(prefix).glob("set-aside/*")
    return {
        str(path.relative_to(folder)): path.read_bytes() for folder in folders for path in folder.rglob("*")
        if path.is_file()
    }  # fmt: skip


def change_a_module(prefix: Path) -> None:
    module = site(prefix) / "yaml" / "loader.py"
    text = module.read_text()
    module.unlink()
    module.write_text(text + "\nimport os\n")


def move_a_package(prefix: Path) -> None:
    elsewhere = prefix.parent / "elsewhere"
    shutil.move(site(prefix) / "yaml", elsewhere)
    (site(prefix) / "yaml").symlink_to(elsewhere)


def move_the_wheels(prefix: Path) -> None:
    shutil.move(current(prefix) / "payload" / "wheels", prefix.parent / "wheels")
    (current(prefix) / "payload" / "wheels").symlink_to(prefix.parent / "wheels")


def damage_a_wheel(prefix: Path) -> None:
    wheel = next((current(prefix) / "payload" / "wheels").glob("pyyaml*.whl"))
    data = bytearray(wheel.read_bytes())
    data[-30:] = bytes(30)  # the archive's directory: nothing can be read from it any more
    wheel.write_bytes(data)


DAMAGE = {
    "a file of the payload changed": (
        lambda prefix: (current(prefix) / "payload" / "evidence" / "note.txt").write_text("9.9.9"),
        "payload/evidence/note.txt",
    ),
    "a file of the payload gone": (
        lambda prefix: (current(prefix) / "payload" / "evidence" / "note.txt").unlink(),
        "payload/evidence/note.txt",
    ),
    "a folder in a file's place": (
        lambda prefix: [
            (current(prefix) / "payload" / "evidence" / "note.txt").unlink(),
            (current(prefix) / "payload" / "evidence" / "note.txt" / "x").mkdir(parents=True),
        ],
        "payload/evidence/note.txt",
    ),
    "everybody may write a file of the payload": (
        lambda prefix: (current(prefix) / "payload" / "evidence" / "note.txt").chmod(0o666),
        "payload/evidence/note.txt",
    ),
    "a stranger in the payload": (
        lambda prefix: (current(prefix) / "payload" / "foreign.sh").write_text("echo hi\n"),
        "payload/foreign.sh",
    ),
    "a wheel damaged": (damage_a_wheel, "payload/wheels/pyyaml"),
    "the wheels are a link to elsewhere": (move_the_wheels, "payload/wheels"),
    "a module changed": (change_a_module, "env/yaml/loader.py"),
    "a module gone": (lambda prefix: (site(prefix) / "yaml" / "loader.py").unlink(), "env/yaml/loader.py"),
    "a package gone": (lambda prefix: shutil.rmtree(site(prefix) / "yaml"), "env/yaml/loader.py"),
    "a package is a link to elsewhere": (move_a_package, "env/yaml"),
    "a stranger in the environment maker's clothes": (
        lambda prefix: (site(prefix) / "_virtualenv.pth").write_text("import os"),
        "env/_virtualenv.pth",
    ),
    "a stranger who runs with every start": (
        lambda prefix: (site(prefix) / "litellm_init.pth").write_text("import os"),
        "env/litellm_init.pth",
    ),
    "a program changed": (
        lambda prefix: (current(prefix) / "env" / "bin" / "appliance").write_text("#!/bin/sh\nexit 1\n"),
        "bin/appliance",
    ),
    "the environment's Python gone": (lambda prefix: (current(prefix) / "env" / "bin" / "python").unlink(), None),
    "the environment gone": (lambda prefix: shutil.rmtree(current(prefix) / "env"), "env/lib"),
    "the manifest changed": (
        lambda prefix: (current(prefix) / "manifest.json").write_text("{}"),
        "manifest.json",
    ),
    "the mark of a whole release damaged": (
        lambda prefix: (current(prefix) / "release.json").write_text("{"),
        "release.json",
    ),
    "the mark of a whole release gone": (lambda prefix: (current(prefix) / "release.json").unlink(), "release.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_same_media_put_it_right(prefix, releases, damage):
    do, named = DAMAGE[damage]
    pid = os.stat(prefix / "current", follow_symlinks=False).st_ino
    do(prefix)
    report = bring(releases[0], prefix)
    assert report.outcome == "repaired"
    assert named is None or any(name.startswith(named) for name in report.mended), report.mended
    assert drift(prefix) == set()
    assert os.stat(prefix / "current", follow_symlinks=False).st_ino == pid, "nothing was switched"
    assert Prefix(prefix).transaction() is None
    assert bring(releases[0], prefix).outcome == "already installed"


def test_what_was_found_is_kept_as_evidence(prefix, releases):
    change_a_module(prefix)
    (site(prefix) / "litellm_init.pth").write_text("import os")
    (current(prefix) / "payload" / "evidence" / "note.txt").write_text("9.9.9")
    bring(releases[0], prefix)
    found = kept(prefix)
    assert set(found) == {"env/yaml/loader.py", "env/litellm_init.pth", "payload/evidence/note.txt"}
    assert found["env/litellm_init.pth"] == b"import os"
    assert found["payload/evidence/note.txt"] == b"9.9.9"
    assert found["env/yaml/loader.py"].endswith(b"\nimport os\n")


def test_bytecode_beside_a_changed_module_is_not_believed(prefix, releases):
    """Python takes bytecode of the right time and size for the source's own."""
    module = site(prefix) / "yaml" / "error.py"
    forged = compile("raise SystemExit(77)", str(module), "exec")
    import importlib.util
    import marshal

    status = module.stat()
    cached = Path(importlib.util.cache_from_source(module))
    numbers = (0, int(status.st_mtime), status.st_size)
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(
        importlib.util.MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in numbers) + marshal.dumps(forged)
    )
    change_a_module(prefix)
    assert bring(releases[0], prefix).outcome == "repaired"
    assert not cached.exists() or b"SystemExit" not in cached.read_bytes()


def test_a_repair_that_was_killed_is_repeated(prefix, releases):
    change_a_module(prefix)
    (current(prefix) / "payload" / "evidence" / "note.txt").write_text("9.9.9")
    shutil.rmtree(current(prefix) / "payload" / "wheels")
    for step in ("member", "extracted", "mended: a file of the environment"):

        def killed(step: str = step) -> None:
            bring(releases[0], prefix, checkpoint=lambda name: os.kill(os.getpid(), 9) if name == step else None)

        assert children.run(killed) == "killed"
    assert bring(releases[0], prefix).outcome == "repaired"
    assert drift(prefix) == set()


def test_after_a_power_cut_in_a_running_release_that_is_made_anew_nothing_half_written_is_believed(prefix, releases):
    shutil.rmtree(current(prefix) / "env")

    def killed() -> None:
        bring(releases[0], prefix, checkpoint=lambda name: os.kill(os.getpid(), 9) if name == WRITTEN else None)

    assert children.run(killed) == "killed"
    journal = prefix / "state" / "install" / "transaction.json"
    journal.write_text(json.dumps(json.loads(journal.read_text()) | {"boot": "another boot of this host"}))
    os.truncate(site(prefix) / "yaml" / "loader.py", 0)
    bring(releases[0], prefix)
    assert drift(prefix) == set()


def test_damage_found_while_another_installation_stood_unfinished_is_put_right_too(prefix, releases):
    """The running release's media are brought in place of those of an upgrade that was begun."""

    def killed() -> None:
        bring(releases[1], prefix, checkpoint=lambda name: os.kill(os.getpid(), 9) if name == WRITTEN else None)

    assert children.run(killed) == "killed"
    change_a_module(prefix)
    with pytest.raises(ApplianceError) as caught:
        bring(releases[0], prefix)
    assert caught.value.code == "INSTALL_STAGED_ALTERED"
    bring(releases[0], prefix)
    assert drift(prefix) == set()
    assert Prefix(prefix).transaction() is None
    assert Prefix(prefix).active() == releases[0].built.manifest.release_id


def test_a_wheel_that_changes_after_it_was_compared_mends_nothing(prefix, releases):
    change_a_module(prefix)
    changed = (site(prefix) / "yaml" / "loader.py").read_bytes()

    def say(text: str) -> None:
        if "of the environment right" in text:
            with next((current(prefix) / "payload" / "wheels").glob("pyyaml*.whl")).open("ab") as wheel:
                wheel.write(b"!")

    conduct = Conduct(say=say, python=sys._base_executable)
    with pytest.raises(ApplianceError) as caught:
        install([releases[0].media], prefix, releases[0].anchor, now=datetime.now(UTC), conduct=conduct)
    assert caught.value.code == "INSTALL_STAGED_ALTERED"
    assert (site(prefix) / "yaml" / "loader.py").read_bytes() == changed
    assert bring(releases[0], prefix).outcome == "repaired"
    assert drift(prefix) == set()


def test_a_repair_names_no_release_to_return_to(prefix, releases):
    """A gateway that does not come up afterwards must not be sent back to the very release that runs."""
    change_a_module(prefix)
    assert bring(releases[0], prefix).previous is None


def test_a_delta_that_lacks_what_is_damaged_says_so_and_changes_nothing(prefix, releases, authority, tmp_path):
    inventory = Inventory.model_validate(take_inventory(Prefix(prefix), now=datetime.now(UTC)))
    signer = authority.signer("release-signer")
    delta = build_delta(
        [releases[1].media], inventory, signer, tmp_path / "delta", anchor=releases[1].anchor, now=datetime.now(UTC)
    )
    bring(releases[1], prefix)
    wheel = next((current(prefix) / "payload" / "wheels").glob("pyyaml*.whl"))
    wheel.write_bytes(b"damaged")
    with pytest.raises(ApplianceError) as caught:
        install([delta.path], prefix, releases[1].anchor, now=datetime.now(UTC))
    assert caught.value.code == "BUNDLE_DELTA_BASE"
    assert caught.value.evidence["files"] == [f"wheels/{wheel.name}"]
    assert wheel.read_bytes() == b"damaged"


def test_an_older_release_with_a_changed_environment_is_not_activated_again_as_it_is(prefix, releases):
    bring(releases[1], prefix)
    old = Prefix(prefix).release(releases[0].built.manifest.release_id)
    next(old.glob("env/lib/python*/site-packages/yaml/loader.py")).unlink()
    Prefix(prefix).point_to_nothing()  # as after a disk was copied without the link
    with pytest.raises(ApplianceError) as caught:
        bring(releases[0], prefix)
    assert caught.value.code == "INSTALL_STAGED_ALTERED"
    assert caught.value.evidence["files"] == ["env/yaml/loader.py"]
    bring(releases[0], prefix)
    assert drift(prefix) == set()


@pytest.mark.parametrize("document", ["manifest.json", "release.json"])
def test_documents_that_are_unreadable_keep_other_media_out_until_they_are_put_right(prefix, releases, document):
    (current(prefix) / document).write_text("{")
    with pytest.raises(ApplianceError) as caught:
        bring(releases[1], prefix)
    assert caught.value.code == "INSTALL_RELEASE_DAMAGED", "an older release must not pass for want of a comparison"
    found = facts.drift(prefix, now=datetime.now(UTC), deep=False)
    assert isinstance(found, ApplianceError)
    assert found.code == "INSTALL_RELEASE_DAMAGED"
    assert bring(releases[0], prefix).outcome == "repaired"
    assert bring(releases[1], prefix).outcome == "installed"


@pytest.mark.parametrize("document", ["manifest.json", "release.json"])
def test_an_older_release_whose_documents_are_unreadable_is_in_nobody_s_way(prefix, releases, document):
    bring(releases[1], prefix)
    old = releases[0].built.manifest.release_id
    (Prefix(prefix).release(old) / document).write_text("{")
    assert bring(releases[1], prefix).outcome == "already installed"
    answer = CliRunner().invoke(app, ["rollback", "--prefix", str(prefix), "--json"])
    assert answer.exit_code == 1
    assert "INSTALL_NO_PREVIOUS" in answer.stdout


def test_the_command_names_what_was_not_as_signed(prefix, releases, tmp_path):
    change_a_module(prefix)
    anchor = tmp_path / "anchor.json"
    anchor.write_bytes(releases[0].anchor)
    command = ["install", str(releases[0].media), "--prefix", str(prefix), "--trust", str(anchor)]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0
    assert "was not as signed: env/yaml/loader.py" in answer.stdout
    assert f"kept in {prefix}/current/set-aside" in answer.stdout
    assert "already installed" in CliRunner().invoke(app, command).stdout
