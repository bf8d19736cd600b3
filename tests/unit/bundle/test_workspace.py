"""A folder for temporary files is private, and gone afterwards: after an error, after a kill, and only one's own."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from appliance.bundle.stage0.workspace import workspace
from tests.support import children


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_it_is_private_whatever_the_umask_and_gone_at_the_end(place):
    for mask in (0o000, 0o077):
        before = os.umask(mask)
        try:
            with workspace("trust") as folder:
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
                assert folder.parent == place
                (folder / "below").mkdir()
                (folder / "below" / "file").write_bytes(b"x")
        finally:
            os.umask(before)
        assert left(place) == []


def test_it_is_gone_after_an_error(place):
    def fails() -> None:
        with workspace("trust") as folder:
            (folder / "file").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert left(place) == []


def test_what_a_killed_process_left_goes_with_the_next_of_its_kind(place):
    def killed() -> None:
        with workspace("trust") as folder:
            (folder / "below").mkdir()
            (folder / "below" / "file").write_bytes(b"x")
            os.kill(os.getpid(), signal.SIGKILL)

    assert children.run(killed) == "killed"
    assert len(left(place)) == 1
    with workspace("stage0"):
        assert len(left(place)) == 2, "of another purpose: left alone"
    with workspace("trust") as folder:
        assert left(place) == [folder.name]
    assert left(place) == []


def test_what_is_in_use_is_left_alone_however_many_come_and_go(place):
    def coming_and_going() -> None:
        for _ in range(20):
            with workspace("trust") as folder:
                (folder / "file").write_bytes(b"mine")
                with workspace("trust"):
                    assert (folder / "file").read_bytes() == b"mine"

    with workspace("trust") as mine:
        (mine / "file").write_bytes(b"mine")
        assert children.run_together([coming_and_going] * 6) == ["done"] * 6
        assert left(place) == [mine.name]
        assert (mine / "file").read_bytes() == b"mine"
    assert left(place) == []


def test_names_that_only_look_like_one_are_left_alone(place):
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"kept")
    (place / "appliance.trust.link").symlink_to(elsewhere)
    (place / "appliance.trust.file").write_bytes(b"kept")
    (place / "appliance-trust-abc").mkdir()
    before = left(place)
    with workspace("trust"):
        pass
    assert left(place) == before
    assert (elsewhere / "file").read_bytes() == b"kept"


def test_another_user_s_folder_is_left_alone(place, monkeypatch):
    (place / "appliance.trust.theirs").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with workspace("trust"):
        pass
    assert left(place) == ["appliance.trust.theirs"]


def test_a_place_that_may_not_be_listed_will_do(place, monkeypatch):
    scandir = os.scandir

    def forbidden(path):
        if path == str(place):
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with workspace("trust") as folder:
        assert folder.is_dir()
