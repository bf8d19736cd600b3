"""Bytecode made ahead of the health check: in the order of imports, valid to Python, never cut, and nobody runs it."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.bundle import bytecode
from appliance.bundle.bytecode import clear_bytecode, compile_one, compiling_ahead, import_order
from tests.support import children

SOURCES = {
    "app/__init__.py": "from .first import thing\nimport app.second as second, os\n",
    "app/first.py": "def thing():\n    import app.never\n",
    "app/second.py": "from . import (\n    third,  # a comment )\n    fourth,\n)\nfrom lib.part import name\n",
    "app/third.py": "raise SystemExit('nothing of the release runs')\n",
    "app/fourth.py": "x = 1\n",
    "app/never.py": "x = 1\n",
    "lib/__init__.py": "",
    "lib/part.py": "name = 1\n",
    "lib/python2.py": "print 'not for this Python'\n",
}


@pytest.fixture
def environment(tmp_path):
    site = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    for name, text in SOURCES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    return tmp_path / "env"


def site_of(environment: Path) -> Path:
    return next(environment.glob("lib/*/site-packages"))


def compiled(environment: Path) -> set[str]:
    return {path.name.split(".")[0] for path in environment.rglob("*.pyc")}


def test_sources_come_in_the_order_in_which_imports_would_read_them(environment):
    site = site_of(environment)
    order = [str(path.relative_to(site)) for path in import_order(site, ["app", "lib.python2", "gone"])]
    assert order == [
        "app/__init__.py", "app/first.py", "app/second.py", "app/third.py", "app/fourth.py", "lib/__init__.py",
        "lib/part.py", "lib/python2.py",
    ]  # fmt: skip


def test_imports_within_blocks_count_and_those_within_functions_do_not(tmp_path):
    (tmp_path / "app.py").write_text(
        "def early():\n    import a\n\nx = (1,\n    2)\n"
        "try:\n    import b\n    from c import (  # )\n        d,\n    )\nexcept ImportError:\n    import e\n"
        "if x:\n    def inner():\n        import f\n    import g\n    if x:\n        import h\n"
        "if TYPE_CHECKING:\n    import i\nelse:\n    import j\n"
        "class K:\n    import k\n    def method(self):\n        import m\nfrom n import (o,"
    )
    for name in "abcdefghijkmno":
        (tmp_path / f"{name}.py").write_text("")
    assert "".join(path.stem for path in import_order(tmp_path, ["app"])) == "appbceghjkn"


def test_python_takes_the_bytecode_for_its_own(environment):
    source = site_of(environment) / "app" / "fourth.py"
    compile_one(source)
    cached = Path(importlib.util.cache_from_source(source))
    before = cached.stat().st_ino
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fourth; print(fourth.__cached__)"
    done = subprocess.run(
        [sys._base_executable, "-c", code, str(source.parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(cached)
    assert cached.stat().st_ino == before, "Python would have replaced what it does not believe"


def test_the_helper_runs_nothing_and_ends_with_the_block(environment):
    with compiling_ahead(environment, ["app", "lib.python2"], python=sys._base_executable, pass_over_bytes=1):
        deadline = time.monotonic() + 300
        while "part" not in compiled(environment) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert compiled(environment) == {"first", "second", "third", "fourth", "__init__", "part"}, "app/__init__ is left"
    assert not Path(importlib.util.cache_from_source(site_of(environment) / "app" / "__init__.py")).exists()
    assert not [path for path in environment.rglob("*") if path.suffix not in (".py", ".pyc") and path.is_file()]


def test_a_full_disk_leaves_no_cut_bytecode(environment, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)  # the last thing that can fail
    with pytest.raises(OSError, match="No space"):
        compile_one(site_of(environment) / "app" / "fourth.py")
    assert not list(environment.rglob("__pycache__/*"))
    assert bytecode.main([str(site_of(environment)), "0", "app"]) == 0, "it only helps: the installation goes on"


def test_clearing_leaves_sources_alone(environment):
    compile_one(site_of(environment) / "app" / "fourth.py")
    clear_bytecode(environment)
    assert not compiled(environment)
    assert {str(path.relative_to(site_of(environment))) for path in environment.rglob("*.py")} == set(SOURCES)


def test_a_killed_installer_leaves_nobody_behind_who_goes_on_writing(environment, tmp_path):
    pid, helper = tmp_path / "pid", tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 600\n")
    helper.chmod(0o755)

    def installer() -> None:
        with compiling_ahead(environment, ["app"], python=str(helper)):
            while not pid.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    assert children.run(installer) == "killed"
    left = Path("/proc") / pid.read_text().strip()
    deadline = time.monotonic() + 120
    while left.exists() and "Z" not in (left / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left.exists() or (left / "stat").read_text().split()[2] == "Z"
