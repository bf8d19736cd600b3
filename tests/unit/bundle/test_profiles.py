"""What each profile of a release holds, told by its locks: what serves without torch, what trains with its CPU build.

The training and full releases are 630 MB each: building, verifying and installing them without a network is done by
hand for a release (docs/releases.md); here is what can go wrong in their lists.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.bundle.health import MODULES
from appliance.vendoring.targets import Targets

VENDOR = Path(__file__).parents[3] / "vendor"
TARGET = "cp311-manylinux_x86_64"
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def pins(profile: str, target: str = TARGET) -> dict[str, str]:
    return {pin.name: str(pin.version) for pin in Targets.read(VENDOR).pins(profile, target)}


@pytest.mark.parametrize("profile", ["gateway", "training", "full"])
def test_the_health_check_of_a_profile_asks_for_what_its_lock_holds(profile):
    held = pins(profile)
    for module in MODULES[profile]:
        package = module.partition(".")[0]
        assert DISTRIBUTIONS.get(package, package.replace("_", "-")) in held, module


def test_what_serves_carries_no_torch_and_nothing_that_needs_it():
    for target in ("cp311-manylinux_x86_64", "cp312-manylinux_x86_64", "cp311-manylinux_aarch64"):
        assert not {"torch", "sentence-transformers", "picklescan", "modelscan"} & pins("gateway", target).keys()


@pytest.mark.parametrize("profile", ["training", "full"])
def test_what_trains_carries_the_cpu_build_and_every_version_of_what_serves(profile):
    held = pins(profile)
    assert held["torch"].endswith("+cpu")
    assert not [name for name in held if name.startswith(("nvidia-", "cuda-"))]
    gateway = pins("gateway")
    assert {name: held.get(name) for name in gateway} == gateway
