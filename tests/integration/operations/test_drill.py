"""The drill: every runbook done for real, on an installation made for it; some are killed on the way and repeated."""

import json
import subprocess

import pytest

from appliance.operations.drill.cases import CASES
from tests.support.bundle import repacked_wheel
from tests.support.routing import encoder_files
from tests.support.runbooks import COMMAND, Desk, runbooks

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(900)]  # a busy machine; a minute on a quiet one


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("pyyaml", "uv"):
        filename, data = repacked_wheel(name)
        (folder / filename).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    for name, data in encoder_files().items():
        (folder / name).write_bytes(data)
    return folder


def test_every_case_holds_and_the_scene_is_kept(wheels, encoder, tmp_path):
    desk = Desk(tmp_path, tmp_path / "installation")
    run = desk("drill", "--wheels", wheels, "--encoder", encoder, "--out", tmp_path / "scene")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("held   ") == len(CASES)
    assert "every case held" in run.stdout
    assert (tmp_path / "scene" / "prefix" / "current").exists()
    assert not desk.prefix.exists()


def test_every_runbook_has_its_case():
    drilled = {name for case in CASES for name in case.runbooks}
    assert {path.name for path in runbooks()} - {"drill"} == drilled


def test_a_case_that_does_not_hold_ends_with_1_and_says_what_was_seen(wheels, encoder, tmp_path):
    """A runbook that does nothing is found out, because the drill looks at the outcome."""
    scripts = tmp_path / "scripts"
    (scripts / "lib").mkdir(parents=True)
    for path in runbooks():
        (scripts / path.name).write_text("#!/bin/sh\nexit 0\n")
        (scripts / path.name).chmod(0o755)
    command = [str(COMMAND), "drill", "--scripts", scripts, "--wheels", wheels, "--encoder", encoder, "--json"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    report = json.loads(run.stdout)
    install = report["cases"][0]
    assert not install["held"]
    assert "OPERATION_DRILL_FAILED" in install["seen"]


@pytest.mark.parametrize("missing", ["wheels", "encoder"])
def test_without_wheels_or_an_encoder_it_is_refused_before_anything_is_made(encoder, tmp_path, missing):
    there = {"wheels": tmp_path, "encoder": tmp_path if missing == "encoder" else encoder}
    command = [COMMAND, "drill", "--scripts", runbooks()[0].parent, "--json"]
    command += [word for name, folder in there.items() for word in (f"--{name}", folder)]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    refusal = json.loads(run.stdout)["error"]
    assert refusal["code"] == "OPERATION_DRILL_SETUP"
    assert missing.removesuffix("s") in refusal["cause"]
