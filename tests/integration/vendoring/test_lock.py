"""`appliance vendor lock` for real: pip-compile against a loopback index, then fetch and audit what it chose.

What is locked, moved, fetched and audited on a good day is typed from the guide: `test_vendoring_guide.py`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.vendoring.locks import read_lock
from tests.support.vendoring import Offer, PackageIndex, WheelMaker, litellm_1_82_8

pytestmark = pytest.mark.slow
TODAY = datetime.now(UTC)
TARGETS = """
schema_version: 1
targets:
  cp311-manylinux_x86_64:
    {python: "3.11", architecture: x86_64, glibc: "2.28", profiles: {gateway: [gateway.lock]}}
  cp311-manylinux_aarch64:
    {python: "3.11", architecture: aarch64, glibc: "2.28", profiles: {gateway: [gateway.lock]}}
"""
POLICY = """
schema_version: 1
ripening: {minimum_days: 3}
refused_versions:
  - {package: litellm, versions: "<1.84.0", reason: known to be malicious or vulnerable}
"""


def ago(days: float) -> str:
    return (TODAY - timedelta(days=days)).isoformat()


def sdist(name: str, marker: Path) -> Offer:
    """A source archive whose build leaves a mark: nothing may ever run it."""
    setup = f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name={name!r}, version='1.0')\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, text in (("setup.py", setup), ("PKG-INFO", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")):
            entry = tarfile.TarInfo(f"{name}-1.0/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return Offer(f"{name}-1.0.tar.gz", buffer.getvalue())


@dataclass
class Bench:
    """A project folder with its vendor inputs, and the index it locks against."""

    root: Path
    index: PackageIndex
    url: str

    @property
    def requirements(self) -> Path:
        return self.root / "vendor" / "requirements"

    def run(self, *arguments: str) -> tuple[int, Any]:
        """Run the real command; its exit status and its JSON."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": self.url,
            "PIP_CACHE_DIR": str(self.root / "cache"),
            "PIP_TOOLS_CACHE_DIR": str(self.root / "cache"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        command = [sys.executable, "-m", "appliance.cli.main", "vendor", *arguments, "--json"]
        result = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result.returncode, json.loads(result.stdout)

    def asks(self, text: str) -> None:
        (self.requirements / "gateway.in").write_text(text)

    def pinned(self) -> set[str]:
        return {str(pin) for pin in read_lock(self.requirements / "gateway.lock").pins}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "vendor" / "requirements").mkdir(parents=True)
    (tmp_path / "vendor" / "targets.yaml").write_text(TARGETS)
    (tmp_path / "vendor" / "policy.yaml").write_text(POLICY)
    index = PackageIndex()
    with index.serving() as url:
        yield Bench(tmp_path, index, url)


def test_a_release_that_is_too_young_is_passed_over_for_the_newest_that_has_ripened(bench: Bench):
    bench.index.add_wheel(WheelMaker("app", requires=("lib",)), uploaded=ago(30))
    for version, days in (("1.0", 400), ("1.1", 10), ("1.2", 2), ("1.3", 0.1)):
        bench.index.add_wheel(WheelMaker("lib", version), uploaded=ago(days))
    bench.asks("app\n")
    status, outcome = bench.run("lock", "gateway")
    assert status == 0, outcome
    assert bench.pinned() == {"app==1.0", "lib==1.1"}
    assert outcome["gateway"]["passed_over"] == ["lib==1.3", "lib==1.2"]
    assert "unripe" not in (bench.requirements / "gateway.lock").read_text()
    assert not (bench.requirements / "unripe.in").exists()


def test_where_nothing_has_ripened_the_old_lock_stays(bench: Bench):
    bench.index.add_wheel(WheelMaker("lib", "1.0"), uploaded=ago(100))
    bench.asks("lib\n")
    bench.run("lock", "gateway")
    before = (bench.requirements / "gateway.lock").read_bytes()
    bench.index.add_wheel(WheelMaker("lib", "2.0"), uploaded=ago(1))
    bench.asks("lib>=2\n")
    status, outcome = bench.run("lock", "gateway")
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_UNRIPE")
    assert outcome["error"]["evidence"]["young"] == ["lib==2.0"]
    assert (bench.requirements / "gateway.lock").read_bytes() == before
    policy = POLICY.replace("minimum_days: 3", 'minimum_days: 3, exempt: {lib==2.0: "the fix for CVE-2026-0001"}')
    (bench.root / "vendor" / "policy.yaml").write_text(policy)
    assert bench.run("lock", "gateway")[0] == 0
    assert bench.pinned() == {"lib==2.0"}


def test_a_file_that_came_to_a_locked_release_is_told_though_its_version_stays(bench: Bench):
    bench.index.add_wheel(WheelMaker("lib", "1.0"), uploaded=ago(100))
    bench.asks("lib\n")
    assert bench.run("lock", "gateway")[0] == 0
    assert bench.run("lock", "gateway")[1]["gateway"] == {"changes": [], "rehashed": {}, "passed_over": []}
    bench.index.add_wheel(WheelMaker("lib", "1.0", tag="cp311-cp311-manylinux_2_17_x86_64"), uploaded=ago(30))
    status, outcome = bench.run("lock", "gateway", "--upgrade", "lib")
    assert status == 0, outcome
    assert outcome["gateway"] == {"changes": [], "rehashed": {"lib==1.0": [1, 0]}, "passed_over": []}


def test_a_package_that_exists_as_source_only_is_neither_locked_nor_run(bench: Bench):
    mark = bench.root / "executed"
    bench.index.add("legacy", sdist("legacy", mark))
    bench.asks("legacy\n")
    status, outcome = bench.run("lock", "gateway")
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_TOOL_FAILED")
    assert "legacy" in outcome["error"]["evidence"]["says"]
    assert not mark.exists()
    # a lock made elsewhere may pin it all the same: the fetch refuses it, and runs nothing either
    offer = bench.index.offers["legacy"][0]
    (bench.requirements / "gateway.lock").write_text(f"legacy==1.0 --hash=sha256:{offer.told_sha256}\n")
    status, outcome = bench.run("fetch", "--no-models")
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_SDIST_ONLY")
    assert not mark.exists()


def test_a_wheel_that_another_target_does_not_have_is_named_on_the_connected_side(bench: Bench):
    bench.index.add_wheel(WheelMaker("fast", tag="cp311-cp311-manylinux_2_17_x86_64"))
    bench.index.add_wheel(WheelMaker("plain"))
    bench.asks("fast\nplain\n")
    assert bench.run("lock", "gateway")[0] == 0
    assert bench.run("fetch", "--no-models")[0] == 0
    assert bench.run("fetch", "--dry-run")[1]["wheels"] == [
        "fast-1.0-cp311-cp311-manylinux_2_17_x86_64.whl",
        "plain-1.0-py3-none-any.whl",
    ]
    status, outcome = bench.run("fetch", "--dry-run", "--target", "cp311-manylinux_aarch64")
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_WHEEL_MISSING")
    assert not (bench.root / "vendor" / "wheelhouse" / "cp311-manylinux_aarch64").exists()
    assert list(outcome["error"]["evidence"]["missing"]) == ["fast==1.0"]
    assert "aarch64" in outcome["error"]["evidence"]["missing"]["fast==1.0"]


def test_a_lock_pins_malware_faithfully_and_admission_finds_it(bench: Bench):
    """The hash says that nothing was swapped since the lock; only a look inside says what it is."""
    poisoned = litellm_1_82_8()
    bench.index.add_wheel(poisoned)
    renamed = WheelMaker("helper", files=dict(poisoned.files))
    bench.index.add_wheel(renamed)
    bench.asks("litellm\nhelper\n")
    assert bench.run("lock", "gateway")[0] == 0
    assert bench.pinned() == {"litellm==1.82.8", "helper==1.0"}
    wheels = bench.run("fetch", "--no-models")[1]["directory"]
    status, outcome = bench.run("audit", wheels, "--profile", "gateway", "--report", "report.json")
    assert (status, outcome["admitted"]) == (1, False)
    refused = {(refusal["code"], refusal["evidence"]["wheel"]) for refusal in outcome["refusals"]}
    assert ("VENDOR_VULNERABLE", poisoned.filename) in refused
    assert ("VENDOR_STARTUP_FILE", poisoned.filename) in refused
    assert ("VENDOR_STARTUP_FILE", renamed.filename) in refused
    assert not (bench.root / "report.json").exists()
    status, outcome = bench.run("sbom", wheels)
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_NOT_ADMITTED")


def test_a_conflict_is_told_in_the_resolvers_words_without_its_traceback(bench: Bench):
    bench.index.add_wheel(WheelMaker("a", requires=("lib<2",)))
    bench.index.add_wheel(WheelMaker("lib", "1.0"))
    bench.index.add_wheel(WheelMaker("lib", "2.0"))
    bench.asks("a\nlib>=2\n")
    status, outcome = bench.run("lock", "gateway")
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_TOOL_FAILED")
    assert "conflict" in outcome["error"]["evidence"]["says"]
    assert not (bench.requirements / "gateway.lock.new").exists()


def test_a_lock_that_draws_in_a_cuda_build_is_not_written(bench: Bench):
    bench.index.add_wheel(WheelMaker("heavy", requires=("nvidia-cublas",)))
    bench.index.add_wheel(WheelMaker("nvidia-cublas"))
    bench.asks("heavy\n")
    status, outcome = bench.run("lock", "gateway")
    assert (status, outcome["error"]["code"]) == (1, "VENDOR_LOCK_FOREIGN")
    assert not (bench.requirements / "gateway.lock").exists()
