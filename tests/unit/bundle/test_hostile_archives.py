"""Archives and media made to harm: every kind of member, header, compression, head and volume that a release is not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.bundle.inputs import Payload
from appliance.bundle.stage0 import media as reading
from appliance.bundle.stage0.extract import check_members, extract_members
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.media import DELTA, MANIFEST, SIGNATURE, choose, open_sources
from appliance.bundle.stage0.refusal import Refused
from appliance.bundle.stage0.ustar import BLOCK, END_BLOCKS, padded, parse_tar_header, span, tar_header
from appliance.bundle.volumes import split
from tests.support import bundle as support

NAME, CONTENT = support.files()[1].path, support.files()[1].content


@pytest.fixture
def built(tmp_path):
    return support.archive(tmp_path / "media")


def refused(media: Path, target: Path) -> str:
    """Unpack, expect a refusal, and prove that nothing but verified members lies below the target."""
    with pytest.raises(Refused) as caught:
        support.unpack([media], target)
    honest = {file.path: file.content for file in support.files()}
    assert all(honest[name] == data for name, data in support.tree(target).items())
    assert not any(path.is_symlink() or path.stat().st_mode & 0o7022 for path in target.rglob("*"))
    return caught.value.code


def mended(raw: bytes) -> bytes:
    """A header whose checksum is right again."""
    blank = raw[:148] + b" " * 8 + raw[156:]
    return raw[:148] + b"%06o\0 " % sum(blank) + raw[156:]


def header(*changes: tuple[int, bytes], name: str = NAME, size: int = len(CONTENT)) -> bytes:
    """The header of the second payload file with bytes overwritten."""
    raw = bytearray(tar_header(name, size, executable=True))
    for at, value in changes:
        raw[at : at + len(value)] = value
    return mended(bytes(raw))


def exchanged(built, raw: bytes, content: bytes = CONTENT) -> Path:
    """Put a header and content in the place of the second payload file, the archive keeping its length."""
    data = built.path.read_bytes()
    members = built.manifest.members
    start = len(data) - sum(span(member.size_bytes) for member in members[1:]) - len(END_BLOCKS)
    room = span(members[1].size_bytes)
    put = (raw + content).ljust(room, b"\0")
    assert len(put) == room
    built.path.write_bytes(data[:start] + put + data[start + room :])
    return built.path


def test_there_is_no_kind_of_member_but_one():
    for kind in set(range(256)) - {ord("0")}:
        with pytest.raises(Refused) as caught:
            parse_tar_header(header((156, bytes([kind]))))
        assert caught.value.code == "BUNDLE_MEMBER_KIND", chr(kind)


SPARSE_MAP = b"19 GNU.sparse.major=1\n19 GNU.sparse.minor=0\n31 GNU.sparse.name=../escape.bin\n"
EXTENDED = {
    "a global pax record": ("g", b"52 path=" + b"../" * 14 + b"x\n"),
    "a pax record": ("x", b"19 path=/etc/shadow\n"),
    "a pax sparse map": ("x", SPARSE_MAP),
    "a GNU long name": ("L", b"../" * 60 + b"x\0"),
    "a GNU long link": ("K", b"/etc/passwd\0"),
    "an old GNU long name": ("N", b"Rename a to ../b\n"),
    "a Solaris record": ("X", b"19 path=/etc/shadow\n"),
    "a Solaris access list": ("A", b"1000002\0user::rwx"),
    "a continued volume": ("M", b"x"),
    "a label": ("V", b""),
    "a folder's listing": ("D", b"Nfile\0\0"),
    "a reserved kind": ("7", b""),
}


@pytest.mark.parametrize(("kind", "content"), EXTENDED.values(), ids=EXTENDED.keys())
def test_no_record_that_speaks_of_another_member_is_taken(built, tmp_path, kind, content):
    raw = header((156, kind.encode()), size=len(content))
    following = content.ljust(padded(len(content)), b"\0") + tar_header("../escape.bin", 5) + b"pwned"
    assert refused(exchanged(built, raw, following), tmp_path / "target") == "BUNDLE_MEMBER_KIND"
    assert not (tmp_path / "escape.bin").exists()


DIALECTS = {
    "a set-user bit": [(100, b"0004755\0")],
    "a mode for everybody": [(100, b"0000777\0")],
    "no mode": [(100, b"0000000\0")],
    "a link's target": [(157, b"/etc/passwd")],
    "a group": [(116, b"0000001\0")],
    "a group's name": [(297, b"root\0")],
    "a device number": [(329, b"0000010\0")],
    "no magic word": [(257, bytes(8))],
    "GNU's magic word": [(257, b"ustar  \0")],
    "another version": [(263, b"01")],
    "a path in the prefix": [(345, b"../..")],
    "an absolute prefix": [(345, b"/etc")],
    "bytes behind the name's end": [(len(NAME) + 1, b"/../../evil")],
    "bytes behind the prefix": [(500, b"\1")],
    "a name that is no ASCII": [(0, b"\xff\xfe")],
    "a size with a sign": [(124, b"-0000005677\0")],
    "a size with a blank end": [(135, b" ")],
    "a size of twelve digits": [(124, b"000000005677")],
    "a time before 1970": [(136, b"\xff" * 12)],
    "a size of GNU's largest": [(124, b"\x80" + b"\xff" * 11)],
}


@pytest.mark.parametrize("changes", DIALECTS.values(), ids=DIALECTS.keys())
def test_a_header_that_says_one_thing_more_or_otherwise_is_refused(built, tmp_path, changes):
    assert refused(exchanged(built, header(*changes)), tmp_path / "target") == "BUNDLE_HEADER"


@pytest.mark.parametrize(
    "name",
    ["DATA/FILE-1.BIN", "data/file-1\n.bin", "data/file-1.bin.", "data/file-0.bin", "manifest.json", "stage0.py"],
)
def test_a_member_under_a_name_that_only_resembles_its_own_is_refused(built, tmp_path, name):
    assert refused(exchanged(built, header(name=name)), tmp_path / "target") == "BUNDLE_ORDER"


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("release.tar", data)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped])
def test_nothing_compressed_is_unpacked_a_bomb_neither(built, tmp_path, pack):
    for data in (built.path.read_bytes(), bytes(20_000_000)):
        built.path.write_bytes(pack(data))
        assert refused(built.path, tmp_path / "target") in ("BUNDLE_HEADER", "BUNDLE_TRUNCATED")


def test_an_archive_whose_payload_is_a_hole_is_refused(built, tmp_path):
    data = built.path.read_bytes()
    start = data.index(NAME.encode() + b"\0") - span(support.files()[0].size_bytes)
    with built.path.open("r+b") as stream:
        stream.truncate(start)
        stream.truncate(len(data))
    assert refused(built.path, tmp_path / "target") == "BUNDLE_TRUNCATED"


def test_one_archive_behind_or_before_another_is_refused(built, tmp_path):
    data = built.path.read_bytes()
    built.path.write_bytes(data * 2)
    assert refused(built.path, tmp_path / "target") == "BUNDLE_TRAILING"
    built.path.write_bytes(END_BLOCKS + data)
    assert refused(built.path, tmp_path / "target") == "BUNDLE_HEADER"


def test_a_head_within_the_payload_does_not_take_over(built, tmp_path):
    """Another signed manifest, or a delta's statement, where the first payload file must stand."""
    other = support.archive(tmp_path / "other", version="2.0.0")
    with open_sources([other.path]) as (sources, _):
        files = sources[0].head.files
    for name, data in ((MANIFEST, files[MANIFEST]), (SIGNATURE, files[SIGNATURE]), (DELTA, b"{}")):
        archive = support.archive(tmp_path / "media")
        raw = archive.path.read_bytes()
        start = len(raw) - sum(span(member.size_bytes) for member in archive.manifest.members) - len(END_BLOCKS)
        member = tar_header(name, len(data)) + data.ljust(padded(len(data)), b"\0")
        archive.path.write_bytes(raw[:start] + member + raw[start + len(member) :])
        expected = ("BUNDLE_ORDER", "BUNDLE_TRUNCATED", "BUNDLE_HEADER", "BUNDLE_MEMBER_KIND")
        assert refused(archive.path, tmp_path / "target") in expected
        assert not support.tree(tmp_path / "target")


def head(*members: tuple[str, int, bool]) -> bytes:
    return b"".join(
        tar_header(name, size, executable=executable) + bytes(padded(size)) for name, size, executable in members
    )


HEADS = {
    "a document twice": ([("trust/a.json", 0, False), ("trust/a.json", 0, False)], "BUNDLE_ORDER"),
    "an executable document": ([("trust/a.json", 0, True)], "BUNDLE_ORDER"),
    "two manifests": ([(MANIFEST, 0, False), (MANIFEST, 0, False)], "BUNDLE_ORDER"),
    "trust metadata behind the manifest": ([(MANIFEST, 0, False), ("trust/a.json", 0, False)], "BUNDLE_ORDER"),
    "a signature alone": ([(SIGNATURE, 0, False)], "BUNDLE_ORDER"),
    "a delta without its signature": ([(MANIFEST, 0, False), (SIGNATURE, 0, False), (DELTA, 0, False)], ""),
    "names that differ by case": ([("trust/a", 0, False), ("trust/A", 0, False)], "BUNDLE_NAME"),
    "a file that is a folder": ([("trust/a", 0, False), ("trust/a/b", 0, False)], "BUNDLE_NAME"),
    "a name of a device": ([("trust/con.json", 0, False)], "BUNDLE_ORDER"),
}


@pytest.mark.parametrize(("members", "code"), HEADS.values(), ids=HEADS.keys())
def test_a_head_that_is_none_is_refused(tmp_path, members, code):
    end = () if any(name == MANIFEST for name, _, _ in members) else ((MANIFEST, 0, False), (SIGNATURE, 0, False))
    media = tmp_path / "head.tar"
    media.write_bytes(head(*members, *end) + END_BLOCKS)
    assert refused(media, tmp_path / "target") == (code or "BUNDLE_HEADER")


def test_a_medium_full_of_large_heads_takes_no_memory_to_speak_of(built, tmp_path, monkeypatch):
    """A sparse or compressed file system holds hundreds of them in a few blocks, and nothing is verified yet."""
    monkeypatch.setattr(reading, "MAX_HEADS_BYTES", 8 * 1024 * 1024)
    for number in range(40):
        with (tmp_path / "media" / f"zz-{number}.tar").open("wb") as stream:
            stream.write(tar_header(f"trust/{number}.json", 0) + tar_header(MANIFEST, 2 * 1024 * 1024))
            stream.seek(2 * 1024 * 1024, os.SEEK_CUR)
            stream.write(tar_header(SIGNATURE, 0) + END_BLOCKS)
    tracemalloc.start()
    try:
        with open_sources([tmp_path / "media"]) as (sources, unusable):
            _, peak = tracemalloc.get_traced_memory()
            release, chosen, aside = choose(sources, support.stand_in_authenticate)
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 * 1024
    assert len(unusable) > 30
    assert len(aside) == 3
    assert [source.path for source in chosen] == [built.path]
    assert release.manifest.digest == built.manifest.digest


def test_the_heads_of_many_volumes_are_held_once(built, tmp_path):
    split(built.path, tmp_path / "volumes", volume_bytes=12_000)
    with open_sources([tmp_path / "volumes"]) as (sources, _):
        assert len(sources) > 5
        assert len({id(source.head) for source in sources}) == 1


@pytest.fixture
def volumes(tmp_path) -> list[Path]:
    archive = support.archive(tmp_path / "archive", [Payload("data/file.bin", os.urandom(55_000))])
    return list(split(archive.path, tmp_path / "volumes", volume_bytes=30_000))


def labelled(path: Path, name: str, size: int | None = None) -> None:
    """Give a volume another label: what it is, of how many, and how long."""
    data = path.read_bytes()
    with open_sources([path]) as (sources, _):
        at, old = sources[0].offset - BLOCK, sources[0].size_bytes
    path.write_bytes(data[:at] + tar_header(name, old if size is None else size) + data[at + BLOCK :])


LABELS = {
    "number nought": ("volume/000-of-003", None),
    "a number beyond all": ("volume/004-of-003", None),
    "one of none": ("volume/001-of-000", None),
    "parity of none": ("volume/parity-of-000", None),
    "a short number": ("volume/1-of-3", None),
    "a path": ("volume/../../etc/passwd", None),
    "one of very many": ("volume/001-of-999", None),
    "another's number": ("volume/002-of-003", None),
    "a payload file": ("data/file.bin", None),
    "an empty slice": ("volume/001-of-003", 0),
    "a slice longer than its file": ("volume/001-of-003", 8**11 - 1),
    "a slice of one byte more": ("volume/001-of-003", 20_481),
}


LYING = {
    "BUNDLE_HEADER", "BUNDLE_MIXED_MEDIA", "BUNDLE_TRAILING", "BUNDLE_VOLUME_DAMAGED", "BUNDLE_VOLUME_MISSING"
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), LABELS.values(), ids=LABELS.keys())
def test_a_volume_with_a_lying_label_yields_the_signed_bytes_or_a_refusal(volumes, tmp_path, name, size):
    assert len(volumes) == 4
    labelled(volumes[0], name, size)
    for chosen in (volumes, volumes[:-1]):
        target = tmp_path / f"target-{len(chosen)}"
        try:
            support.unpack(chosen, target)
        except Refused as refusal:
            assert refusal.code in LYING, name
            assert not support.tree(target)
        else:
            assert chosen == volumes, "without parity nothing can stand for the first volume"


@pytest.mark.parametrize("name", ["volume/000-of-003", "volume/004-of-003", "volume/1-of-3", "volume/../../etc/passwd"])
def test_a_volume_whose_number_is_none_is_rebuilt_like_a_lost_one(volumes, tmp_path, name):
    support.unpack(volumes, tmp_path / "honest")
    labelled(volumes[0], name)
    _, repaired = support.unpack(volumes, tmp_path / "target")
    assert support.tree(tmp_path / "target") == support.tree(tmp_path / "honest")
    assert len(repaired) == 1
    assert str(volumes[0]) in repaired[0]


def test_what_changes_on_the_medium_after_it_was_authenticated_is_found(built, tmp_path):
    """The file stays open: exchanged by name it is never read, altered in place it is no longer what was signed."""
    other = support.archive(tmp_path / "other", [Payload(f.path, f.content[::-1] or b"") for f in support.files()])

    def by_name() -> None:
        other.path.rename(built.path)

    def in_place() -> None:
        data = bytearray(built.path.read_bytes())
        data[data.index(CONTENT)] ^= 1
        with built.path.open("r+b") as stream:
            stream.write(data)

    def cut() -> None:
        os.truncate(built.path, built.path.stat().st_size // 2)

    for change, code in ((in_place, "BUNDLE_MEMBER_DIGEST"), (cut, "BUNDLE_TRUNCATED"), (by_name, "")):
        archive = built.path.read_bytes()
        assert ending(built.path, change, tmp_path / change.__name__) == code
        built.path.write_bytes(archive)


def ending(media: Path, change: Callable[[], None], target: Path) -> str:
    """The code with which unpacking ends when the medium changes after it was authenticated; empty for none."""
    target.mkdir()
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open_sources([media]) as (sources, _):
            release, chosen, _ = choose(sources, support.stand_in_authenticate)
            region = release_region(chosen, release, [], lambda _: None)
            check_members(region, release.manifest.members)
            change()
            extract_members(region, release.manifest.members, folder)
    except Refused as refusal:
        return refusal.code
    finally:
        os.close(folder)
    assert support.tree(target) == {file.path: file.content for file in support.files()}
    return ""


PLANTED = {
    "a hard link to a file of somebody else": lambda place, victim: os.link(victim, place),
    "a link to a file": lambda place, victim: place.symlink_to(victim),
    "a link to nowhere": lambda place, victim: place.symlink_to(victim.with_name("new")),
    "a pipe": lambda place, victim: os.mkfifo(place),
    "a folder": lambda place, victim: place.mkdir(),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_what_lies_in_a_member_s_place_is_neither_followed_nor_written_through(built, tmp_path, plant):
    target, victim = tmp_path / "target", tmp_path / "victim"
    (target / "data").mkdir(parents=True)
    victim.write_bytes(b"precious")
    plant(target / NAME, victim)
    with pytest.raises(Refused) as caught:
        support.unpack([built.path], target)
    assert caught.value.code == "INSTALL_PREFIX"
    assert victim.read_bytes() == b"precious"
    assert not victim.with_name("new").exists()


def test_a_folder_exchanged_for_a_link_while_members_are_written_leads_nowhere(built, tmp_path):
    target, outside = tmp_path / "target", tmp_path / "outside"
    outside.mkdir()
    target.mkdir()

    def exchange(_name: str) -> None:
        if not (target / "data").is_symlink():
            shutil.move(target / "data", tmp_path / "moved")
            (target / "data").symlink_to(outside)

    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open_sources([built.path]) as (sources, _):
            release, chosen, _ = choose(sources, support.stand_in_authenticate)
            region = release_region(chosen, release, [], lambda _: None)
            with pytest.raises(Refused) as caught:
                extract_members(region, release.manifest.members, folder, checkpoint=exchange)
    finally:
        os.close(folder)
    assert caught.value.code == "INSTALL_PREFIX"
    assert not list(outside.iterdir())
