"""Volumes: any order, any place; the bad one named; one lost or damaged rebuilt, with signed bytes only."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.bundle.inputs import Payload
from appliance.bundle.stage0.extract import check_members
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.media import choose, open_sources
from appliance.bundle.stage0.refusal import Refused
from appliance.bundle.volumes import split
from appliance.cli.main import app
from appliance.errors import BundleError, FileError
from tests.support import bundle as support
from tests.support import children

VOLUME_BYTES = 30_000


@pytest.fixture
def built(tmp_path):
    content = random.Random(7)
    payload = [Payload(f"data/{n}.bin", content.randbytes(11_000 + n)) for n in range(9)]
    return support.archive(tmp_path / "archive", payload)


@pytest.fixture
def volumes(built, tmp_path) -> list[Path]:
    paths = split(built.path, tmp_path / "volumes", volume_bytes=VOLUME_BYTES)
    assert len(paths) >= 5
    return list(paths)


@pytest.fixture
def honest(built, tmp_path) -> dict[str, bytes]:
    support.unpack([built.path], tmp_path / "honest")
    return support.tree(tmp_path / "honest")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_no_volume_is_larger_than_asked_for_and_nothing_of_the_archive_is_lost(built, volumes):
    assert all(path.stat().st_size <= VOLUME_BYTES for path in volumes)
    assert built.path.exists()


def test_volumes_are_read_in_any_order_and_from_any_place(volumes, honest, tmp_path):
    places = []
    for number, path in enumerate(reversed(volumes)):
        place = tmp_path / f"mount-{number}"
        place.mkdir()
        shutil.move(path, place / path.name)
        places.append(place if number % 2 else place / path.name)
    before = [support.tree(path) if path.is_dir() else path.read_bytes() for path in places]
    _, repaired = support.unpack(places, tmp_path / "target")
    assert support.tree(tmp_path / "target") == honest
    assert repaired == []
    assert [support.tree(path) if path.is_dir() else path.read_bytes() for path in places] == before, (
        "media are never changed"
    )


def test_volumes_under_names_that_a_file_system_has_shortened_are_found_in_their_folders(volumes, honest, tmp_path):
    for number, volume in enumerate(volumes):
        folder = tmp_path / f"disc-{number}"
        folder.mkdir()
        shutil.copy(volume, folder / f"RELEAS~1.V{number:02}")
        (folder / "README.TXT").write_text("bring it to the zone")
        (folder / "LINK.V01").symlink_to("/dev/zero")
    _, repaired = support.unpack([tmp_path / f"disc-{number}" for number in range(len(volumes))], tmp_path / "out")
    assert support.tree(tmp_path / "out") == honest
    assert repaired == []


def test_any_one_missing_volume_is_rebuilt_and_named(volumes, honest, tmp_path):
    for number, path in enumerate(volumes[:-1]):
        rest = [other for other in volumes if other != path]
        _, repaired = support.unpack(rest, tmp_path / f"target-{number}")
        assert support.tree(tmp_path / f"target-{number}") == honest
        assert len(repaired) == 1
        assert f"volume {number + 1} of {len(volumes) - 1} is missing" in repaired[0]


def test_any_one_damaged_volume_is_rebuilt_and_named(volumes, honest, tmp_path):
    for number, path in enumerate(volumes[:-1]):
        good = path.read_bytes()
        flip(path, len(good) - 1500)
        _, repaired = support.unpack(volumes, tmp_path / f"target-{number}")
        assert support.tree(tmp_path / f"target-{number}") == honest
        assert len(repaired) == 1
        assert str(path) in repaired[0]
        path.write_bytes(good)


def test_a_volume_cut_short_is_rebuilt(volumes, honest, tmp_path):
    for number, path in enumerate(volumes[:-1]):
        good = path.read_bytes()
        path.write_bytes(good[: len(good) * 2 // 3])
        _, repaired = support.unpack(volumes, tmp_path / f"target-{number}")
        assert support.tree(tmp_path / f"target-{number}") == honest
        assert len(repaired) == 1
        path.write_bytes(good)


def test_a_volume_whose_head_is_damaged_is_rebuilt(volumes, honest, tmp_path):
    head = volumes[0].read_bytes().index(b"volume/001")
    for number, at in enumerate((3, 700, head - 2000, head - 1, head + 5, head + 130)):
        good = volumes[1].read_bytes()
        flip(volumes[1], at)
        _, repaired = support.unpack(volumes, tmp_path / f"target-{number}")
        assert support.tree(tmp_path / f"target-{number}") == honest
        assert len(repaired) == 1
        assert str(volumes[1]) in repaired[0]
        volumes[1].write_bytes(good)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_volume_that_is_no_file_any_more_is_rebuilt_where_its_folder_was_named(volumes, honest, tmp_path, kind):
    volumes[1].unlink()
    {"link": lambda path: path.symlink_to(volumes[2]), "folder": Path.mkdir, "pipe": os.mkfifo}[kind](volumes[1])
    _, repaired = support.unpack([volumes[0].parent], tmp_path / "target")
    assert support.tree(tmp_path / "target") == honest
    assert len(repaired) == 1
    with pytest.raises(Refused) as caught:
        support.unpack([volumes[1]], tmp_path / "other")
    assert caught.value.code == "BUNDLE_NO_MEDIA"


def test_volumes_each_damaged_at_another_place_are_all_rebuilt(volumes, honest, tmp_path):
    """Parity mends one piece in every stripe, whichever volume it lies on."""
    size = volumes[0].stat().st_size
    flip(volumes[0], size - 1024 - 1)
    flip(volumes[1], size - 1024 - 2 * support.SEGMENT_BYTES)
    _, repaired = support.unpack(volumes, tmp_path / "target")
    assert support.tree(tmp_path / "target") == honest
    assert len(repaired) == 2


def test_without_parity_a_damaged_volume_is_named(volumes, tmp_path):
    flip(volumes[2], volumes[2].stat().st_size - 2000)
    with pytest.raises(Refused) as caught:
        support.unpack(volumes[:-1], tmp_path / "target")
    assert caught.value.code == "BUNDLE_VOLUME_DAMAGED"
    assert caught.value.evidence["volume"] == 3
    assert caught.value.evidence["file"] == str(volumes[2])


def test_missing_volumes_are_named_when_parity_cannot_help(volumes, tmp_path):
    for kept, missing in ((volumes[:-1][1:], [1]), (volumes[2:], [1, 2]), (volumes[-1:], None)):
        with pytest.raises(Refused) as caught:
            support.unpack(kept, tmp_path / "target")
        assert caught.value.code == "BUNDLE_VOLUME_MISSING"
        assert missing is None or caught.value.evidence["missing"] == missing


def test_a_damaged_volume_and_a_damaged_parity_are_refused(volumes, tmp_path):
    at = volumes[0].stat().st_size - 1024 - 100
    flip(volumes[0], at)
    flip(volumes[-1], at)
    with pytest.raises(Refused) as caught:
        support.unpack(volumes, tmp_path / "target")
    assert caught.value.code == "BUNDLE_VOLUME_DAMAGED"


def test_a_forged_parity_cannot_bring_in_unsigned_bytes(volumes, tmp_path):
    forged = bytearray(volumes[-1].read_bytes())
    forged[-20_000:-1024] = random.Random(1).randbytes(18_976)
    volumes[-1].write_bytes(forged)
    with pytest.raises(Refused) as caught:
        support.unpack(volumes[1:], tmp_path / "target")
    assert caught.value.code == "BUNDLE_VOLUME_DAMAGED"


def test_volumes_of_another_release_beside_are_refused(volumes, tmp_path):
    other = support.archive(tmp_path / "other", [Payload("data/x.bin", b"y" * 90_000)], version="2.0.0")
    others = split(other.path, tmp_path / "volumes", volume_bytes=VOLUME_BYTES)
    with pytest.raises(Refused) as caught:
        support.unpack([*volumes, *others], tmp_path / "target")
    assert caught.value.code == "BUNDLE_MIXED_MEDIA"


def test_volumes_of_two_cuts_of_one_release_are_refused(built, volumes, tmp_path):
    others = split(built.path, tmp_path / "others", volume_bytes=2 * VOLUME_BYTES)
    with pytest.raises(Refused) as caught:
        support.unpack([volumes[0], *others], tmp_path / "target")
    assert caught.value.code == "BUNDLE_MIXED_MEDIA"


def test_cutting_again_replaces_the_older_set(built, volumes, honest, tmp_path):
    again = split(built.path, tmp_path / "volumes", volume_bytes=3 * VOLUME_BYTES)
    assert {path.name for path in (tmp_path / "volumes").iterdir() if path.suffix != ".sha256"} == {
        path.name for path in again
    }
    support.unpack([tmp_path / "volumes"], tmp_path / "target")
    assert support.tree(tmp_path / "target") == honest


def test_bytes_behind_a_slice_are_refused(volumes, tmp_path):
    good = volumes[0].read_bytes()
    for altered in (good + b"x" * 512, good[:-512] + b"x" * 512):
        volumes[0].write_bytes(altered)
        with pytest.raises(Refused) as caught:
            support.unpack(volumes, tmp_path / "target")
        assert caught.value.code == "BUNDLE_TRAILING"


def test_every_subset_of_volumes_ends_whole_or_refused(volumes, honest, tmp_path):
    for count in range(1, len(volumes) + 1):
        for number, subset in enumerate(itertools.combinations(volumes, count)):
            target = tmp_path / f"target-{count}-{number}"
            try:
                support.unpack(subset, target)
            except Refused as refused:
                assert refused.code == "BUNDLE_VOLUME_MISSING"
                assert count < len(volumes) - 1
            else:
                assert support.tree(target) == honest
                assert count >= len(volumes) - 1


@pytest.mark.parametrize("size", [1, 512, 5_000])
def test_a_volume_size_without_room_is_refused(built, tmp_path, size):
    with pytest.raises(BundleError) as caught:
        split(built.path, tmp_path / "volumes", volume_bytes=size)
    assert caught.value.code == "BUNDLE_VOLUME_SIZE"


def test_a_release_that_fits_into_one_volume_is_one(built, honest, tmp_path):
    paths = split(built.path, tmp_path / "volumes", volume_bytes=10**7, parity=False)
    assert len(paths) == 1
    support.unpack(paths, tmp_path / "target")
    assert support.tree(tmp_path / "target") == honest


def split_by_command(archive: Path, out: Path, size: str = str(VOLUME_BYTES)):
    words = ["bundle", "split", str(archive), "--out", str(out), "--volume-size", size, "--json"]
    return CliRunner().invoke(app, words)


def test_a_release_that_is_there_already_is_cut_without_a_key(built, volumes, tmp_path):
    before = built.path.read_bytes()
    done = split_by_command(built.path, tmp_path / "again")
    assert done.exit_code == 0, done.output
    names = [Path(volume["path"]).name for volume in json.loads(done.stdout)["volumes"]]
    assert names == [path.name for path in volumes]
    for path in volumes:  # cut at any time, it is the same cut
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert built.path.read_bytes() == before


def test_the_folder_of_an_archive_and_its_volumes_stands_for_the_archive(built, volumes, tmp_path):
    for path in volumes[:2]:
        shutil.copy(path, built.path.parent)
    assert split_by_command(built.path.parent, tmp_path / "again").exit_code == 0
    assert (tmp_path / "again" / volumes[-1].name).read_bytes() == volumes[-1].read_bytes()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: data[:-1], "BUNDLE_TRUNCATED"),
        (lambda data: data[: len(data) // 2], "BUNDLE_TRUNCATED"),
        (lambda data: data + b"x", "BUNDLE_TRAILING"),
        (lambda data: data[:-20_000] + bytes([data[-20_000] ^ 1]) + data[-19_999:], "BUNDLE_MEMBER_DIGEST"),
        (lambda _: b"no release at all", "BUNDLE_TRUNCATED"),
    ],
    ids=["a byte short", "half a copy", "a byte too many", "a flipped byte", "something else"],
)
def test_a_bad_copy_is_not_cut(built, tmp_path, damage, code):
    bad = tmp_path / built.path.name
    bad.write_bytes(damage(built.path.read_bytes()))
    done = split_by_command(bad, tmp_path / "out")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["code"] == code
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_what_a_killed_cut_left_goes_with_the_next_one(built, volumes, honest, tmp_path):
    out = volumes[0].parent
    before = sorted(out.iterdir())

    def killed(_text: str, done: int | None, _all: int | None) -> None:
        if done and done > 2 * support.SEGMENT_BYTES:
            os.kill(os.getpid(), signal.SIGKILL)

    def cut() -> None:
        split(built.path, out, volume_bytes=VOLUME_BYTES, progress=killed)

    assert children.run(cut) == "killed"
    assert len(list(out.glob(".*.tmp"))) == len(volumes)
    support.unpack(volumes, tmp_path / "target")  # the older set is whole
    assert support.tree(tmp_path / "target") == honest
    split(built.path, out, volume_bytes=VOLUME_BYTES)
    assert sorted(out.iterdir()) == before


def test_a_file_in_the_place_of_the_folder_is_named(built, tmp_path):
    (tmp_path / "out").write_text("")
    assert json.loads(split_by_command(built.path, tmp_path / "out").stdout)["error"]["code"] == "FILE_EXISTS"


def test_volumes_for_which_there_is_no_room_are_refused_before_the_first_byte(built, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()

    def cut() -> None:
        children.on_small_disk(disk, 64 * 1024)
        try:
            split(built.path, disk, volume_bytes=VOLUME_BYTES)
        except FileError as refusal:
            assert refusal.evidence["needed_bytes"] > built.size_bytes > refusal.evidence["free_bytes"]
            assert list(disk.iterdir()) == []
            raise

    assert children.run(cut) == "FILE_NO_SPACE"


def test_a_volume_is_not_cut_again(volumes, tmp_path):
    done = split_by_command(volumes[0], tmp_path / "out")
    assert json.loads(done.stdout)["error"]["code"] == "BUNDLE_NO_MEDIA"
    assert "volumes are not cut again" in json.loads(done.stdout)["error"]["remedy"]


def unreadable(source):
    """The same file of the media, but every read of it fails as a scratched disc's does (EIO)."""
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)  # nothing is mapped at these offsets
    return replace(source, descriptor=descriptor)


def test_a_disc_that_cannot_be_read_is_damage_that_parity_mends(volumes, honest, tmp_path):
    repaired: list[str] = []
    with open_sources(volumes) as (sources, _):
        release, chosen, _ = choose(sources, support.stand_in_authenticate)
        scratched = [unreadable(source) if source.index == 1 else source for source in chosen]
        check_members(release_region(scratched, release, [], repaired.append), release.manifest.members)
        assert len(repaired) == 1
        assert str(volumes[1]) in repaired[0]
        without = [source for source in scratched if source.index != -1]
        with pytest.raises(Refused) as caught:
            check_members(release_region(without, release, [], repaired.append), release.manifest.members)
        assert caught.value.code == "BUNDLE_VOLUME_DAMAGED"
        assert caught.value.evidence["fault"] == "Input/output error"


def test_a_single_disc_that_cannot_be_read_is_called_that(built):
    with open_sources([built.path]) as (sources, _):
        release, chosen, _ = choose(sources, support.stand_in_authenticate)
        with pytest.raises(Refused) as caught:
            check_members(
                release_region([unreadable(chosen[0])], release, [], lambda _: None), release.manifest.members
            )
    assert caught.value.code == "BUNDLE_UNREADABLE"
