"""The guide keeps its word: its codes and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from appliance.cli.vendor import app
from appliance.errors import catalogue

GUIDE = (Path(__file__).parents[3] / "docs" / "vendoring.md").read_text()


def test_every_code_of_the_guide_stands_in_the_catalogue():
    assert set(re.findall(r"VENDOR_[A-Z_]+", GUIDE)) <= set(catalogue())


def test_every_command_and_option_of_the_guide_exists():
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    found = re.findall(r"appliance vendor (\w+)([^\n`#&]*)", GUIDE)
    assert {verb for verb, _ in found} == set(commands)
    for verb, rest in found:
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known | {"--no-models"}, verb
