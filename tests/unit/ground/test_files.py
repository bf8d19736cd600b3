"""Files: read once without following links, replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import files
from appliance.errors import FileError
from tests.support import children


def refused(code, action, *args, **kwargs):
    with pytest.raises(FileError) as refusal:
        action(*args, **kwargs)
    assert refusal.value.code == code


@pytest.mark.parametrize("name", ["a", "a/b.txt", ".hidden", "v1.2+cpu/_x-y.whl", "a" * 255])
def test_honest_names_pass(name):
    assert files.safe_relative(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a//b",
        "../a",
        "a/..",
        "a/./b",
        ".",
        "a/",
        "a\\b",
        "a\nb",
        "a b",
        "a:b",
        "~a",
        "-rf",
        "con",
        "x/NUL.txt",
        "aux.tar",
        "a" * 256,
        "a/" * 600 + "a",
        "a.",
        "é",
        "a\x00b",
        "..hidden/../a",
    ],
)
def test_names_that_do_not_travel_are_refused(name):
    refused("FILE_UNSAFE_NAME", files.safe_relative, name)


@given(st.text(max_size=60))
def test_an_accepted_name_stays_below_its_folder(name):
    try:
        files.safe_relative(name)
    except FileError:
        return
    assert os.path.normpath(name) == name
    assert not name.startswith(("/", "..", "-"))


def test_a_regular_file_is_read_and_a_link_is_not(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert files.read_regular(tmp_path / "file", max_bytes=7) == b"content"
    refused("FILE_NOT_REGULAR", files.read_regular, tmp_path / "link", max_bytes=7)
    refused("FILE_NOT_REGULAR", files.read_regular, tmp_path / "pipe", max_bytes=7)
    with pytest.raises(FileError, match=re.escape(f"{tmp_path} is not a regular file")) as refusal:
        files.read_regular(tmp_path, max_bytes=7)
    assert refusal.value.code == "FILE_NOT_REGULAR"
    refused("FILE_MISSING", files.read_regular, tmp_path / "none", max_bytes=7)
    refused("FILE_TOO_LARGE", files.read_regular, tmp_path / "file", max_bytes=6)


def test_a_bound_of_gigabytes_takes_no_more_memory_than_the_file_has(tmp_path):
    (tmp_path / "small").write_bytes(b"content")
    with (tmp_path / "hole").open("wb") as stream:
        stream.truncate(3 * 1024**3)
    tracemalloc.start()
    try:
        assert files.read_regular(tmp_path / "small", max_bytes=2 * 1024**3) == b"content"
        refused("FILE_TOO_LARGE", files.read_regular, tmp_path / "hole", max_bytes=2 * 1024**3)
        assert tracemalloc.get_traced_memory()[1] < 1024**2
    finally:
        tracemalloc.stop()


def test_a_file_of_the_kernel_s_that_tells_no_size_is_read_whole():
    assert files.read_regular("/proc/self/cmdline", max_bytes=10**6) == Path("/proc/self/cmdline").read_bytes() != b""
    refused("FILE_TOO_LARGE", files.read_regular, "/proc/self/cmdline", max_bytes=3)


def test_a_tree_is_read_whole_or_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b").write_bytes(b"22")
    (tmp_path / "a").write_bytes(b"1")
    assert files.read_tree(tmp_path, max_files=2, max_bytes=3) == {"a": b"1", "sub/b": b"22"}
    refused("FILE_TOO_LARGE", files.read_tree, tmp_path, max_files=1, max_bytes=3)
    refused("FILE_TOO_LARGE", files.read_tree, tmp_path, max_files=2, max_bytes=2)
    (tmp_path / "sub/up").symlink_to(tmp_path)
    refused("FILE_NOT_REGULAR", files.read_tree, tmp_path, max_files=9, max_bytes=99)


def test_an_atomic_write_replaces_whole_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "state.json"
    files.write_atomic(target, b"old")
    files.write_atomic(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state.json"]


def killed_while_replacing(target: Path) -> None:
    def replace() -> None:
        with files.replaced(target) as stream:
            stream.write(b"half")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    assert children.run(replace) == "killed"


def test_what_a_killed_writer_left_goes_with_the_next_write_of_the_same_file(tmp_path):
    target, other = tmp_path / "state.json", tmp_path / "other.json"
    files.write_atomic(target, b"old")
    for _ in range(3):
        killed_while_replacing(target)
        killed_while_replacing(other)
        assert target.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 3, "they do not pile up"
    files.write_atomic(target, b"new")
    assert sorted(os.listdir(tmp_path)) == [".other.json.0.tmp", "state.json"]
    files.write_atomic(other, b"new")
    assert sorted(os.listdir(tmp_path)) == ["other.json", "state.json"]


def test_a_rival_s_file_in_progress_is_left_alone_and_the_last_to_end_wins(tmp_path):
    target = tmp_path / "state.json"
    with files.replaced(target) as first:
        first.write(b"first")
        with files.replaced(target) as second:
            second.write(b"second")
            files.write_atomic(target, b"third")
            assert target.read_bytes() == b"third"
        assert target.read_bytes() == b"second"
    assert target.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_writer_killed_beside_a_rival_is_cleared_away_as_well(tmp_path):
    target = tmp_path / "state.json"
    with files.replaced(target) as first:
        first.write(b"first")
        killed_while_replacing(target)
        assert sorted(os.listdir(tmp_path)) == [".state.json.0.tmp", ".state.json.1.tmp"]
    files.write_atomic(target, b"new")
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_writer_killed_beside_many_rivals_is_cleared_away_when_they_have_gone(tmp_path):
    target = tmp_path / "state.json"
    with contextlib.ExitStack() as rivals:
        for _ in range(8):
            rivals.enter_context(files.replaced(target)).write(b"rival")
        killed_while_replacing(target)
    assert sorted(os.listdir(tmp_path)) == [".state.json.8.tmp", "state.json"]
    files.write_atomic(target, b"new")
    assert os.listdir(tmp_path) == ["state.json"]


def test_many_writers_and_deaths_at_once_leave_one_whole_file_and_nothing_else(tmp_path):
    target = tmp_path / "state.json"

    def writes(letter: bytes) -> None:
        for _ in range(60):
            files.write_atomic(target, letter * 5000)
            assert len(set(target.read_bytes())) == 1

    def dies() -> None:
        for _ in range(10):
            killed_while_replacing(target)

    outcomes = children.run_together([*(lambda at=at: writes(bytes([at])) for at in b"abcdef"), dies])
    assert outcomes == ["done"] * 7
    assert len(target.read_bytes()) == 5000
    files.write_atomic(target, b"last")
    assert os.listdir(tmp_path) == ["state.json"]


def test_what_only_has_the_name_of_a_leftover_is_left_alone(tmp_path):
    target = tmp_path / "state.json"
    precious = tmp_path / "precious"
    precious.write_bytes(b"kept")
    (tmp_path / ".state.json.0.tmp").symlink_to(precious)
    (tmp_path / ".state.json.1.tmp").mkdir()
    os.mkfifo(tmp_path / ".state.json.2.tmp")
    before = sorted(os.listdir(tmp_path))
    files.write_atomic(target, b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "state.json"])
    assert (target.read_bytes(), precious.read_bytes()) == (b"new", b"kept")


def test_another_user_s_leftover_is_left_alone(tmp_path, monkeypatch):
    target = tmp_path / "state.json"
    killed_while_replacing(target)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    files.write_atomic(target, b"new")
    assert sorted(os.listdir(tmp_path)) == [".state.json.0.tmp", "state.json"]


WRITE_ON_A_FULL_DISK = """
import subprocess, sys
from pathlib import Path
from appliance import files
from appliance.errors import FileError
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root], check=True)
files.write_atomic(root / "state", b"old")
try:
    files.write_atomic(root / "state", b"x" * 262144)
except FileError as error:
    print(error.code, (root / "state").read_bytes(), [p.name for p in root.iterdir()])
subprocess.run(["mount", "-o", "remount,ro", root], check=True)
try:
    files.write_atomic(root / "state", b"new")
except FileError as error:
    print(error.code, (root / "state").read_bytes())
"""


def test_a_write_on_a_full_or_read_only_disk_leaves_the_old_file(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-c", WRITE_ON_A_FULL_DISK, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "FILE_NO_SPACE b'old' ['state']\nFILE_PERMISSION b'old'\n"


def test_what_the_system_refuses_gets_a_code(tmp_path):
    (tmp_path / "twice").mkdir()
    with pytest.raises(FileError) as refusal, files.translated(tmp_path):
        (tmp_path / "twice").mkdir()
    assert refusal.value.code == "FILE_EXISTS"


HOLD_A_LOCK = """
import sys, time
from pathlib import Path
from appliance import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_excludes_others_and_dies_with_its_holder(tmp_path):
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD_A_LOCK, lock], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FileError) as refusal, files.locked(lock, wait=False):
            pass
        assert refusal.value.code == "FILE_LOCKED"
    finally:
        holder.kill()
        holder.wait()
    with files.locked(lock, wait=False):
        pass


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a device"])
def test_what_is_no_file_is_not_replaced_by_one(kind, tmp_path):
    """`--out /dev/stdout`, by root, would take the device away from the whole host."""
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif os.geteuid():
        path = Path("/dev/null")  # which only root could harm
    else:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    before = path.lstat()
    with pytest.raises(FileError) as refusal:
        files.write_atomic(path, b"text")
    assert refusal.value.code == "FILE_NOT_REGULAR"
    assert os.path.samestat(path.lstat(), before)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_a_link_to_a_file_or_to_nothing_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "kept").write_bytes(b"kept")
    for name, target in (("link", "kept"), ("dangling", "nothing")):
        (tmp_path / name).symlink_to(target)
        files.write_atomic(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"kept"
