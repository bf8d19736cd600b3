"""Removing a release: all of it, nothing beside it, and without a stop where something cannot go."""

from __future__ import annotations

import subprocess
import sys

import pytest

from appliance.bundle.stage0.journal import remove_tree


@pytest.fixture
def tree(tmp_path):
    """A deep and a broad tree that points outside, beside what it points to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    root = tmp_path / "root"
    (root / "/".join("abcdefgh" * 8)).mkdir(parents=True)
    for number in range(40):
        (root / f"broad-{number}").mkdir()
        (root / f"broad-{number}" / "file").write_text("gone")
    (root / "a" / "to-a-folder").symlink_to(outside)
    (root / "a" / "to-a-file").symlink_to(outside / "kept")
    (root / "a" / "to-nothing").symlink_to("nothing")
    (root / "b-hard-link").hardlink_to(outside / "kept")
    return root


def test_everything_in_a_folder_goes_and_nothing_that_it_points_to(tree):
    remove_tree(tree)
    assert not tree.exists()
    assert [path.name for path in (tree.parent / "outside").iterdir()] == ["kept"]
    remove_tree(tree)  # what is gone already is no mistake


def test_a_link_in_the_place_of_the_folder_is_not_followed(tree):
    link = tree.parent / "link"
    link.symlink_to(tree)
    remove_tree(link)
    assert (tree / "broad-0" / "file").is_file()


def test_what_cannot_go_stays_and_everything_else_goes(tree):
    busy = tree / "broad-7" / "mounted"
    busy.mkdir()
    script = (
        "import pathlib, sys; from appliance.bundle.stage0.journal import remove_tree;"
        "remove_tree(pathlib.Path(sys.argv[1]))"
    )
    command = 'mount -t tmpfs none "$1" && exec "$2" -c "$3" "$4"'
    subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, "sh", str(busy), sys.executable, script, str(tree)], check=True
    )
    assert [str(path.relative_to(tree)) for path in tree.rglob("*")] == ["broad-7", "broad-7/mounted"]
