"""Fuzzing the readers of foreign bytes: refusals only, and nothing accepted that another reader sees differently."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import json
import re
import warnings
import zipfile

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from appliance.errors import VendorError
from appliance.vendoring.archive import Archive
from appliance.vendoring.difference import read_report, write_report
from appliance.vendoring.index import Index, Sources
from appliance.vendoring.locks import parse_lock
from appliance.vendoring.models import check_format
from appliance.vendoring.pages import parse_page
from appliance.vendoring.wheel import Inspection, inspect_wheel
from tests.support.vendoring import WheelMaker, pack, record_line

FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
HONEST = WheelMaker(
    files={
        "honest/data.bin": bytes(range(256)),
        "honest-1.0.data/scripts/tool": b"#!python\n",
        "init.pth": b"import os\n",
    },
    entry_points="[console_scripts]\nhonest = honest:main\n",
    requires=("numpy>=1",),
)
VALID = HONEST.build()
INDEX = Index(Sources(timeout_s=0.2))
REPORT = inspect_wheel(VALID, HONEST.filename)
# most bytes are packed content; readers differ over the few that are headers
HEADERS = sorted(
    {
        at + offset
        for magic, length in ((b"PK\x01\x02", 46), (b"PK\x03\x04", 30), (b"PK\x05\x06", 22))
        for at in range(len(VALID))
        if VALID.startswith(magic, at)
        for offset in range(length)
    }
)


def accepted(data: bytes, filename: str = HONEST.filename) -> Inspection | None:
    """The report, or None where the wheel was refused with one of our own codes; anything else escapes."""
    try:
        return inspect_wheel(data, filename)
    except VendorError:
        return None


def as_zipfile_sees_it(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}


def assert_record_is_true(data: bytes, report: Inspection) -> None:
    """What pip would unpack is exactly what RECORD names, to the byte: by the standard library alone."""
    contents = as_zipfile_sees_it(data)
    (record,) = (name for name in contents if name.count("/") == 1 and name.endswith(".dist-info/RECORD"))
    listed = {row[0]: row[1:] for row in csv.reader(io.StringIO(contents[record].decode())) if row}
    free = {record, f"{record}.jws", f"{record}.p7s"}
    assert set(listed) | free >= set(contents)
    assert set(contents) >= set(listed)
    for name, content in contents.items():
        if name not in free:
            digest, size = listed[name]
            algorithm, _, value = digest.partition("=")
            actual = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).rstrip(b"=").decode()
            assert (actual, str(len(content))) == (value.rstrip("="), size)
    assert report.files == len(contents)


def test_the_honest_wheel_is_accepted():
    assert_record_is_true(VALID, REPORT)


@FUZZ
@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_with_a_code(data: bytes):
    assert accepted(data) is None


@FUZZ
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_around_an_archive_are_refused(before: bytes, after: bytes):
    assume(before or after)
    assert accepted(before + VALID + after) is None


@settings(FUZZ, max_examples=2500)
@given(st.data())
def test_no_accepted_mutant_has_another_content(data: st.DataObject):
    mutant = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.sampled_from(HEADERS), st.integers(0, len(VALID) - 1))) % len(mutant)
        kind = data.draw(st.sampled_from(["flip", "set", "insert", "delete", "copy"]))
        if kind == "flip":
            mutant[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            patch = data.draw(st.binary(min_size=1, max_size=8))
            mutant[at : at + len(patch)] = patch
        elif kind == "insert":
            mutant[at:at] = data.draw(st.binary(min_size=1, max_size=40))
        elif kind == "delete":
            del mutant[at : at + data.draw(st.integers(1, 40))]
        else:
            other = data.draw(st.integers(0, len(mutant) - 1))
            mutant[at : at + 30] = mutant[other : other + 30]
        assume(mutant)
    report = accepted(bytes(mutant))
    if report is not None:
        assert_record_is_true(bytes(mutant), report)
        assert report.paths == REPORT.paths
        assert as_zipfile_sees_it(bytes(mutant)) == as_zipfile_sees_it(VALID)


NAMES = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["a", "A", "..", ".", "", "é", "e\u0301", "x.pth", "honest", "\\", "C:", " "]), max_size=5
    ).map("/".join),
    st.sampled_from(
        [
            "honest-1.0.dist-info/RECORD.jws",
            "honest-1.0.dist-info/direct_url.json",
            "honest-1.0.data/purelib/x.pth",
            "honest-1.0.data/data/x",
            "honest-1.0.data",
            "Honest-1.0.dist-info/METADATA",
            "other-1.0.dist-info/METADATA",
            "sitecustomize.py",
            "honest/__init__.py/x",
        ]
    ),
)


@settings(FUZZ, max_examples=800)
@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=5), st.booleans())
def test_what_is_accepted_is_what_the_standard_reader_unpacks(files: dict[str, bytes], listed: bool):
    unlisted = frozenset() if listed else frozenset(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = WheelMaker(files=files, unlisted=unlisted).build()
        except (ValueError, UnicodeError, zipfile.LargeZipFile):
            assume(False)
    report = accepted(data)
    if report is not None:
        assert_record_is_true(data, report)
        assert not any(".." in name.split("/") or name.startswith("/") for name in report.paths)


@FUZZ
@given(
    st.one_of(st.none(), st.binary(max_size=300), st.text(max_size=300).map(str.encode)),
    st.one_of(st.none(), st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
    st.one_of(st.none(), st.text(max_size=200)),
    st.one_of(st.none(), st.binary(max_size=300), st.text(max_size=300).map(str.encode)),
)
def test_metadata_of_any_kind_are_read_or_refused(
    metadata: bytes | None, wheel_file: bytes | None, entry_points: str | None, record: bytes | None
):
    try:
        maker = WheelMaker(metadata=metadata, wheel_file=wheel_file, entry_points=entry_points, record=record)
        data = maker.build()
    except UnicodeError:
        assume(False)
    report = accepted(data)
    if report is not None:
        assert_record_is_true(data, report)
        assert (report.name, report.version) == ("honest", "1.0")
        # whatever was read can be written into the report and read back
        assert read_report(write_report([report]), what="fuzz")[0].sha256 == report.sha256


@FUZZ
@given(st.text(max_size=60), st.text(max_size=20))
def test_headers_of_any_kind_survive_the_report(summary: str, requires: str):
    try:
        maker = WheelMaker(headers=(f"Summary: {summary}", f"License: {summary}", f"Requires-Python: {requires}"))
        report = accepted(maker.build())
    except UnicodeError:
        assume(False)
    if report is not None:
        assert read_report(write_report([report]), what="fuzz")[0].model_dump() == report.model_dump()


@FUZZ
@given(st.text(min_size=1, max_size=60))
def test_a_file_name_of_any_kind_is_read_or_refused(name: str):
    for filename in (name, f"{name}.whl", f"honest-{name}-py3-none-any.whl", f"honest-1.0-{name}.whl"):
        report = accepted(VALID, filename)
        # PEP 440 takes 1, 1.0 and 1.0.0 for one version
        assert report is None or (report.name, Version(report.version)) == ("honest", Version("1.0"))


@FUZZ
@given(st.binary(max_size=400), st.integers(0, 40))
def test_elf_files_of_any_kind_are_read_or_refused(body: bytes, keep: int):
    head = bytes.fromhex("7f454c4602010100000000000000000003003e0001000000")[:keep] or b"\x7fELF"
    accepted(WheelMaker(files={"honest/x.so": b"\x7fELF" + head[4:] + body}).build())


@FUZZ
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))))
def test_locks_of_any_kind_are_read_or_refused(data: bytes):
    try:
        lock = parse_lock(data, name="fuzz.lock")
    except VendorError:
        return
    assert all(pin.hashes for pin in lock.pins)


LINE = st.lists(
    st.sampled_from(
        [
            "foo",
            "==",
            "1.0",
            " ",
            "\\\n",
            "\n",
            "#",
            ";",
            " --hash=sha256:" + "a" * 64,
            "--index-url",
            "-r",
            "-e",
            "python_version<'3'",
        ]
    ),
    max_size=12,
).map("".join)


@FUZZ
@given(LINE)
def test_an_accepted_lock_pins_what_pip_would_read(text: str):
    try:
        lock = parse_lock(text.encode(), name="fuzz.lock")
    except VendorError:
        return
    assert {str(pin) for pin in lock.pins} <= {"foo==1.0", "foo==11.0"} or len(lock.pins) == 1
    assert "--index-url" not in "".join(line.split("#")[0] for line in text.replace("\\\n", "").splitlines())


@FUZZ
@given(st.binary(max_size=400), st.sampled_from(["text/html", "application/vnd.pypi.simple.v1+json", ""]))
def test_index_pages_of_any_kind_are_read_or_refused(data: bytes, kind: str):
    try:
        parse_page(data, kind, "http://127.0.0.1/simple/x/")
    except VendorError as error:
        assert error.code == "VENDOR_INDEX_MALFORMED"


@FUZZ
@given(
    st.one_of(
        st.text(max_size=40), st.text(max_size=30).map("https://".__add__), st.text(max_size=30).map("file://".__add__)
    )
)
def test_addresses_of_any_kind_on_a_page_are_followed_or_refused(url: str):
    """A page that is read can name any address; asking for it ends in bytes or in a refusal."""
    page = json.dumps({"files": [{"filename": "x-1-py3-none-any.whl", "url": url, "hashes": {}}]}).encode()
    try:
        files = parse_page(page, "application/vnd.pypi.simple.v1+json", "http://127.0.0.1:9/simple/x/")
    except VendorError:
        return
    for file in files:
        assert file.url.startswith(("http://", "https://"))
        # no other host is asked
        assume("127.0.0.1" in file.url or not re.search(r"//[^/]*[a-z]", file.url))
        with contextlib.suppress(VendorError), INDEX.open(file) as chunks:
            next(iter(chunks), b"")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["files", "filename", "url", "hashes", "sha256", "upload-time", "size", "yanked"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@FUZZ
@given(JSON)
def test_json_pages_of_any_shape_are_read_or_refused(value: object):
    try:
        parse_page(json.dumps(value).encode(), "application/vnd.pypi.simple.v1+json", "http://127.0.0.1/simple/x/")
    except VendorError as error:
        assert error.code == "VENDOR_INDEX_MALFORMED"


@FUZZ
@given(st.binary(max_size=300), st.sampled_from([".safetensors", ".json", ".txt", ".md", ".bin", ""]), st.booleans())
def test_model_files_of_any_kind_are_read_or_refused(data: bytes, suffix: str, framed: bool):
    framed_data = len(data).to_bytes(8, "little") + data if framed else data
    try:
        check_format(f"x{suffix}", framed_data)
    except VendorError as error:
        assert error.code == "VENDOR_MODEL_FORMAT"


def test_the_archive_reader_and_the_standard_one_agree_on_many_honest_shapes():
    @settings(FUZZ)
    @given(
        st.dictionaries(
            st.from_regex(r"[a-z]{1,6}(/[a-z]{1,6}){0,3}\.py", fullmatch=True), st.binary(max_size=3000), max_size=8
        ),
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    )
    def agree(files: dict[str, bytes], compression: int) -> None:
        data = pack(files, compression=compression)
        archive = Archive(data, what="x.whl")
        assert {name: archive.read(name) for name in archive.members} == files

    agree()


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
def test_stronger_digests_in_record_are_accepted_when_true(algorithm: str):
    maker = WheelMaker()
    members = maker.members()
    lines = []
    for name, content in members.items():
        if name.endswith("RECORD"):
            lines.append(f"{name},,")
            continue
        digest = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},{algorithm}={digest},{len(content)}")
        assert record_line(name, content) not in lines
    members[f"{maker.info}/RECORD"] = "\n".join(lines).encode()
    report = accepted(pack(members))
    assert report is not None
    members["honest/__init__.py"] += b"#"
    assert accepted(pack(members)) is None
