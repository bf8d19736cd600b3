"""Signatures of every form this project has ever written: accepted for ever, at any time, by any later version."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance import artifact as artifacts
from appliance.errors import TrustError
from appliance.trust.store import TrustStore
from appliance.trust.verification import verify_artifact, verify_statement
from tests.support.forgery import flipped

SETS = sorted(path for path in (Path(__file__).parents[2] / "golden/trust").iterdir() if path.name.startswith("v"))
SIGNED = datetime(2026, 11, 23, 13, tzinfo=UTC)
ROLES = {"release": "release-signer", "channel": "import-officer", "inventory": "zone-host"}


@pytest.fixture(params=SETS, ids=lambda path: path.name)
def golden(request):
    return request.param


@pytest.fixture
def store(golden, tmp_path):
    anchor = (golden / "anchor.json").read_bytes()
    return TrustStore.initialise(tmp_path / "s", anchor, golden / "repository", now=SIGNED, machine="a" * 64)


@pytest.mark.parametrize("later", [timedelta(), timedelta(days=400)])
@pytest.mark.parametrize("kind", ROLES)
def test_a_golden_statement_is_accepted(kind, later, golden, store):
    payload, bundle = (golden / f"{kind}.json").read_bytes(), (golden / f"{kind}.sigstore.json").read_bytes()
    material = store.material(now=SIGNED + later)
    verdict = verify_statement(payload, bundle, kind=kind, material=material, at=SIGNED + later)
    assert (verdict.role, verdict.signed_at) == (ROLES[kind], SIGNED)


def test_a_golden_artifact_is_accepted(golden, store):
    artifact = artifacts.read(golden / "artifact")
    verdict = verify_artifact(artifact, material=store.material(now=SIGNED), at=SIGNED)
    assert (verdict.kind, verdict.role) == ("router", "import-officer")


def test_a_golden_authorisation_is_accepted(golden, store):
    token = (golden / "downgrade.json").read_bytes()
    store.redeem(token, action="downgrade", version="1.0.0", now=SIGNED, machine="a" * 64)


@pytest.mark.parametrize("kind", ROLES)
def test_a_golden_statement_with_a_bit_turned_is_refused(kind, golden, store):
    payload, bundle = (golden / f"{kind}.json").read_bytes(), (golden / f"{kind}.sigstore.json").read_bytes()
    with pytest.raises(TrustError) as refused:
        verify_statement(flipped(payload, 9), bundle, kind=kind, material=store.material(now=SIGNED), at=SIGNED)
    assert refused.value.code == "TRUST_DIGEST"


@pytest.mark.slow
def test_stock_sigstore_accepts_the_golden_release(golden, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "sigstore", "--trust-config", golden / "trust_config.json", "verify", "identity",
         "--offline", "--bundle", golden / "release.sigstore.json", "--cert-identity",
         "release-signer@appliance.internal", "--cert-oidc-issuer", "https://ca.appliance.internal",
         golden / "release.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
