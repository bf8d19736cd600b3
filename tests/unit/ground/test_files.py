"""Files: read once without following links, replaced whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import files
from appliance.errors import FileError


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
    refused("FILE_NOT_REGULAR", files.read_regular, tmp_path, max_bytes=7)
    refused("FILE_MISSING", files.read_regular, tmp_path / "none", max_bytes=7)
    refused("FILE_TOO_LARGE", files.read_regular, tmp_path / "file", max_bytes=6)


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
