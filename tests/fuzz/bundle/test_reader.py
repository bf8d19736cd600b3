"""Random archives and random damage: the reader ends with exactly the signed files, or with a code of the catalogue."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.bundle.inputs import Payload
from appliance.bundle.stage0.manifest import read_manifest, safe_name
from appliance.bundle.stage0.refusal import Refused
from appliance.bundle.stage0.ustar import BLOCK, parse_tar_header, tar_header
from appliance.bundle.volumes import split
from appliance.errors import FileError, catalogue
from appliance.files import safe_relative
from tests.support import bundle as support

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = st.from_regex(r"[a-z0-9_]{1,12}(/[a-z0-9_]{1,12}){0,2}", fullmatch=True).filter(safe_name)


@QUICK
@given(st.binary(min_size=0, max_size=BLOCK * 2))
def test_a_block_is_a_header_in_the_one_form_or_refused(block):
    try:
        name, size, executable = parse_tar_header(block[:BLOCK])
    except Refused as refused:
        assert refused.code in catalogue()
    else:
        assert tar_header(name, size, executable=executable) == block[:BLOCK]


@QUICK
@given(st.data())
def test_no_change_to_a_header_is_read_as_another_member(data):
    honest = tar_header("data/file", 1234)
    altered = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, BLOCK - 1))] = data.draw(st.integers(0, 255))
    altered[148:156] = b" " * 8
    altered[148:156] = b"%06o\0 " % sum(altered)  # a forger mends the checksum
    try:
        name, size, executable = parse_tar_header(bytes(altered))
    except Refused as refused:
        assert refused.code in ("BUNDLE_HEADER", "BUNDLE_MEMBER_KIND")
    else:
        assert tar_header(name, size, executable=executable) == bytes(altered)


@QUICK
@given(st.binary(max_size=400))
def test_any_bytes_as_a_manifest_are_refused_with_a_code(data):
    try:
        read_manifest(data)
    except Refused as refused:
        assert refused.code in catalogue()


@QUICK
@given(st.text(alphabet="aA./\\_-: \0\n~é%", max_size=20))
def test_a_name_the_manifest_takes_is_one_that_the_ground_floor_takes(name):
    if safe_name(name):
        try:
            assert safe_relative(name) == name
        except FileError as error:
            raise AssertionError(name) from error


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(NAMES, st.binary(max_size=5000), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_damaged_archive_yields_the_signed_files_or_a_refusal(content, seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            built = support.archive(work / "media", [Payload(name, data) for name, data in content.items()])
        except Exception as error:  # names that collide are refused when the release is built
            assert getattr(error, "code", "") == "BUNDLE_NAME"
            return
        data = bytearray(built.path.read_bytes())
        for _ in range(chance.randint(0, 3)):
            action, at = chance.choice(["flip", "cut", "grow", "swap"]), chance.randrange(len(data))
            if action == "flip":
                data[at] ^= 1 << chance.randrange(8)
            elif action == "cut":
                del data[at:]
            elif action == "grow":
                data[at:at] = chance.randbytes(chance.randint(1, 600))
            else:
                other = chance.randrange(len(data))
                data[at : at + BLOCK], data[other : other + BLOCK] = data[other : other + BLOCK], data[at : at + BLOCK]
            if not data:
                break
        built.path.write_bytes(data)
        try:
            support.unpack([built.path], work / "target")
        except Refused as refused:
            assert refused.code in catalogue()
        else:
            assert support.tree(work / "target") == content


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(20_000, 60_000), st.integers(15_000, 40_000), st.integers(0, 2**32))
def test_damaged_volumes_yield_the_signed_files_or_a_refusal(size, volume_bytes, seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        content = {"data/one": chance.randbytes(size), "data/two": chance.randbytes(size // 3)}
        built = support.archive(work / "archive", [Payload(name, data) for name, data in content.items()])
        paths = split(built.path, work / "volumes", volume_bytes=volume_bytes)
        for _ in range(chance.randint(0, 3)):
            path = chance.choice(paths)
            if not path.exists():
                continue
            data = bytearray(path.read_bytes())
            if chance.random() < 0.2:
                path.unlink()
            else:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        try:
            support.unpack([work / "volumes"], work / "target")
        except Refused as refused:
            assert refused.code in catalogue()
        else:
            assert support.tree(work / "target") == content
