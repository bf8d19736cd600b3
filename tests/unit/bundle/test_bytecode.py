"""Bytecode made ahead of the health check: in the order of imports, valid to Python, never cut, and nobody runs it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from appliance.bundle import bytecode
from appliance.bundle.bytecode import (
    CompilingAhead,
    Wheels,
    cached,
    clear_bytecode,
    compiled,
    import_order,
    write_bytecode,
)
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
def release(tmp_path):
    """A release's folder: its wheel, and the environment that was made of it."""
    wheels, site = tmp_path / "payload" / "wheels", site_of(tmp_path)
    wheels.mkdir(parents=True)
    pack(wheels / "app-1.whl", SOURCES)
    for name, text in SOURCES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    return tmp_path


def pack(path: Path, sources: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in sources.items():
            wheel.writestr(name, text)
    return path


def site_of(release: Path) -> Path:
    return release / "env" / "lib" / "python3.11" / "site-packages"


def in_cache(release: Path) -> set[str]:
    return {path.name.split(".")[0] for path in (release / "env").rglob("*.pyc")}


def until(condition, what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def compile_one(path: Path) -> None:
    write_bytecode(path, path.read_bytes(), compiled(path.read_bytes(), str(path)))


def test_sources_come_in_the_order_in_which_imports_would_read_them(release):
    wheels = Wheels(release / "payload" / "wheels")
    order = list(import_order(wheels, ["app", "lib.python2", "gone"]))
    assert [name for name, _ in order] == [
        "app/__init__.py", "app/first.py", "app/second.py", "app/third.py", "app/fourth.py", "lib/__init__.py",
        "lib/part.py", "lib/python2.py",
    ]  # fmt: skip
    assert all(source.decode() == SOURCES[name] for name, source in order)


def test_imports_within_blocks_count_and_those_within_functions_do_not():
    text = (
        "def early():\n    import a\n\nx = (1,\n    2)\n"
        "try:\n    import b\n    from c import (  # )\n        d,\n    )\nexcept ImportError:\n    import e\n"
        "if x:\n    def inner():\n        import f\n    import g\n    if x:\n        import h\n"
        "if TYPE_CHECKING:\n    import i\nelse:\n    import j\n"
        "class K:\n    import k\n    def method(self):\n        import m\nfrom n import (o,"
    )
    sources = {"app.py": text.encode()} | {f"{name}.py": b"" for name in "abcdefghijkmno"}
    assert "".join(name.removesuffix(".py") for name, _ in import_order(sources, ["app"])) == "appbceghjkn"


def test_a_wheel_s_modules_are_found_where_the_environment_will_have_them(tmp_path):
    pack(
        tmp_path / "a-1.whl",
        {"a.py": "", "a-1.data/purelib/b.py": "", "a-1.data/scripts/c.py": "", "a-1.dist-info/d": ""},
    )
    assert set(Wheels(tmp_path)) == {"a.py", "b.py", "a-1.data/scripts/c.py"}


def test_python_takes_the_bytecode_for_its_own(release):
    source = site_of(release) / "app" / "fourth.py"
    compile_one(source)
    before = cached(source).stat().st_ino
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fourth; print(fourth.__cached__)"
    done = subprocess.run(
        [sys._base_executable, "-c", code, str(source.parent)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(cached(source))
    assert cached(source).stat().st_ino == before, "Python would have replaced what it does not believe"


def test_bytecode_is_never_put_beside_another_source(release):
    source = site_of(release) / "app" / "fourth.py"
    code = compiled(b"x = 2\n", str(source))
    write_bytecode(source, b"x = 2\n", code)
    write_bytecode(source.with_name("gone.py"), b"x = 2\n", code)
    assert not in_cache(release)


@pytest.mark.parametrize("lead", [True, False], ids=["while the environment is made", "beside the import"])
def test_the_helper_runs_nothing_and_ends_with_the_block(release, lead, monkeypatch):
    monkeypatch.setattr(bytecode, "LEFT_TO_THE_IMPORT", 1)
    expected = {"first", "second", "third", "fourth", "__init__", "part"}
    with CompilingAhead(release, ["app", "lib.python2"], python=sys._base_executable) as ahead:
        if lead:
            ahead.start()
        ahead.ready()
        until(lambda: in_cache(release) == expected, "everything is compiled")
    assert cached(site_of(release) / "app" / "__init__.py").exists() == lead, "without a lead the beginning is left"
    assert not [path for path in (release / "env").rglob("*") if path.suffix not in (".py", ".pyc") and path.is_file()]


def test_before_the_environment_is_there_nothing_is_written(release, tmp_path):
    """It has compiled everything, and waits; then the installation ends, or the environment is there at last."""
    for told in (False, True):
        with CompilingAhead(release, ["app"], python=sys._base_executable) as ahead:
            ahead.start()
            helper = ahead._helper
            assert helper is not None
            wchan = Path(f"/proc/{helper.pid}/syscall")
            until(lambda at=wchan: at.read_text().startswith("0 0x0 "), "it reads its standard input")  # read(0, ...)
            assert not in_cache(release)
            if told:
                ahead.ready()
                until(lambda: "part" in in_cache(release), "what waited is written")
        assert helper.poll() is not None
        assert bool(in_cache(release)) == told


def test_wheels_that_are_damaged_or_gone_end_the_help_alone(release):
    next((release / "payload" / "wheels").iterdir()).write_bytes(b"no zip")
    assert bytecode.main([str(release / "payload" / "wheels"), str(release / "env"), "0", "app"]) == 0
    assert bytecode.main([str(release / "nowhere"), str(release / "env"), "0", "app"]) == 0


def test_a_full_disk_leaves_no_cut_bytecode(release, monkeypatch):
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)  # the last thing that can fail
    with pytest.raises(OSError, match="No space"):
        compile_one(site_of(release) / "app" / "fourth.py")
    assert not list((release / "env").rglob("__pycache__/*"))


def test_clearing_leaves_sources_alone(release):
    compile_one(site_of(release) / "app" / "fourth.py")
    clear_bytecode(release / "env")
    assert not in_cache(release)
    assert {str(path.relative_to(site_of(release))) for path in release.rglob("*.py")} == set(SOURCES)


def test_a_killed_installer_leaves_nobody_behind_who_goes_on_writing(release, tmp_path):
    pid, helper = tmp_path / "pid", tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 600\n")
    helper.chmod(0o755)

    def installer() -> None:
        with CompilingAhead(release, ["app"], python=str(helper)) as ahead:
            ahead.start()
            while not pid.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    assert children.run(installer) == "killed"
    left = Path("/proc") / pid.read_text().strip()
    deadline = time.monotonic() + 120
    while left.exists() and "Z" not in (left / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left.exists() or (left / "stat").read_text().split()[2] == "Z"
