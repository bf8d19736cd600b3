"""Stage 0 is one file, joined from the shared modules and nothing else, and runs on the standard library alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.bundle.stage0 import assemble
from appliance.errors import catalogue

COMMITTED = Path(__file__).parents[3] / "bundle" / "stage0" / "stage0.py"


def test_the_committed_file_is_what_the_modules_give():
    assert COMMITTED.read_text() == assemble.assemble(), (
        "write it anew: python -m appliance.bundle.stage0.assemble > bundle/stage0/stage0.py"
    )


def test_every_module_stands_in_it_line_for_line():
    lines = COMMITTED.read_text().splitlines()
    for name in assemble.MODULES:
        source = assemble.module_source(name).splitlines()
        start = lines.index(f"# ---- {name}.py ----") + 2
        left_out = [line for line in source if line not in lines[start : start + len(source)]]
        joined = " ".join(left_out)
        assert "def " not in joined
        assert "class " not in joined
        assert all(line.startswith(("from .", "from __future__", "    ", ")")) for line in left_out), left_out


def test_it_imports_the_standard_library_alone():
    imported = set()
    for node in ast.walk(ast.parse(COMMITTED.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names


def test_it_starts_on_a_bare_python():
    done = subprocess.run(
        [sys._base_executable, "-I", "-S", str(COMMITTED), "--help"], capture_output=True, text=True, check=True
    )
    assert "--trust-sha256" in done.stdout


def test_wrong_arguments_are_a_usage_error():
    for arguments in ([], ["media", "--prefix", "p"], ["m", "--prefix", "p", "--trust", "a", "--trust-sha256", "b"]):
        done = subprocess.run([sys._base_executable, str(COMMITTED), *arguments], capture_output=True, check=False)
        assert done.returncode == 2


def test_it_knows_the_remedy_of_every_code_it_can_say():
    text = COMMITTED.read_text()
    for code, entry in catalogue().items():
        if entry.area in ("bundle", "install"):
            assert f'"{code}": ' in text


def test_two_modules_that_define_one_name_cannot_be_joined(monkeypatch):
    monkeypatch.setattr(assemble, "MODULES", ("ustar", "ustar"))
    with pytest.raises(ValueError, match="is defined in ustar and in ustar"):
        assemble.assemble()
