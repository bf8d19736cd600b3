"""The real thing: every locked wheel of the gateway, fetched as the demo fetches it, admitted and complete."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import VendorError
from appliance.files import sha256_hex
from appliance.vendoring.admission import admit, judge
from appliance.vendoring.archive import Archive
from appliance.vendoring.audit import Audit, audit
from appliance.vendoring.difference import compare, read_report, write_report
from appliance.vendoring.fetch import fetch, read_fetched
from appliance.vendoring.index import Index, Sources
from appliance.vendoring.models import fetch_model, read_models
from appliance.vendoring.policy import Policy
from appliance.vendoring.rules import Circumstances
from appliance.vendoring.sbom import check_sbom, licences, sbom
from appliance.vendoring.targets import Targets
from appliance.vendoring.wheel import inspect_wheel
from tests.support.vendoring import WheelMaker, pack, record_line

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
VENDOR = ROOT / "vendor"
TARGET = "cp311-manylinux_x86_64"


def open_index() -> Index:
    return Index(Sources.from_pip())


@pytest.fixture(scope="module")
def wheelhouse() -> Path:
    """The project's own wheelhouse; where it is complete no index is asked."""
    targets = Targets.read(VENDOR)
    folder = VENDOR / "wheelhouse" / TARGET
    fetch(
        targets.pins("gateway", TARGET),
        targets.target(TARGET),
        folder,
        open_index=open_index,
        others=targets.every_pin(TARGET),
    )
    return folder


@pytest.fixture(scope="module")
def result(wheelhouse: Path) -> Audit:
    return audit(wheelhouse, VENDOR, profile="gateway", target=TARGET, now=datetime.now(UTC))


def test_every_locked_wheel_of_the_gateway_is_admitted_and_the_set_is_complete(result: Audit):
    wheels = result.admission.require()
    assert len(wheels) > 150
    assert result.unneeded == ()
    assert {wheel.name for wheel in wheels} >= {"litellm", "uv", "onnxruntime", "sigstore", "cryptography"}
    assert not {wheel.name for wheel in wheels} & {"torch", "sentence-transformers", "picklescan"}
    assert not any(wheel.startup for wheel in wheels)
    assert max(library.glibc_pair for wheel in wheels for library in wheel.native) <= (2, 28)
    assert compare(read_report(write_report(wheels), what="r"), wheels) == []


def test_the_sbom_of_the_real_wheels_meets_the_schema_and_names_every_licence(result: Audit):
    wheels = result.admission.inspections
    moment = datetime(2026, 11, 23, tzinfo=UTC)
    data = sbom(
        wheels,
        read_models(VENDOR),
        name="appliance",
        version="1.0",
        target=Targets.read(VENDOR).target(TARGET),
        at=moment,
    )
    document = json.loads(data)
    check_sbom(data.decode())
    assert len(document["components"]) == len(wheels) + 1
    assert "none named" not in licences(wheels, {})
    unlicensed = {part["name"] for part in document["components"] if not part.get("licenses")}
    assert len(unlicensed) < 5


def test_the_same_wheels_judged_a_year_earlier_had_not_ripened(result: Audit, wheelhouse: Path):
    told = {wheel.sha256: wheel for wheel in read_fetched(wheelhouse)}
    then = datetime(2025, 11, 23, tzinfo=UTC)
    verdict = judge(result.admission.inspections, Circumstances(Policy.read(VENDOR), then, None, told))
    assert {refusal.code for refusal in verdict.refusals} == {"VENDOR_TOO_YOUNG"}


def test_a_second_fetch_of_everything_takes_seconds_and_asks_nobody(wheelhouse: Path):
    targets = Targets.read(VENDOR)

    def nobody() -> Index:
        raise AssertionError("an index was asked")

    started = time.process_time()
    house = fetch(
        targets.pins("gateway", TARGET),
        targets.target(TARGET),
        wheelhouse,
        open_index=nobody,
        others=targets.every_pin(TARGET),
    )
    assert house.downloaded == 0
    assert time.process_time() - started < 5


def test_a_bit_flipped_anywhere_in_a_real_wheel_is_never_another_content(wheelhouse: Path):
    """Ten places in each of the small wheels: refused, or the very same files."""
    chance = random.Random(2026)
    refused = 0
    for path in sorted(wheelhouse.glob("*.whl")):
        if path.stat().st_size > 60_000:
            continue
        data = bytearray(path.read_bytes())
        honest = inspect_wheel(bytes(data), path.name).paths
        for _ in range(10):
            at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
            data[at] ^= bit
            try:
                assert inspect_wheel(bytes(data), path.name).paths == honest
            except VendorError:
                refused += 1
            data[at] ^= bit
    assert refused > 100


def test_a_real_wheel_with_a_file_added_is_refused_and_its_repaired_copy_too(wheelhouse: Path, tmp_path: Path):
    """An attacker who also repairs RECORD passes the look inside; the lock's hash still refuses it."""
    (path,) = wheelhouse.glob("tenacity-*.whl")
    (pin,) = (pin for pin in Targets.read(VENDOR).pins("gateway", TARGET) if pin.name == "tenacity")

    def verdict(members: dict[str, bytes]) -> list[str]:
        (tmp_path / path.name).write_bytes(pack(members))
        found = admit(tmp_path, Policy.read(VENDOR), now=datetime.now(UTC), pins=[pin]).refusals
        return [refusal.code for refusal in found]

    archive = Archive(path.read_bytes(), what=path.name)
    members = {name: archive.read(name) for name in archive.members}
    evil = b"import os\n"
    assert verdict({**members, "tenacity/evil.py": evil}) == ["VENDOR_RECORD"]
    (record,) = (name for name in members if name.endswith("/RECORD"))
    members[record] += (record_line("tenacity/evil.py", evil) + "\n").encode()
    assert verdict({**members, "tenacity/evil.py": evil}) == ["VENDOR_HASH_MISMATCH"]
    shutil.copy(path, tmp_path)
    assert admit(tmp_path, Policy.read(VENDOR), now=datetime.now(UTC), pins=[pin]).refusals == ()


def test_the_real_model_is_fetched_and_true(wheelhouse: Path):
    target = Targets.read(VENDOR).target(TARGET)
    for name, pin in read_models(VENDOR).items():
        model = fetch_model(name, pin, target, VENDOR / "models", open_index=open_index)
        assert (model.directory / "model.safetensors").stat().st_size > 90_000_000


def test_uv_installs_exactly_the_paths_that_admission_reported(tmp_path: Path):
    """What we looked into is what the installer writes: the same files with the same content."""
    maker = WheelMaker(
        files={
            "honest/mod.py": b"x = 1\n",
            "honest-1.0.data/purelib/honest/extra.py": b"y = 2\n",
            "honest-1.0.data/data/share/man/honest.1": b"page\n",
        }
    )
    wheel = maker.write(tmp_path)
    report = inspect_wheel(wheel.read_bytes(), wheel.name)
    out = tmp_path / "out"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "pip", "install", "-q", "--offline", "--no-index", "--no-deps", "--target", out, wheel], check=True
    )
    installed = {
        str(path.relative_to(out)): sha256_hex(path.read_bytes())
        for path in out.rglob("*")
        if path.is_file() and ".dist-info" not in str(path) and path.name != ".lock"
    }
    assert installed == {path.replace("[data]/", ""): digest for path, digest in report.paths.items()}


def test_the_command_speaks_json_and_exits_with_its_verdict(wheelhouse: Path, tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance.cli.main", "vendor", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    honest = tmp_path / "honest"
    WheelMaker().write(honest)
    good = run("audit", str(honest), "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["admitted"] is True
    WheelMaker(files={"x.pth": b"import os\n"}).write(tmp_path)
    bad = run("audit", str(tmp_path))
    assert bad.returncode == 1
    assert "VENDOR_STARTUP_FILE" in bad.stdout
    assert "appliance explain" in bad.stdout
    assert run("audit", str(tmp_path / "nowhere")).returncode == 2
    assert run("fetch", "--profile", "nothing").returncode == 1
    assert run("lock", "nothing").returncode == 2
