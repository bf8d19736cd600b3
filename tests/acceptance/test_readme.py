"""The README tells the truth: its commands exist, its table is the command's own help, its paths are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_command_table_is_what_the_commands_say():
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "readme-commands", "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_make_target_named_is_one():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test"} <= named <= targets


def test_every_path_named_is_there():
    named = re.findall(r"`((?:docs|scripts|tests|vendor|bundle|ca)/[\w./-]*)`", README)
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_continuous_integration_calls_the_readmes_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
