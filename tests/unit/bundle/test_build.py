"""What goes into a release: exactly the locked wheels, signed models, and the same bytes every time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version
from typer.testing import CliRunner

from appliance.bundle.build import SegmentDigests, build
from appliance.bundle.inputs import Payload, collect, select_wheels
from appliance.bundle.own_wheel import own_wheel
from appliance.cli.bundle import parse_size
from appliance.cli.main import app
from appliance.errors import ApplianceError
from appliance.vendoring.locks import Pin
from tests.support import artifacts, children
from tests.support import bundle as support
from tests.support.trust import make_authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


def wheel(folder: Path, filename: str, content: bytes = b"content") -> Pin:
    folder.mkdir(exist_ok=True)
    (folder / filename).write_bytes(content)
    name, version = filename.split("-")[:2]
    return Pin(name, Version(version), frozenset({hashlib.sha256(content).hexdigest()}))


def test_exactly_the_locked_wheels_are_taken_each_with_its_own_digest(tmp_path):
    house = tmp_path / "house"
    pin = wheel(house, "one-1.0-py3-none-any.whl")
    wheel(house, "one-2.0-py3-none-any.whl", b"newer")
    wheel(house, "stray-1.0-py3-none-any.whl", b"stray")
    wheels, requirements = select_wheels([pin], house)
    assert [file.path for file in wheels] == ["wheels/one-1.0-py3-none-any.whl"]
    assert requirements == f"one==1.0 --hash=sha256:{hashlib.sha256(b'content').hexdigest()}\n"


def test_a_wheel_that_is_missing_altered_or_there_twice_ends_the_build(tmp_path):
    house = tmp_path / "house"
    pin = wheel(house, "one-1.0-py3-none-any.whl")
    (house / "one-1.0-py3-none-any.whl").write_bytes(b"poisoned")
    absent = Pin("absent", Version("1.0"), frozenset({"0" * 64}))
    other = wheel(house, "two-1.0-py3-none-any.whl", b"a")
    second = wheel(house, "two-1.0-py2.py3-none-any.whl", b"b")
    both = Pin("two", Version("1.0"), other.hashes | second.hashes)
    for bad in (pin, absent, both):
        with pytest.raises(ApplianceError) as caught:
            select_wheels([bad], house)
        assert caught.value.code == "BUNDLE_INPUT"


def payload_of(**changes) -> list[Payload]:
    given = {
        "wheels": [], "requirements": "", "locks": [], "encoder": None, "router": None,
        "configuration": None, "evidence": [], "parts": [],
    }  # fmt: skip
    return collect(**(given | changes))


def test_the_payload_has_one_fixed_order(authority, tmp_path):
    router = artifacts.signed(artifacts.router_files(), authority.signer("producer"))
    config = tmp_path / "config"
    config.mkdir()
    (config / "appliance.yaml").write_text("schema_version: 1\n")
    files = payload_of(router=artifacts.write(router, tmp_path / "router"), configuration=config)
    paths = [file.path for file in files]
    assert paths[:2] == ["stage0.py", "requirements.txt"]
    assert [path.split("/")[0] for path in paths[2:]] == ["wheels"] + ["router"] * 4 + ["config"]
    assert b"llm-routing-appliance==" in files[1].content


def test_an_unsigned_model_or_one_of_the_wrong_kind_ends_the_build(authority, tmp_path):
    unsigned = artifacts.write(artifacts.router_files(), tmp_path / "unsigned")
    with pytest.raises(ApplianceError) as caught:
        payload_of(router=unsigned)
    assert caught.value.code == "ARTIFACT_UNSIGNED"
    signed = artifacts.signed(artifacts.router_files(), authority.signer("producer"))
    with pytest.raises(ApplianceError) as caught:
        payload_of(encoder=artifacts.write(signed, tmp_path / "router"))
    assert caught.value.code == "BUNDLE_INPUT"


def test_a_file_that_changes_under_the_build_ends_it(tmp_path):
    class Changing(Payload):
        def chunks(self, chunk_bytes: int = 1024 * 1024):
            path = tmp_path / "count"
            seen = path.read_text() if path.exists() else ""
            path.write_text(seen + "x")
            yield b"a" if not seen else b"b"

    with pytest.raises(ApplianceError) as caught:
        support.archive(tmp_path / "media", [Changing("data/file", b"a")])
    assert caught.value.code == "BUNDLE_INPUT"
    assert not list((tmp_path / "media").glob("*.tar"))
    assert not list((tmp_path / "media").glob(".*"))


def test_our_own_wheel_is_the_same_every_time_and_whole(tmp_path):
    name, data = own_wheel()
    assert own_wheel() == (name, data)
    path = tmp_path / name
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        record = archive.read(next(each for each in names if each.endswith("RECORD"))).decode()
        assert {line.split(",")[0] for line in record.splitlines()} == set(names)
    assert "appliance/catalogue/bundle.yaml" in names
    assert "appliance/cli/main.py" in names
    assert not [each for each in names if "__pycache__" in each]


def test_segment_digests_do_not_depend_on_how_the_stream_was_cut():
    data = bytes(range(256)) * 40
    whole = [hashlib.sha256(data[at : at + 1000]).hexdigest() for at in range(0, len(data), 1000)]
    for step in (1, 7, 999, 1000, 1001, 5000):
        digests = SegmentDigests(1000)
        for at in range(0, len(data), step):
            digests.update(data[at : at + step])
        assert digests.finish() == whole


@pytest.mark.parametrize(
    ("text", "size"), [("3900M", 3900 * 1024**2), ("4G", 4 * 1024**3), ("650k", 665600), ("12345", 12345)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


def test_a_release_for_which_there_is_no_room_is_neither_written_nor_signed(tmp_path):
    class Nobody:
        def sign_statement(self, payload: bytes) -> bytes:
            raise AssertionError("signed")

    disk = tmp_path / "disk"
    disk.mkdir()

    def built() -> None:
        children.on_small_disk(disk, 64 * 1024)
        try:
            build(support.identity(), [Payload("data/x", bytes(100_000))], support.TRUST, Nobody(), disk / "out")
        finally:
            assert list((disk / "out").iterdir()) == []

    assert children.run(built) == "FILE_NO_SPACE"


def test_a_size_that_is_none_is_refused():
    with pytest.raises(ApplianceError) as caught:
        parse_size("much")
    assert caught.value.code == "BUNDLE_VOLUME_SIZE"


def test_the_command_says_where_wheels_are_missing(authority, tmp_path):
    command = ["bundle", "build", "--out", str(tmp_path), "--authority", str(authority.path)]
    result = CliRunner().invoke(app, [*command, "--wheelhouse", str(tmp_path / "none"), "--json"])
    assert result.exit_code == 1
    assert "BUNDLE_INPUT" in result.stdout
    assert "appliance vendor fetch" in result.stdout


def test_listing_releases_does_not_load_the_verifier():
    code = "import sys, appliance.cli.install; print([m for m in ('tuf', 'sigstore', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
