"""The archive reader admits one reading only: what two ZIP readers could see differently is refused."""

from __future__ import annotations

import io
import random
import stat
import struct
import warnings
import zipfile
import zlib

import pytest

from appliance.errors import VendorError
from appliance.vendoring import archive as archives
from appliance.vendoring.archive import Archive
from tests.support.vendoring import FIXED_TIME, pack

HONEST = {"pkg/__init__.py": b"x = 1\n" * 50, "pkg/data.bin": bytes(range(256)) * 8, "pkg/empty.py": b""}
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def refused(data: bytes) -> str:
    """Read everything; return the cause of the refusal."""
    with pytest.raises(VendorError) as caught:
        contents(data)
    assert caught.value.code == "VENDOR_ARCHIVE"
    return caught.value.cause


def contents(data: bytes) -> dict[str, bytes]:
    archive = Archive(data, what="x.whl")
    return {name: archive.read(name) for name in archive.members}


def patched(data: bytes, header: bytes, offset: int, value: bytes, *, nth: int = 0) -> bytes:
    """Overwrite bytes at an offset within the nth header of a kind."""
    at = -1
    for _ in range(nth + 1):
        at = data.index(header, at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_honest_archive_is_read_to_the_byte(compression: int):
    archive = Archive(pack(HONEST, compression=compression), what="x.whl")
    assert {name: archive.read(name) for name in archive.members} == HONEST
    assert archive.size_bytes == sum(map(len, HONEST.values()))


def test_an_archive_written_as_a_stream_is_read():
    class Pipe(io.RawIOBase):
        """A stream without seek makes zipfile write data descriptors."""

        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, chunk: bytes) -> int:  # type: ignore[override]
            self.data += chunk
            return len(chunk)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as writer:  # type: ignore[arg-type]
        for name, content in HONEST.items():
            writer.writestr(zipfile.ZipInfo(name, FIXED_TIME), content, zipfile.ZIP_DEFLATED)
    archive = Archive(bytes(pipe.data), what="x.whl")
    assert {name: archive.read(name) for name in archive.members} == HONEST
    descriptor = bytes(pipe.data).index(b"PK\x07\x08")
    damaged = bytearray(pipe.data)
    damaged[descriptor + 5] ^= 1
    assert "descriptor" in refused(bytes(damaged))


def test_folders_are_passed_over():
    archive = Archive(pack([("pkg/", b""), ("pkg/a.py", b"1")]), what="x.whl")
    assert list(archive.members) == ["pkg/a.py"]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x.py",
        "pkg/../../x.py",
        "pkg/./x.py",
        "pkg//x.py",
        "pkg\\x.py",
        "C:/x.py",
        "pkg/\x01.py",
        "pkg/\x7f.py",
        "a" * 256,
        "/".join(["a" * 100] * 11),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str):
    assert "unsafe name" in refused(pack({name: b"x"}))


def test_a_name_with_a_nul_is_refused():
    data = pack({"pkg/aXb.py": b"x"}).replace(b"aXb", b"a\0b")
    assert "unsafe name" in refused(data)


def test_a_name_that_is_not_in_its_encoding_is_refused():
    data = pack({"pkg/aXb.py": b"x"}).replace(b"aXb", b"a\xffb")
    assert "encoded" in refused(data)


@pytest.mark.parametrize(
    "names",
    [
        ("pkg/a.py", "pkg/a.py"),
        ("pkg/a.py", "pkg/A.py"),
        ("pkg/é.py", "pkg/e\u0301.py"),
        ("pkg/ß.py", "pkg/ss.py"),
        ("pkg/a", "pkg/a/b.py"),
        ("pkg/A", "pkg/a/b.py"),
        ("Pkg/a.py", "pkg/b.py"),
        ("pkg/a", "pkg/a/"),
    ],
)
def test_names_that_collide_on_some_file_system_are_refused(names: tuple[str, str]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own about a name that stands twice
        data = pack([(name, b"") for name in names])
    assert refused(data)


def test_bytes_before_after_and_between_members_are_refused():
    honest = pack(HONEST)
    assert "before the first" in refused(b"MZ" + honest)
    assert "ends with its directory" in refused(honest + b"x")
    assert "ends with its directory" in refused(honest + honest[:100])
    commented = honest[:-2] + struct.pack("<H", 3) + b"abc"
    assert "ends with its directory" in refused(commented)
    directory = honest.index(CENTRAL)
    padded = honest[:directory] + b"hidden" + honest[directory:-6] + struct.pack("<L", directory + 6) + b"\0\0"
    assert "between the last member" in refused(padded)


def test_a_second_end_record_cannot_lead_another_reader_to_another_directory():
    one, two = pack({"pkg/a.py": b"good"}), pack({"pkg/a.py": b"evil"})
    assert refused(one + two)
    assert refused(two[:-22] + one)


@pytest.mark.parametrize("cut", [1, 4, 21, 22, 23, 60, 200])
def test_a_truncated_archive_is_refused(cut: int):
    assert refused(pack(HONEST)[:-cut])


def test_an_empty_file_and_a_tarball_are_refused():
    assert refused(b"")
    assert refused(b"\x1f\x8b" + bytes(100))


def test_a_local_header_with_another_name_is_refused():
    data = pack({"pkg/good.py": b"x", "pkg/next.py": b"y"})
    at = data.index(b"pkg/good.py")
    assert "disagree" in refused(data[:at] + b"pkg/evil.py" + data[at + 11 :])


@pytest.mark.parametrize(("offset", "value"), [(14, b"\0\0\0\1"), (18, b"\1\0\0\0"), (22, b"\1\0\0\0"), (8, b"\0\0")])
def test_a_local_header_with_another_size_crc_or_method_is_refused(offset: int, value: bytes):
    assert "disagree" in refused(patched(pack(HONEST), LOCAL, offset, value))


def test_a_size_that_lies_is_refused():
    stored = pack({"a.py": b"x" * 100}, compression=zipfile.ZIP_STORED)
    short = patched(patched(stored, CENTRAL, 24, struct.pack("<L", 50)), LOCAL, 22, struct.pack("<L", 50))
    assert "impossible size" in refused(short)
    deflated = pack({"a.py": b"x" * 100})
    for size in (50, 99, 101, 10_000):
        lie = struct.pack("<L", size)
        assert refused(patched(patched(deflated, CENTRAL, 24, lie), LOCAL, 22, lie))


def test_a_wrong_crc_is_refused():
    lie = struct.pack("<L", 1)
    data = patched(patched(pack({"a.py": b"x"}), CENTRAL, 16, lie), LOCAL, 14, lie)
    assert "CRC" in refused(data)


def test_bytes_after_the_end_of_a_deflate_stream_are_refused():
    packed = zlib.compressobj(wbits=-15)
    stream = packed.compress(b"x" * 100) + packed.flush() + b"hidden"
    crc, name = zlib.crc32(b"x" * 100), b"a.py"
    local = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 8, 0, 33, crc, len(stream), 100, len(name), 0) + name + stream
    central = struct.pack(
        "<4s6H3L5H2L", CENTRAL, 20, 20, 0, 8, 0, 33, crc, len(stream), 100, len(name), 0, 0, 0, 0, 0, 0
    )
    central += name
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, len(central), len(local), 0)
    assert "does not end" in refused(local + central + end)


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch):
    bomb = pack({"a.py": bytes(3_000_000), "b.py": bytes(3_000_000)})
    monkeypatch.setattr(archives, "MAX_CONTENT_BYTES", 5_000_000)
    assert "more than any wheel" in refused(bomb)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1_000_000)
    assert "impossible size" in refused(bomb)


def test_a_bomb_within_the_size_of_a_wheel_is_known_by_its_ratio(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "SMALL_BYTES", 1_000_000)
    assert "times its length" in refused(pack({"a.bin": bytes(2_000_000)}))
    assert contents(pack({"a.bin": bytes(900_000)}))
    dense = random.Random(7).randbytes(50_000)
    assert contents(pack({"a.bin": bytes(2_000_000), "b.bin": dense}))


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    assert "too many" in refused(pack(HONEST))


def test_encryption_and_foreign_methods_are_refused():
    honest = pack({"a.py": b"x"})
    assert "encrypted" in refused(patched(honest, CENTRAL, 8, b"\1\0"))
    assert "no wheel needs" in refused(patched(honest, CENTRAL, 10, struct.pack("<H", 12)))
    assert "no wheel needs" in refused(pack({"a.py": b"x" * 100}, compression=zipfile.ZIP_LZMA))


@pytest.mark.parametrize(("header", "offset"), [(CENTRAL, 6), (LOCAL, 4)])
def test_a_member_that_asks_for_a_newer_format_is_refused(header: bytes, offset: int):
    """Found by fuzzing: the standard library refuses to open such an archive, other readers do not look."""
    assert refused(patched(pack(HONEST), header, offset, struct.pack("<H", 148)))


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644, 0o104755])
def test_links_devices_and_set_user_bits_are_refused(mode: int):
    assert refused(patched(pack({"a.py": b"/etc/passwd"}), CENTRAL, 38, struct.pack("<L", mode << 16)))


def with_extra(extra: bytes) -> bytes:
    """One stored member whose local header carries an extra field."""
    name, content = b"a.py", b"x = 1\n"
    crc = zlib.crc32(content)
    local = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 33, crc, len(content), len(content), len(name), len(extra))
    local += name + extra + content
    central = struct.pack(
        "<4s6H3L5H2L", CENTRAL, 20, 20, 0, 0, 0, 33, crc, len(content), len(content), len(name), 0, 0, 0, 0, 0, 0
    )
    central += name
    return local + central + struct.pack("<4s4H2LH", END, 0, 0, 1, 1, len(central), len(local), 0)


def test_an_extra_field_that_renames_or_resizes_is_refused_and_a_true_one_is_not():
    renamed = struct.pack("<HH", 0x7075, 9) + b"\1\0\0\0\0evil"
    assert "readers differ" in refused(with_extra(renamed))
    assert "readers differ" in refused(with_extra(struct.pack("<HH2Q", 1, 16, 7, 6)))
    assert "damaged" in refused(with_extra(b"\1\0\1"))
    assert "readers differ" in refused(with_extra(struct.pack("<HH", 0x5455, 99) + b"x"))
    for extra in (b"", struct.pack("<HH2Q", 1, 16, 6, 6), struct.pack("<HH", 0x5455, 5) + b"\1\0\0\0\0"):
        assert Archive(with_extra(extra), what="x.whl").read("a.py") == b"x = 1\n"


def test_no_single_flipped_byte_gives_another_content():
    honest = pack(HONEST)
    chance = random.Random(7)
    for _ in range(600):
        at, bit = chance.randrange(len(honest)), 1 << chance.randrange(8)
        mutant = honest[:at] + bytes([honest[at] ^ bit]) + honest[at + 1 :]
        try:
            content = contents(mutant)
        except VendorError:
            continue
        # what remains open is metadata that no content depends on: times, versions, modes
        assert content == HONEST
