"""`appliance explain`: every code at the prompt, for people and for machines."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.errors import catalogue

runner = CliRunner()


@pytest.mark.parametrize("code", sorted(catalogue()))
def test_every_code_is_explained(code):
    result = runner.invoke(app, ["explain", code, "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["remedy"] == catalogue()[code].remedy


def test_all_codes_are_listed():
    result = runner.invoke(app, ["explain", "--json"])
    assert {entry["code"] for entry in json.loads(result.stdout)} == set(catalogue())


def test_an_unknown_code_is_refused_with_the_nearest_ones():
    result = runner.invoke(app, ["explain", "FILE_MISING", "--json"])
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "OPERATION_UNKNOWN_CODE"
    assert "FILE_MISSING" in error["evidence"]["nearest"]


def test_usage_errors_exit_with_two():
    assert runner.invoke(app, ["explain", "--surprise"]).exit_code == 2
    assert runner.invoke(app, ["surprise"]).exit_code == 2


def test_a_part_of_a_code_lists_the_codes_that_hold_it():
    result = runner.invoke(app, ["explain", "trust_clock", "--json"])
    assert result.exit_code == 0
    assert [entry["code"] for entry in json.loads(result.stdout)] == ["TRUST_CLOCK_BEHIND", "TRUST_CLOCK_AHEAD"]
