"""`appliance sync`: what is wrong with its arguments is said at once, what is wrong with a pass is a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.cli.sync import _pass
from appliance.registry.cache import Cache
from appliance.registry.directory import DirectoryStore
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
