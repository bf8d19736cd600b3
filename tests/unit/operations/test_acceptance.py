"""Dependency integrity: files, versions, SBOM."""

import json
from dataclasses import replace

import pytest

from appliance.errors import TrustError
from appliance.operations.acceptance.checks import dependencies, isolation
from appliance.operations.doctor.snapshot import Attempt
from tests.unit.operations.test_doctor import HEALTHY


@pytest.fixture
def payload(tmp_path):
    """A release's folder with two distributions."""
    site = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    for name, version in (("PyYAML", "6.0.3"), ("tuf", "7.0.1")):
        info = site / f"{name.lower()}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "requirements.txt").write_text(
        f"pyyaml==6.0.3 --hash=sha256:{'0' * 64}\ntuf==7.0.1 --hash=sha256:{'1' * 64}\n"
    )
    sbom(folder, "PyYAML", "tuf")
    return folder


def sbom(folder, *names):
    components = [{"name": name, "version": "1"} for name in names]
    (folder / "sbom.cdx.json").write_text(json.dumps({"bomFormat": "CycloneDX", "components": components}))


def test_a_sound_installation_holds(payload):
    result = dependencies(HEALTHY, payload)
    assert result.passed
    assert result.evidence["distributions"] == 2
    assert result.evidence["sbom_components"] == 2


def test_another_version_than_the_signed_one_does_not_hold(payload):
    text = (payload / "requirements.txt").read_text().replace("tuf==7.0.1", "tuf==7.0.2")
    (payload / "requirements.txt").write_text(text)
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["differing"] == {"tuf": ["7.0.2", "7.0.1"]}


def test_a_distribution_that_the_sbom_does_not_name_does_not_hold(payload):
    sbom(payload, "PyYAML")
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["not_in_sbom"] == ["tuf"]


def test_a_release_without_an_sbom_does_not_hold(payload):
    (payload / "sbom.cdx.json").unlink()
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["not_in_sbom"] == "no SBOM is carried"


@pytest.mark.parametrize(
    "drift",
    [
        replace(HEALTHY.drift, changed=("payload/x",)),
        replace(HEALTHY.drift, foreign=("env/evil.pth",)),
        replace(HEALTHY.drift, signature_problem=TrustError("TRUST_DENIED", "denied")),
        TrustError("TRUST_STATE_MISSING", "no state"),
        None,
    ],
    ids=["changed", "foreign", "unsigned", "unreadable", "not installed"],
)
def test_drift_does_not_hold(payload, drift):
    assert not dependencies(replace(HEALTHY, drift=drift), payload).passed


class Locked:
    """A bench whose gateway has closed its doors."""

    def __init__(self, **locks):
        self.locks = locks

    def status(self):
        return {"workers": [{"lockdown": self.locks}]}


def test_isolation_needs_locks_and_nothing_reachable():
    sealed = Locked(landlock="enforced", seccomp="enforced", self_test="refused")
    assert isolation(sealed, HEALTHY).passed
    assert not isolation(Locked(), HEALTHY).passed
    reached = replace(HEALTHY, egress=(Attempt("203.0.113.9:443", "connected"),))
    assert not isolation(sealed, reached).passed
