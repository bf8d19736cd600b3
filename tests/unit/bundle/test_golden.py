"""Releases of every format ever made are still read, by both verifiers, to the same verdict."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import pytest

from appliance.bundle.install import verify_media
from appliance.bundle.stage0.main import authenticate_with_openssl
from appliance.bundle.stage0.media import open_sources

GOLDEN = Path(__file__).parents[2] / "golden" / "bundle"


@pytest.fixture(params=sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.json").is_file()))
def golden(request) -> Path:
    return GOLDEN / request.param


def test_the_full_verifier_still_accepts_it(golden):
    expected = json.loads((golden / "expected.json").read_text())
    at = datetime.fromisoformat(expected["verify_at"])
    (archive,) = golden.glob("*.tar")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == expected["sha256"]
    verified = verify_media([archive], (golden / "anchor.json").read_bytes(), now=at)
    manifest = verified.verdict.release.manifest
    assert manifest.digest == expected["manifest_digest"]
    assert [member.as_dict() for member in manifest.members] == expected["members"]
    assert verified.verdict.verdict.identity == expected["signer"]
    assert verified.verdict.verdict.signed_at == datetime.fromisoformat(expected["signed_at"])


def test_stage_0_still_accepts_it(golden):
    expected = json.loads((golden / "expected.json").read_text())
    with open_sources(list(golden.glob("*.tar"))) as (sources, _):
        release, _, verdict = authenticate_with_openssl(sources[0].head, (golden / "anchor.json").read_bytes())
    assert release.manifest.digest == expected["manifest_digest"]
    assert verdict.signed_at == datetime.fromisoformat(expected["signed_at"])


def test_its_volumes_are_still_read_and_one_lost_is_rebuilt(golden):
    expected = json.loads((golden / "expected.json").read_text())
    at = datetime.fromisoformat(expected["verify_at"])
    volumes = sorted(path for path in (golden / "volumes").iterdir() if path.suffix != ".sha256")
    assert len(volumes) >= 3
    for lost in (path for path in volumes if path.suffix != ".parity"):
        rest = [path for path in volumes if path != lost]
        verified = verify_media(rest, (golden / "anchor.json").read_bytes(), now=at)
        assert len(verified.repaired) == 1
        assert verified.verdict.release.manifest.digest == expected["manifest_digest"]
