"""`appliance sync`: what is wrong with its arguments is said at once, what is wrong with a pass is a report."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.cli.sync import _line, _pass
from appliance.errors import TrustError
from appliance.registry.cache import Cache
from appliance.registry.directory import DirectoryStore
from appliance.registry.follower import Follower
from tests.unit.registry.conftest import Zone


@pytest.mark.parametrize("once", [["--once"], []])
def test_a_channel_that_cannot_be_is_refused_before_anything_is_waited_for(tmp_path: Path, once: list[str]) -> None:
    named = ["--registry", str(tmp_path), "--trust", str(tmp_path), "--to", str(tmp_path), "--cache", str(tmp_path)]
    done = CliRunner().invoke(app, ["sync", *named, "--channel", "Default", *once, "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == "REGISTRY_NAME"


def test_a_disk_that_fails_is_a_report_and_not_the_end_of_the_sidecar(
    zone: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    (tmp_path / "volume").mkdir()
    host, volume = zone.host(), DirectoryStore(tmp_path / "volume")
    keep = Cache.keep_contact

    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Cache, "keep_contact", fail)
    assert _pass(host, volume)["problem"]["code"] == "FILE_SYSTEM"
    monkeypatch.setattr(Cache, "keep_contact", keep)
    assert _pass(host, volume)["problem"] is None
    assert host.health().version == "1.0.0"


def test_a_clock_that_is_not_believed_makes_no_registry_one_that_was_never_reached(zone: Zone, tmp_path: Path) -> None:
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    (tmp_path / "volume").mkdir()
    volume = DirectoryStore(tmp_path / "volume")
    assert "never reached" not in _line(_pass(zone.host(), volume))

    def in_1970() -> datetime:
        raise TrustError("TRUST_CLOCK_BEHIND", "this host's clock says 1970-01-02 00:00")

    again = Follower(zone.registry, Cache(tmp_path / "host"), "default", material=lambda: zone.material, clock=in_1970)
    again.boot()
    report = _pass(again, volume)
    assert report["problem"]["code"] == "TRUST_CLOCK_BEHIND"
    assert f"last sound answer {report['contact']}" in _line(report)
