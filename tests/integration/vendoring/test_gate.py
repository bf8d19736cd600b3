"""No release is built from wheels that vendoring does not admit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.bundle.recipe import Recipe, build_release
from appliance.errors import ApplianceError
from appliance.files import sha256_hex
from tests.support.vendoring import WheelMaker, litellm_1_82_8

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def refusal(folder: Path, *makers: WheelMaker) -> str:
    """Build a release of these wheels with an authority that does not exist: the code of the first refusal."""
    vendor = folder / "vendor"
    (vendor / "requirements").mkdir(parents=True)
    lines = [f"{m.name}=={m.version} --hash=sha256:{sha256_hex(m.build())}\n" for m in makers]
    (vendor / "requirements" / "gateway.lock").write_text("".join(lines))
    (vendor / "requirements" / "gateway.in").write_text("\n".join(m.name for m in makers))
    (vendor / "policy.yaml").write_text("schema_version: 1\nripening: {minimum_days: 3}\n")
    (vendor / "models.yaml").write_text("schema_version: 1\nmodels: {}\n")
    (vendor / "targets.yaml").write_text(
        "schema_version: 1\ntargets:\n  t: {python: '3.11', architecture: x86_64, glibc: '2.28', profiles: "
        "{gateway: [gateway.lock]}}\n"
    )
    for maker in makers:
        maker.write(vendor / "wheelhouse" / "t")
    recipe = Recipe("gateway", "t", folder / "no-authority", NOW, vendor=vendor)
    with pytest.raises(ApplianceError) as caught:
        build_release(recipe, folder / "out", now=NOW)
    assert not (folder / "out").exists()
    return caught.value.code


def test_a_release_with_a_poisoned_wheel_is_not_even_brought_before_the_signer(tmp_path: Path):
    assert refusal(tmp_path / "poisoned", litellm_1_82_8()) == "VENDOR_STARTUP_FILE"
    assert refusal(tmp_path / "incomplete", WheelMaker("app", requires=("gone",))) == "VENDOR_DEPENDENCY"
    honest = refusal(tmp_path / "honest", WheelMaker("app"))
    assert not honest.startswith("VENDOR_")  # it got as far as the missing authority
