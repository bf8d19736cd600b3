"""The reader against everything an archive can be made to say: only the signed manifest decides."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from appliance.bundle.inputs import Payload
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE
from appliance.bundle.stage0.refusal import Refused
from appliance.bundle.stage0.ustar import BLOCK, END_BLOCKS, padded, parse_tar_header, span, tar_header
from tests.support import bundle as support


@pytest.fixture
def built(tmp_path):
    return support.archive(tmp_path / "media")


def refused(media: Path, target: Path) -> Refused:
    """Unpack, expect a refusal, and prove that nothing but verified members lies below the target."""
    with pytest.raises(Refused) as caught:
        support.unpack([media], target)
    honest = {file.path: file.content for file in support.files()}
    for name, data in support.tree(target).items():
        assert honest[name] == data
    assert not any(path.is_symlink() for path in target.rglob("*"))
    return caught.value


def member_offset(built, number: int) -> int:
    """Where the header of a payload member lies in the file."""
    size = built.path.stat().st_size
    region = sum(span(member.size_bytes) for member in built.manifest.members) + len(END_BLOCKS)
    return size - region + sum(span(member.size_bytes) for member in built.manifest.members[:number])


def replace(built, number: int, raw: bytes) -> Path:
    """Put raw tar blocks in the place of a member, the archive keeping its length: a wrong one would tell at once."""
    data = built.path.read_bytes()
    start = member_offset(built, number)
    room = span(built.manifest.members[number].size_bytes)
    assert len(raw) <= room
    built.path.write_bytes(data[:start] + raw.ljust(room, b"\0") + data[start + room :])
    return built.path


def tar_blocks(*infos: tarfile.TarInfo, content: bytes = b"", form: int = tarfile.GNU_FORMAT) -> bytes:
    """What Python's own tarfile writes for members, without the end of the archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info in infos:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
        length = archive.offset
    return buffer.getvalue()[:length]


def test_an_honest_archive_is_extracted_with_its_modes(built, tmp_path):
    manifest, _ = support.unpack([built.path], tmp_path / "target")
    assert support.tree(tmp_path / "target") == {file.path: file.content for file in support.files()}
    assert manifest.digest == built.manifest.digest
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "target" / "data").iterdir()}
    assert modes["file-1.bin"] == 0o755
    assert modes["file-2.bin"] == 0o644


def test_an_honest_archive_is_what_every_tar_program_reads(built, tmp_path):
    with tarfile.open(built.path) as archive:
        names = archive.getnames()
        assert names[: len(support.TRUST) + 2] == ["trust/anchor.json", "trust/metadata/root.json", MANIFEST, SIGNATURE]
        assert archive.extractfile("data/file-2.bin").read() == support.files()[2].content


def test_two_builds_of_the_same_inputs_are_the_same_bytes(tmp_path):
    one, two = support.archive(tmp_path / "one"), support.archive(tmp_path / "two")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.manifest.digest == two.manifest.digest


def info(name: str, kind: bytes, *, linkname: str = "") -> tarfile.TarInfo:
    result = tarfile.TarInfo(name)
    result.type = kind
    result.linkname = linkname
    return result


KINDS = {
    "a symbolic link": info("data/file-1.bin", tarfile.SYMTYPE, linkname="../../outside"),
    "a symbolic link to an absolute path": info("data/file-1.bin", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": info("data/file-1.bin", tarfile.LNKTYPE, linkname="data/file-0.bin"),
    "a character device": info("data/file-1.bin", tarfile.CHRTYPE),
    "a block device": info("data/file-1.bin", tarfile.BLKTYPE),
    "a pipe": info("data/file-1.bin", tarfile.FIFOTYPE),
    "a directory": info("data/file-1.bin", tarfile.DIRTYPE),
    "a contiguous file": info("data/file-1.bin", tarfile.CONTTYPE),
    "a GNU sparse file": info("data/file-1.bin", tarfile.GNUTYPE_SPARSE),
    "an old-style file": info("data/file-1.bin", tarfile.AREGTYPE),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_anything_but_a_regular_file_is_refused(built, tmp_path, kind):
    error = refused(replace(built, 1, tar_blocks(kind)), tmp_path / "target")
    assert error.code == "BUNDLE_MEMBER_KIND"
    assert not (tmp_path / "outside").exists()


def test_pax_records_and_gnu_names_are_refused(built, tmp_path):
    long = tarfile.TarInfo("d" * 300)
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        media = replace(built, 1, tar_blocks(long, content=b"x", form=form))
        assert refused(media, tmp_path / f"target-{form}").code == "BUNDLE_MEMBER_KIND"
        built = support.archive(tmp_path / "media")


def test_a_pax_size_that_lies_about_the_next_member_is_refused(built, tmp_path):
    lying = tarfile.TarInfo("data/file-1.bin")
    lying.pax_headers = {"size": "0", "path": "../escape"}
    media = replace(built, 1, tar_blocks(lying, content=b"x" * 100, form=tarfile.PAX_FORMAT))
    assert refused(media, tmp_path / "target").code == "BUNDLE_MEMBER_KIND"


@pytest.mark.parametrize(
    "name", ["../escape", "/etc/cron.d/evil", "data/../../escape", "data/file-1.bin/", "./data/file-1.bin"]
)
def test_a_member_that_is_called_otherwise_is_refused(built, tmp_path, name):
    raw = tar_header("x" * len(name), 3007).replace(b"x" * len(name), name.encode(), 1)
    raw = raw[:148] + b"%06o\0 " % (sum(raw[:148]) + 256 + sum(raw[156:])) + raw[156:]
    media = replace(built, 1, raw + support.files()[1].content + bytes(padded(3007) - 3007))
    assert refused(media, tmp_path / "target").code in ("BUNDLE_ORDER", "BUNDLE_HEADER")
    assert not (tmp_path / "escape").exists()


def test_members_in_another_order_or_twice_are_refused(built, tmp_path):
    zero, one = (tar_header(f"data/file-{n}.bin", s, executable=n == 1) for n, s in ((0, 7), (1, 3007)))
    assert refused(replace(built, 0, one), tmp_path / "target").code == "BUNDLE_ORDER"
    built = support.archive(tmp_path / "media")
    twice = zero + support.files()[0].content + bytes(505)
    assert refused(replace(built, 1, twice), tmp_path / "target").code == "BUNDLE_ORDER"


@pytest.mark.parametrize("size", [0, 1, 3006, 3008, 8**11 - 1])
def test_a_size_that_lies_is_refused_before_memory_is_taken(built, tmp_path, size):
    raw = tar_header("data/file-1.bin", size, executable=True)
    content = support.files()[1].content
    media = replace(built, 1, raw + content + bytes(padded(3007) - 3007))
    assert refused(media, tmp_path / "target").code == "BUNDLE_ORDER"


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (124, b"\x80\0\0\0\0\0\0\0\0\0\x0b\xbf"),
        (124, b"      5677 \0"),
        (108, b"0000001\0"),
        (136, b"00000000001\0"),
        (265, b"root\0"),
    ],
    ids=["base-256 size", "blanks in the size", "an owner", "a time", "an owner's name"],
)
def test_a_header_in_any_other_dialect_is_refused(built, tmp_path, at, value):
    raw = bytearray(tar_header("data/file-1.bin", 3007, executable=True))
    raw[at : at + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    media = replace(built, 1, bytes(raw) + support.files()[1].content + bytes(padded(3007) - 3007))
    assert refused(media, tmp_path / "target").code == "BUNDLE_HEADER"


def test_a_wrong_header_checksum_is_refused(built, tmp_path):
    raw = bytearray(tar_header("data/file-1.bin", 3007, executable=True))
    raw[150] ^= 1
    media = replace(built, 1, bytes(raw) + support.files()[1].content + bytes(padded(3007) - 3007))
    assert refused(media, tmp_path / "target").code == "BUNDLE_HEADER"


def test_bytes_hidden_in_padding_are_refused(built, tmp_path):
    data = bytearray(built.path.read_bytes())
    data[member_offset(built, 1) + BLOCK + 3007 + 3] = 1
    built.path.write_bytes(data)
    assert refused(built.path, tmp_path / "target").code == "BUNDLE_PADDING"


def test_a_member_behind_the_end_is_refused(built, tmp_path):
    data = built.path.read_bytes()
    extra = tar_blocks(tarfile.TarInfo("evil"), content=b"x")
    for altered in (data + extra, data[:-1024] + extra + END_BLOCKS, data + bytes(512), data + b"\0"):
        built.path.write_bytes(altered)
        assert refused(built.path, tmp_path / "target").code == "BUNDLE_TRAILING"


def test_a_member_in_place_of_the_end_is_refused(built, tmp_path):
    data = built.path.read_bytes()
    built.path.write_bytes(data[:-1024] + tar_header("evil", 512) + bytes(512))
    assert refused(built.path, tmp_path / "target").code == "BUNDLE_TRAILING"


def test_a_file_that_ends_early_is_refused_wherever_it_ends(built, tmp_path):
    data = built.path.read_bytes()
    boundaries = {0, 1, 511, 512, 513, 1024, len(data) - 1, len(data) - 512, len(data) - 1024}
    offset = len(data) - sum(span(m.size_bytes) for m in built.manifest.members) - len(END_BLOCKS)
    for member in built.manifest.members:
        boundaries |= {offset - 1, offset, offset + 1, offset + BLOCK, offset + BLOCK + member.size_bytes}
        offset += span(member.size_bytes)
    for end in sorted(boundaries):
        built.path.write_bytes(data[:end])
        assert refused(built.path, tmp_path / "target").code == "BUNDLE_TRUNCATED", end


def test_a_flipped_byte_anywhere_is_refused(built, tmp_path):
    data = built.path.read_bytes()
    for at in range(0, len(data), 97):
        altered = bytearray(data)
        altered[at] ^= 0x40
        built.path.write_bytes(altered)
        assert refused(built.path, tmp_path / f"target-{at}").code.startswith("BUNDLE_"), at


def test_a_bomb_in_the_head_is_refused_before_memory_is_taken(tmp_path):
    media = tmp_path / "bomb.tar"
    with media.open("wb") as stream:
        stream.write(tar_header("trust/anchor.json", 8 * 1024**3 - 512))
        stream.truncate(8 * 1024**3)  # sparse
    assert refused(media, tmp_path / "target").code == "BUNDLE_LIMIT"
    with media.open("wb") as stream:
        for number in range(70):
            stream.write(tar_header(f"trust/{number}.json", 0))
    assert refused(media, tmp_path / "target").code == "BUNDLE_LIMIT"


@pytest.mark.parametrize("name", ["payload.bin", "trust/../evil", "trust/", "manifest.json.bak"])
def test_a_head_with_anything_else_before_the_manifest_is_refused(tmp_path, name):
    media = tmp_path / "head.tar"
    raw = tar_header("x" * len(name), 0).replace(b"x" * len(name), name.encode(), 1)
    media.write_bytes(raw[:148] + b"%06o\0 " % (sum(raw[:148]) + 256 + sum(raw[156:])) + raw[156:] + END_BLOCKS)
    assert refused(media, tmp_path / "target").code == "BUNDLE_ORDER"


def test_media_that_are_no_regular_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "real.tar").write_bytes(b"")
    (tmp_path / "link.tar").symlink_to(tmp_path / "real.tar")
    for path in (tmp_path / "pipe.tar", tmp_path / "link.tar", tmp_path / "absent.tar", tmp_path / "media"):
        assert refused(path, tmp_path / "target").code == "BUNDLE_NO_MEDIA"


def test_a_link_planted_in_the_target_is_not_followed(built, tmp_path):
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "data").symlink_to(outside)
    with pytest.raises(Refused) as caught:
        support.unpack([built.path], target)
    assert caught.value.code == "INSTALL_PREFIX"
    assert not list(outside.iterdir())


def test_a_file_planted_in_the_target_is_not_written_through(built, tmp_path):
    target = tmp_path / "target"
    (target / "data").mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"precious")
    (target / "data" / "file-0.bin").symlink_to(tmp_path / "victim")
    with pytest.raises(Refused) as caught:
        support.unpack([built.path], target)
    assert caught.value.code == "INSTALL_PREFIX"
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_name_too_long_for_a_header_travels_by_its_digest(tmp_path):
    name = "wheels/" + "long" * 35 + ".dat"
    built = support.archive(tmp_path / "media", [Payload(name, b"wheel")])
    with tarfile.open(built.path) as archive:
        assert archive.getnames()[-1] == f"long/{built.manifest.members[0].sha256}"
    support.unpack([built.path], tmp_path / "target")
    assert (tmp_path / "target" / name).read_bytes() == b"wheel"


def test_every_header_we_write_is_read_back_as_written():
    for name, size, executable in (
        ("a", 0, False),
        ("d" * 100, 1, True),
        ("p" * 150 + "/" + "b" * 100, 8**11 - 1, False),
    ):
        assert parse_tar_header(tar_header(name, size, executable=executable)) == (name, size, executable)
