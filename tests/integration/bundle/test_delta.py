"""Deltas: only what is missing travels, the result is that of a full release, a wrong base is refused first."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.bundle.delta import build_delta
from appliance.bundle.install import install, verify_media
from appliance.bundle.inventory import read_inventory, take_inventory, write_inventory
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from appliance.bundle.volumes import split
from appliance.cli.main import app
from appliance.errors import ApplianceError
from tests.support import bundle as support
from tests.support import children
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow
CONDUCT = Conduct(python=sys._base_executable)


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
def zone(old, tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("zone") / "prefix"
    install([old.media], prefix, old.anchor, now=datetime.now(UTC), conduct=CONDUCT)
    return prefix


@pytest.fixture(scope="module")
def inventory(zone, authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("inventory") / "inventory.json"
    write_inventory(take_inventory(Prefix(zone), now=datetime.now(UTC)), authority.signer("zone-host"), path)
    return path


@pytest.fixture(scope="module")
def delta(inventory, new, authority, tmp_path_factory):
    base = read_inventory(inventory, material=authority.material, at=datetime.now(UTC)).inventory
    return build_delta(
        [new.media],
        base,
        authority.signer("release-signer"),
        tmp_path_factory.mktemp("delta"),
        anchor=authority.anchor,
        now=datetime.now(UTC),
    )


def environment_files(prefix: Path, release: str) -> dict[str, bytes]:
    """The environment without what its place and the first import put there."""
    files = support.tree(Prefix(prefix).environment(release) / "lib")
    return {name: data for name, data in files.items() if not name.endswith((".pyc", "RECORD", "uv_cache.json"))}


def test_a_delta_carries_only_what_is_missing(delta, new):
    assert [member.path for member in delta.carried] == ["evidence/note.txt"]
    assert delta.size_bytes < new.built.size_bytes / 50
    assert delta.manifest.digest == new.built.manifest.digest


def test_a_delta_installation_ends_at_the_very_digest_of_a_full_one(zone, old, new, delta, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(zone, one, symlinks=True)
    shutil.copytree(zone, two, symlinks=True)
    release = new.built.manifest.release_id
    assert install([delta.path], one, None, now=datetime.now(UTC), conduct=CONDUCT).outcome == "installed"
    assert install([new.media], two, None, now=datetime.now(UTC), conduct=CONDUCT).outcome == "installed"
    assert Prefix(one).active() == Prefix(two).active() == release
    assert support.tree(Prefix(one).payload(release)) == support.tree(Prefix(two).payload(release))
    assert environment_files(one, release) == environment_files(two, release)
    assert (Prefix(one).release(release) / "manifest.json").read_bytes() == (
        Prefix(two).release(release) / "manifest.json"
    ).read_bytes()


def test_a_delta_upon_another_base_is_refused_before_anything_is_written(delta, new, authority, tmp_path):
    fresh = tmp_path / "fresh"
    with pytest.raises(ApplianceError) as caught:
        install([delta.path], fresh, authority.anchor, now=datetime.now(UTC), conduct=CONDUCT)
    assert caught.value.code == "BUNDLE_DELTA_BASE"
    assert not fresh.exists()


def test_a_delta_upon_a_damaged_base_is_refused_and_the_old_release_runs(zone, old, delta, tmp_path):
    prefix = tmp_path / "prefix"
    shutil.copytree(zone, prefix, symlinks=True)
    wheel = next((Prefix(prefix).payload(old.built.manifest.release_id) / "wheels").glob("uv-*.whl"))
    with wheel.open("rb+") as stream:
        stream.seek(1000)
        stream.write(b"rot")
    with pytest.raises(ApplianceError) as caught:
        install([delta.path], prefix, None, now=datetime.now(UTC), conduct=CONDUCT)
    assert caught.value.code == "BUNDLE_DELTA_BASE"
    assert caught.value.evidence["files"] == [f"wheels/{wheel.name}"]
    assert Prefix(prefix).active() == old.built.manifest.release_id


def test_a_delta_in_volumes_with_one_lost_is_installed(zone, new, delta, tmp_path):
    prefix = tmp_path / "prefix"
    shutil.copytree(zone, prefix, symlinks=True)
    volumes = split(delta.path, tmp_path / "volumes", volume_bytes=400_000)
    volumes[0].unlink()
    report = install([tmp_path / "volumes"], prefix, None, now=datetime.now(UTC), conduct=CONDUCT)
    assert report.repaired
    assert Prefix(prefix).active() == new.built.manifest.release_id


def test_a_delta_killed_midway_is_taken_up_again(zone, new, delta, tmp_path):
    prefix = tmp_path / "prefix"
    shutil.copytree(zone, prefix, symlinks=True)

    def bring(checkpoint=lambda _: None):
        conduct = Conduct(python=sys._base_executable, checkpoint=checkpoint)
        return install([delta.path], prefix, None, now=datetime.now(UTC), conduct=conduct)

    for number in (2, 3, 4):
        assert children.run(lambda n=number: bring(children.kill_at(n))) == "killed"
    assert bring().outcome == "installed"
    assert Prefix(prefix).active() == new.built.manifest.release_id


def test_a_delta_is_verified_like_any_release(delta, authority):
    verified = verify_media([delta.path], authority.anchor, now=datetime.now(UTC))
    assert verified.verdict.release.delta is not None
    data = bytearray(delta.path.read_bytes())
    data[-1500] ^= 1
    delta.path.write_bytes(data)
    with pytest.raises(ApplianceError) as caught:
        verify_media([delta.path], authority.anchor, now=datetime.now(UTC))
    data[-1500] ^= 1
    delta.path.write_bytes(data)
    assert caught.value.code in ("BUNDLE_MEMBER_DIGEST", "BUNDLE_PADDING", "BUNDLE_ORDER", "BUNDLE_HEADER")


def test_an_inventory_signed_by_somebody_else_is_refused(inventory, zone, authority, tmp_path):
    other = tmp_path / "inventory.json"
    write_inventory(take_inventory(Prefix(zone), now=datetime.now(UTC)), authority.signer("producer"), other)
    with pytest.raises(ApplianceError) as caught:
        read_inventory(other, material=authority.material, at=datetime.now(UTC))
    assert caught.value.code == "TRUST_ROLE"


def test_a_signed_inventory_with_a_key_too_many_is_refused(zone, authority, tmp_path):
    statement = take_inventory(Prefix(zone), now=datetime.now(UTC)) | {"surprise": 1}
    write_inventory(statement, authority.signer("zone-host"), tmp_path / "inventory.json")
    with pytest.raises(ApplianceError) as caught:
        read_inventory(tmp_path / "inventory.json", material=authority.material, at=datetime.now(UTC))
    assert caught.value.code == "BUNDLE_INVENTORY"


def test_a_signed_inventory_whose_version_would_lead_the_delta_elsewhere_is_refused(zone, authority, tmp_path):
    honest = take_inventory(Prefix(zone), now=datetime.now(UTC))
    for version in ("1.0/../../../../tmp/evil", "../1.0", "1.0\n", "/1.0", ""):
        write_inventory(honest | {"version": version}, authority.signer("zone-host"), tmp_path / "inventory.json")
        with pytest.raises(ApplianceError) as caught:
            read_inventory(tmp_path / "inventory.json", material=authority.material, at=datetime.now(UTC))
        assert caught.value.code == "BUNDLE_INVENTORY", version


def test_a_delta_to_the_same_release_is_refused(old, inventory, authority, tmp_path):
    base = read_inventory(inventory, material=authority.material, at=datetime.now(UTC)).inventory
    with pytest.raises(ApplianceError) as caught:
        build_delta(
            [old.media],
            base,
            authority.signer("release-signer"),
            tmp_path,
            anchor=authority.anchor,
            now=datetime.now(UTC),
        )
    assert caught.value.code == "BUNDLE_DELTA_BASE"


def test_the_commands_export_an_inventory_and_build_the_delta(zone, new, authority, tmp_path):
    runner = CliRunner()
    out = tmp_path / "inventory.json"
    result = runner.invoke(
        app, ["inventory", "--prefix", str(zone), "--out", str(out), "--authority", str(authority.path), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["digest"]
    command = ["bundle", "delta", str(new.media), "--base", str(out), "--out", str(tmp_path), "--json"]
    result = runner.invoke(app, [*command, "--authority", str(authority.path)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["carried"] == 1
    assert report["bytes"] < report["full_bytes"] / 50
