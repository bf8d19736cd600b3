"""Which release runs: an operator who upgraded asks the program and the gateway, and both name the release."""

import subprocess
import sys
import venv
from pathlib import Path

SOURCES = Path(__file__).parents[3]
ASK = "import appliance; print(appliance.__release__)"


def ask(python: Path) -> str:
    run = subprocess.run(
        [python, "-c", ASK], env={"PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=True, timeout=30
    )
    return run.stdout.strip()


def test_the_release_is_named_whose_environment_runs_by_whatever_path_it_was_reached(tmp_path: Path) -> None:
    home = tmp_path / "prefix" / "releases" / "0.9.0-85046cf33799"
    venv.create(home / "env", symlinks=True)
    current = tmp_path / "prefix" / "current"
    current.symlink_to("releases/0.9.0-85046cf33799")
    assert ask(current / "env/bin/python") == home.name
    assert ask(home / "env/bin/python") == home.name


def test_sources_run_without_a_release(tmp_path: Path) -> None:
    assert ask(Path(sys.executable)) == "None"
