"""The threat model names only checks that are proven: every test it names exists, every threat names one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/threat-model.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:\[(.+?)\])?`", TEXT)


def test_the_threat_model_names_many_tests():
    assert len(NAMED) > 50


@pytest.mark.parametrize(("path", "name", "case"), sorted(set(NAMED)))
def test_a_named_test_exists(path, name, case):
    source = (ROOT / path).read_text()
    functions = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    assert name in functions
    assert not case or f'"{case}"' in source


def test_every_threat_has_a_check_and_a_test():
    section = TEXT.split("## Threats, checks, tests")[1].split("\n## ")[0]
    rows = [
        line for line in section.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "|---"))
    ]
    assert len(rows) > 50
    for row in rows:
        threat, check, test = (cell.strip() for cell in row.strip("|").split("|"))
        assert threat
        assert check
        assert re.fullmatch(r"`tests/.+`", test), row


def test_the_key_ceremony_names_commands_that_exist():
    from typer.main import get_command

    from appliance.cli.ca import app

    group = get_command(app)
    text = (ROOT / "docs/key-ceremony.md").read_text()
    lines = re.findall(r"appliance ca ([a-z]+)((?:[^`\n]|\\\n)*)", text)
    assert lines
    for verb, rest in lines:
        assert verb in group.commands, verb
        command = group.commands[verb]
        if hasattr(command, "commands"):
            sub = rest.split()[0]
            assert sub in command.commands, f"{verb} {sub}"
            command = command.commands[sub]
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\w)(--[a-z][a-z0-9-]*)", rest):
            assert option in known, f"{verb} has no {option}"
