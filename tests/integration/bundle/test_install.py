"""Installing, returning, clearing away: what an operator types and what is on the disk afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.bundle.inputs import Payload
from appliance.bundle.install import install, verify_media
from appliance.bundle.releases import collect_garbage, installed_releases, rollback, state_version
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from appliance.cli.main import app
from appliance.errors import ApplianceError
from appliance.trust.authorisation import write_token
from appliance.trust.authority import Authority
from appliance.trust.store import machine_identity
from tests.support import bundle as support
from tests.support import children, tiny
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def releases(authority, tmp_path_factory):
    """Three releases, each newer than the one before; the third has another state layout."""
    return [
        support.small_release(
            tmp_path_factory.mktemp("release"), authority, f"1.{n}.0", epoch=n + 1, state_version=2 if n == 2 else 1
        )
        for n in range(3)
    ]


@pytest.fixture(scope="module")
def first(releases, tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("host") / "prefix"
    bring(releases[0], prefix)
    return prefix


@pytest.fixture
def prefix(first, tmp_path) -> Path:
    """A host of its own on which the first release runs."""
    shutil.copytree(first, tmp_path / "prefix", symlinks=True)
    return tmp_path / "prefix"


def bring(release, prefix: Path, *, now: datetime | None = None, checkpoint=lambda _name: None, **options):
    conduct = Conduct(checkpoint=checkpoint, python=sys._base_executable)
    return install([release.media], prefix, release.anchor, now=now or datetime.now(UTC), conduct=conduct, **options)


def refused(*arguments, **options) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        bring(*arguments, **options)
    return caught.value


def name(release) -> str:
    return release.built.manifest.release_id


def test_an_upgrade_keeps_the_old_release_and_rollback_returns_to_it(prefix, releases):
    report = bring(releases[1], prefix)
    assert (report.outcome, report.previous) == ("installed", name(releases[0]))
    assert {entry["check"] for entry in report.health} == {"versions", "imports", "encoder"}
    assert [release.current for release in installed_releases(Prefix(prefix))] == [False, True]
    returned = rollback(Prefix(prefix), to=None, now=datetime.now(UTC))
    assert returned.id == Prefix(prefix).active() == name(releases[0])
    forward = rollback(Prefix(prefix), to=name(releases[1]), now=datetime.now(UTC))
    assert forward.id == Prefix(prefix).active() == name(releases[1])


def test_there_is_nothing_to_return_to_after_the_first_installation(prefix, releases):
    for to in (None, "9.9.9-000000000000", name(releases[0])):
        with pytest.raises(ApplianceError) as caught:
            rollback(Prefix(prefix), to=to, now=datetime.now(UTC))
        assert caught.value.code == "INSTALL_NO_PREVIOUS"


def test_the_operator_s_configuration_is_never_touched(prefix, releases):
    file = prefix / "etc" / "appliance.yaml"
    file.write_text("mine: true\n")
    bring(releases[1], prefix)
    assert file.read_text() == "mine: true\n"


def test_a_release_that_does_not_work_is_not_activated_and_leaves_nothing(prefix, releases, authority, tmp_path):
    payload = support.small_payload(extra=[Payload("encoder/encoder.yaml", b"broken"), Payload("encoder/x.onnx", b"x")])
    bad = support.small_release(tmp_path / "bad", authority, "1.5.0", epoch=9, payload=payload)
    error = refused(bad, prefix)
    assert error.code == "INSTALL_UNHEALTHY"
    assert "encoder" in error.evidence
    assert Prefix(prefix).active() == name(releases[0])
    assert not Prefix(prefix).release(name(bad)).exists()
    assert Prefix(prefix).transaction() is None


def test_a_release_that_fails_in_place_is_left_for_the_old_one(prefix, releases):
    def spoil(step: str) -> None:
        if step == "activated: written down":
            assert Prefix(prefix).active() == name(releases[1])
            shutil.rmtree(next(Prefix(prefix).environment(name(releases[1])).glob("lib/*/site-packages/yaml")))

    assert refused(releases[1], prefix, checkpoint=spoil).code == "INSTALL_UNHEALTHY"
    assert Prefix(prefix).active() == name(releases[0])
    assert Prefix(prefix).activations()[-1]["reason"] == "automatic return"
    assert bring(releases[1], prefix).outcome == "installed"


def test_a_wheel_that_uv_cannot_install_ends_the_installation(prefix, releases, authority, tmp_path):
    payload = [file for file in support.small_payload() if not file.path.startswith("wheels/pyyaml")]
    bad = support.small_release(tmp_path / "bad", authority, "1.5.0", epoch=9, payload=payload)
    error = refused(bad, prefix)
    assert error.code == "INSTALL_ENVIRONMENT"
    assert "pyyaml" in error.evidence["uv"]
    assert Prefix(prefix).active() == name(releases[0])


def test_a_file_altered_between_extraction_and_activation_is_found(prefix, releases):
    def spoil(step: str) -> None:
        if step == "environment: written down":
            note = Prefix(prefix).payload(name(releases[1])) / "evidence" / "note.txt"
            note.write_text("9.9.9")

    error = refused(releases[1], prefix, checkpoint=spoil)
    assert error.code == "INSTALL_STAGED_ALTERED"
    assert error.evidence["path"] == "evidence/note.txt"
    assert Prefix(prefix).active() == name(releases[0])
    assert bring(releases[1], prefix).outcome == "installed", "what was damaged is taken from the media again"
    assert Prefix(prefix).active() == name(releases[1])


@pytest.mark.parametrize("step", ["staged: written down", "verified: written down"])
def test_a_file_altered_while_an_installation_lies_broken_off_is_not_taken_over(prefix, releases, step):
    def stop(at: str) -> None:
        if at == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(releases[1], prefix, checkpoint=stop)
    wheel = next((Prefix(prefix).payload(name(releases[1])) / "wheels").glob("pyyaml-*"))
    honest = wheel.read_bytes()
    wheel.write_bytes(honest[:-9] + b"x" + honest[-8:])
    for _attempt in range(2):
        try:
            bring(releases[1], prefix)
        except ApplianceError as refusal:
            assert refusal.code == "INSTALL_STAGED_ALTERED"
            assert Prefix(prefix).active() == name(releases[0])
    assert wheel.read_bytes() == honest
    assert Prefix(prefix).active() == name(releases[1])


@pytest.mark.parametrize("step", ["staged: written down", "environment: written down"])
def test_a_release_that_was_cleared_away_while_its_installation_lay_broken_off_is_staged_anew(prefix, releases, step):
    def stop(at: str) -> None:
        if at == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(releases[1], prefix, checkpoint=stop)
    shutil.rmtree(Prefix(prefix).release(name(releases[1])))
    if step.startswith("environment"):
        assert refused(releases[1], prefix).code == "INSTALL_STAGED_ALTERED"
    assert bring(releases[1], prefix).outcome == "installed"
    assert Prefix(prefix).active() == name(releases[1])


def test_a_damaged_release_that_was_left_is_made_whole_when_it_is_installed_again(prefix, releases):
    bring(releases[1], prefix)
    rollback(Prefix(prefix), to=None, now=datetime.now(UTC))
    note = Prefix(prefix).payload(name(releases[1])) / "evidence" / "note.txt"
    note.write_text("9.9.9")
    assert refused(releases[1], prefix).code == "INSTALL_STAGED_ALTERED"
    with pytest.raises(ApplianceError) as caught:
        rollback(Prefix(prefix), to=name(releases[1]), now=datetime.now(UTC))
    assert caught.value.code == "INSTALL_NO_PREVIOUS"
    assert bring(releases[1], prefix).outcome == "installed"
    assert Prefix(prefix).active() == name(releases[1])


def test_state_of_a_newer_release_is_never_silently_used(prefix, releases):
    done = CliRunner().invoke(app, ["install", str(releases[2].media), "--prefix", str(prefix), "--no-restart"])
    assert done.exit_code == 0, done.output
    assert "only a backup leads back" in done.output
    assert state_version(Prefix(prefix)) == 2
    with pytest.raises(ApplianceError) as caught:
        rollback(Prefix(prefix), to=None, now=datetime.now(UTC))
    assert caught.value.code == "INSTALL_STATE_NEWER"
    assert refused(releases[1], prefix, downgrade=b"{}").code == "INSTALL_STATE_NEWER"
    assert Prefix(prefix).active() == name(releases[2])


def test_a_release_that_never_ran_leaves_the_state_to_the_old_one(prefix, releases):
    """Killed before the switch, or taken back after it: the state is of the old layout, and the old release its own."""
    home = Prefix(prefix)
    step = "activating: before the switch"
    kill = lambda name: name == step and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    assert children.run(lambda: bring(releases[2], prefix, checkpoint=kill)) == "killed"
    assert (home.active(), state_version(home)) == (name(releases[0]), 1)
    assert bring(releases[0], prefix).outcome == "installed", "the way back is open: the new one is undone"

    def spoil(step: str) -> None:
        if step == "activated: written down":
            assert state_version(home) == 2
            shutil.rmtree(next(home.environment(name(releases[2])).glob("lib/*/site-packages/yaml")))

    assert refused(releases[2], prefix, checkpoint=spoil).code == "INSTALL_UNHEALTHY"
    assert (home.active(), state_version(home)) == (name(releases[0]), 1)
    assert bring(releases[1], prefix).outcome == "installed"
    assert rollback(home, to=None, now=datetime.now(UTC)).id == name(releases[0])
    assert bring(releases[2], prefix).outcome == "installed"
    assert state_version(home) == 2
    assert refused(releases[1], prefix, downgrade=b"{}").code == "INSTALL_STATE_NEWER"


def authorisation(authority, version: str) -> bytes:
    """What two root key holders sign for this host."""
    holders = Authority.open(authority.path)
    lifetime = timedelta(days=1)
    machine = machine_identity()
    assert machine is not None
    return write_token(holders, "downgrade", machine=machine, version=version, now=datetime.now(UTC), lifetime=lifetime)


def test_an_older_genuine_release_is_not_carried_in_again(prefix, releases):
    bring(releases[1], prefix)
    assert refused(releases[0], prefix).code == "INSTALL_DOWNGRADE"
    assert refused(releases[0], prefix, downgrade=b"yes").code == "TRUST_TOKEN_MALFORMED"
    assert Prefix(prefix).active() == name(releases[1])


def test_an_older_release_comes_back_by_an_authorisation_and_only_once(prefix, releases, authority):
    bring(releases[1], prefix)
    other = authorisation(authority, "9.9.9")
    assert refused(releases[0], prefix, downgrade=other).code == "TRUST_TOKEN_VERSION"
    token = authorisation(authority, releases[0].built.manifest.version)
    assert bring(releases[0], prefix, downgrade=token).outcome == "installed"
    bring(releases[1], prefix)
    assert refused(releases[0], prefix).code == "INSTALL_DOWNGRADE"
    assert refused(releases[0], prefix, downgrade=token).code == "TRUST_TOKEN_USED"


def test_an_authorised_downgrade_that_was_interrupted_is_taken_up_without_a_second_authorisation(
    prefix, releases, authority
):
    bring(releases[1], prefix)
    token = authorisation(authority, releases[0].built.manifest.version)

    def pull_the_plug(_step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(releases[0], prefix, downgrade=token, checkpoint=pull_the_plug)
    assert Prefix(prefix).active() == name(releases[1])
    assert bring(releases[0], prefix).outcome == "installed"


def test_garbage_collection_keeps_the_current_and_the_last_good_release(prefix, releases, authority, tmp_path):
    (prefix / "releases" / "0.0.1-abandoned").mkdir()
    newest = support.small_release(tmp_path / "newest", authority, "1.3.0", epoch=5)
    bring(releases[1], prefix)
    report = bring(newest, prefix)
    assert set(report.removed) == {name(releases[0])}
    assert not (prefix / "releases" / "0.0.1-abandoned").exists()
    assert {release.id for release in installed_releases(Prefix(prefix))} == {name(releases[1]), name(newest)}
    rollback(Prefix(prefix), to=None, now=datetime.now(UTC))
    assert collect_garbage(Prefix(prefix)) == []


def test_installing_what_runs_already_changes_nothing(prefix, releases):
    before = sorted(str(path) for path in prefix.rglob("*") if "__pycache__" not in str(path))
    assert bring(releases[0], prefix).outcome == "already installed"
    assert sorted(str(path) for path in prefix.rglob("*") if "__pycache__" not in str(path)) == before


def test_a_dry_run_on_a_fresh_host_writes_nothing(releases, tmp_path):
    report = bring(releases[0], tmp_path / "fresh", dry_run=True)
    assert report.outcome == "checked"
    assert not (tmp_path / "fresh").exists()


def test_the_wrong_trust_root_is_refused_and_writes_nothing(releases, tmp_path):
    other = make_authority(tmp_path / "other")
    with pytest.raises(ApplianceError) as caught:
        install([releases[0].media], tmp_path / "fresh", other.anchor, now=datetime.now(UTC))
    assert caught.value.code == "BUNDLE_ANCHOR"
    assert caught.value.evidence["because"] == "TRUST_THRESHOLD"
    assert not (tmp_path / "fresh").exists()


def test_no_anchor_on_a_fresh_host_is_refused(releases, tmp_path):
    with pytest.raises(ApplianceError) as caught:
        install([releases[0].media], tmp_path / "fresh", None, now=datetime.now(UTC))
    assert caught.value.code == "BUNDLE_ANCHOR"


def test_a_release_signed_by_another_role_is_refused(prefix, authority, tmp_path):
    bad = support.small_release(tmp_path / "bad", authority, "1.5.0", epoch=9, role="import-officer")
    assert refused(bad, prefix).code == "TRUST_ROLE"


def test_a_clock_before_what_is_known_is_refused_with_its_own_code(prefix, releases):
    error = refused(releases[1], prefix, now=datetime(1970, 1, 2, tzinfo=UTC))
    assert error.code == "TRUST_CLOCK_BEHIND"
    error = refused(releases[1], prefix, now=datetime.now(UTC) + timedelta(days=365 * 30))
    assert error.code in ("TRUST_CLOCK_AHEAD", "TRUST_METADATA_EXPIRED")


def test_every_region_of_the_archive_is_covered(authority, tmp_path):
    """A flipped bit anywhere, the trust metadata and signature included, is refused by the full verifier."""
    media = tiny.release(tmp_path / "tiny", authority, "1.0.0").media
    size = media.stat().st_size
    with media.open("r+b", buffering=0) as stream:
        for at in [*range(0, size, max(1, size // 100)), size - 1]:
            (byte,) = os.pread(stream.fileno(), 1, at)
            os.pwrite(stream.fileno(), bytes([byte ^ 1]), at)
            with pytest.raises(ApplianceError):
                verify_media([media], authority.anchor, now=datetime.now(UTC))
            os.pwrite(stream.fileno(), bytes([byte]), at)
    assert verify_media([media], authority.anchor, now=datetime.now(UTC)).repaired == ()


def test_a_prefix_with_something_in_the_way_is_refused(releases, tmp_path):
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / "releases").write_text("in the way")
    assert refused(releases[0], tmp_path / "prefix").code == "INSTALL_PREFIX"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "current").mkdir()
    assert refused(releases[0], tmp_path / "other").code == "INSTALL_PREFIX"


def test_a_damaged_journal_is_refused_and_named(prefix, releases):
    (prefix / "state" / "install" / "transaction.json").write_text("{")
    assert refused(releases[1], prefix).code == "INSTALL_JOURNAL"
    assert Prefix(prefix).active() == name(releases[0])


def test_the_commands_tell_what_runs(prefix, releases, tmp_path):
    runner = CliRunner()
    result = runner.invoke(app, ["install", str(releases[1].media), "--prefix", str(prefix), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["outcome"] == "installed"
    listed = json.loads(runner.invoke(app, ["releases", "--prefix", str(prefix), "--json"]).stdout)
    assert [entry["current"] for entry in listed["releases"]] == [False, True]
    result = runner.invoke(app, ["rollback", "--prefix", str(prefix)])
    assert name(releases[0]) in result.stdout
    result = runner.invoke(app, ["releases", "--prefix", str(tmp_path / "nothing"), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "INSTALL_PREFIX"


def test_an_upgrade_whose_gateway_does_not_come_up_takes_the_host_back(prefix, releases, tmp_path):
    manager, asked = tmp_path / "systemctl", tmp_path / "asked"
    manager.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\ncase $1 in\nis-active) echo active ;;\n'
        f"show) echo 'ExecStart={{ path={prefix}/current/env/bin/appliance ; }}' ;;\n"
        f"restart) readlink {prefix}/current | grep -q {name(releases[0])} ;;\nesac\n"
    )
    manager.chmod(0o755)
    command = ["install", str(releases[1].media), "--prefix", str(prefix), "--json"]
    result = CliRunner().invoke(app, command, env={"SYSTEMCTL": str(manager)})
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "INSTALL_SERVICE"
    assert "the release before runs again" in error["cause"]
    assert Prefix(prefix).active() == name(releases[0])
    assert asked.read_text().splitlines().count("restart appliance-gateway.service") == 2
    result = CliRunner().invoke(app, [*command, "--no-restart"], env={"SYSTEMCTL": str(manager)})
    assert json.loads(result.stdout)["restarted"] is False
    assert Prefix(prefix).active() == name(releases[1])


def test_the_commands_inspect_and_verify(releases, authority, tmp_path):
    runner = CliRunner()
    media = str(releases[0].media)
    seen = json.loads(runner.invoke(app, ["bundle", "inspect", media, "--json"]).stdout)
    assert seen["digest"] == releases[0].built.manifest.digest
    result = runner.invoke(app, ["bundle", "verify", media, "--trust", str(authority.path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verified"] is True
    altered = bytearray(releases[0].media.read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / "bad.tar").write_bytes(altered)
    command = ["bundle", "verify", str(tmp_path / "bad.tar"), "--trust", str(authority.path), "--json"]
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "BUNDLE_MEMBER_DIGEST"
