"""Every target of ours, checked completely on the connected side: from locks and index pages, nothing fetched."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import VendorError
from appliance.vendoring.index import Index, Sources
from appliance.vendoring.pages import IndexFile
from appliance.vendoring.selection import LOOKUPS_AT_ONCE, select, version_of
from appliance.vendoring.targets import Targets

pytestmark = pytest.mark.slow
VENDOR = Path(__file__).parents[3] / "vendor"
TARGETS = Targets.read(VENDOR)
NAMES = [f"cp{python}-manylinux_{architecture}" for python in ("311", "312") for architecture in ("x86_64", "aarch64")]


class Pages(dict[str, list[IndexFile]]):
    """What the index says of each project, in an index's place: no file can be fetched from it."""

    def files(self, name: str) -> list[IndexFile]:
        return self[name]

    def without(self, package: str, change) -> Pages:  # type: ignore[no-untyped-def]
        """The same pages, those of one package changed."""
        return Pages({**self, package: [file for one in self[package] for file in change(one)]})


@pytest.fixture(scope="module")
def pages() -> Pages:
    pins = {pin.name: pin for target in NAMES for pin in TARGETS.pins("gateway", target)}
    with Index(Sources.from_pip()) as index, ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:
        offers = zip(pins.values(), pool.map(index.files, pins), strict=True)
        # a project's page names thousands of files; those of other versions are another test's matter
        return Pages(
            {pin.name: [file for file in files if version_of(file.filename) == pin.version] for pin, files in offers}
        )


def chosen(pages: Pages, target: str, only: str = "") -> dict[str, IndexFile]:
    pins = [pin for pin in TARGETS.pins("gateway", target) if not only or pin.name == only]
    return {item.pin.name: item.file for item in select(pins, TARGETS.target(target), pages)}


def refusal(pages: Pages, target: str, package: str) -> VendorError:
    with pytest.raises(VendorError) as caught:
        chosen(pages, target, package)
    return caught.value


@pytest.mark.parametrize("target", NAMES)
def test_every_locked_package_has_a_wheel_that_its_oldest_host_can_run(pages: Pages, target: str):
    files = chosen(pages, target)
    assert len(files) == len(TARGETS.pins("gateway", target)) > 150
    native = [file.filename for file in files.values() if not file.filename.endswith("-any.whl")]
    assert len(native) > 40
    architecture = TARGETS.target(target).architecture
    assert all(architecture in name for name in native)
    newest = max(
        int(minor) for name in native for minor in re.findall(r"manylinux_2_(\d+)", name.split(".manylinux")[0])
    )
    assert newest <= 28, "the policy's glibc is 2.28"


@pytest.mark.parametrize("target", NAMES)
def test_a_missing_wheel_a_source_archive_and_a_newer_glibc_fail_here_not_in_the_zone(pages: Pages, target: str):
    package = "cryptography"
    assert chosen(pages, target, package)

    error = refusal(pages.without(package, lambda _: []), target, package)
    assert error.code == "VENDOR_WHEEL_MISSING"
    assert next(iter(error.evidence["missing"])).startswith(f"{package}==")

    sources = pages.without(package, lambda file: [] if file.filename.endswith(".whl") else [file])
    assert refusal(sources, target, package).code == "VENDOR_SDIST_ONLY"

    def newer(file: IndexFile) -> list[IndexFile]:
        name = re.sub(r"manylinux_2_\d+|manylinux20\d\d|manylinux1", "manylinux_2_39", file.filename)
        return [] if "-any." in name else [replace(file, filename=name)]

    error = refusal(pages.without(package, newer), target, package)
    assert error.code == "VENDOR_WHEEL_MISSING"
    assert "manylinux_2_39" in next(iter(error.evidence["missing"].values()))
    assert "glibc 2.28" in next(iter(error.evidence["missing"].values()))


def test_a_profile_that_a_target_does_not_carry_is_refused_by_name():
    with pytest.raises(VendorError) as caught:
        TARGETS.pins("training", "cp312-manylinux_aarch64")
    assert caught.value.code == "VENDOR_UNKNOWN_PROFILE"
    assert caught.value.evidence["known"] == ["gateway"]
