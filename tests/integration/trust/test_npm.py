"""A second, independent implementation: the public npm package `@sigstore/verify` judges our signatures."""

import shutil
import subprocess
from pathlib import Path

import pytest

from appliance import documents
from appliance.trust import keys
from appliance.trust.authority import Authority
from appliance.trust.names import ISSUER, statement_type
from appliance.trust.repository import TRUSTED_ROOT, Repository
from tests.support.forgery import LeafPlan, edit, flipped, rebase64

PACKAGES = ("@sigstore/verify@3.1.1", "@sigstore/bundle@4.0.0", "@sigstore/protobuf-specs@0.5.2")
PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})
FILES = {"router.yaml": b"name: r\n", "router.safetensors": b"weights"}
RELEASE, OFFICER = "release-signer@appliance.internal", "import-officer@appliance.internal"


@pytest.fixture(scope="session")
def node(tmp_path_factory, zone):
    """A folder with the package installed from the npm registry, our script and our trusted root."""
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES],
        cwd=folder, check=True, capture_output=True, timeout=6000,
    )  # fmt: skip
    shutil.copy(Path(__file__).with_name("verify.js"), folder)
    (folder / "trusted_root.json").write_bytes(Repository(Authority.open(zone.path)).target(TRUSTED_ROOT))
    return folder


def judge(node, bundle, payload=None, identity=RELEASE, issuer=ISSUER):
    (node / "bundle.json").write_bytes(bundle)
    (node / "payload").write_bytes(payload or b"")
    return subprocess.run(
        ["unshare", "-rn", "node", "verify.js", "trusted_root.json", "bundle.json", "payload" if payload else "-",
         identity, issuer],
        cwd=node, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_npm_accepts_a_release_signature(node, zone, forger):
    result = judge(node, zone.signer("release-signer", at=forger.at).sign_statement(PAYLOAD), PAYLOAD)
    assert result.stdout == f"accepted {RELEASE}\n", result.stderr


@pytest.mark.slow
def test_npm_accepts_a_router_signature(node, zone, forger):
    result = judge(node, zone.signer("import-officer", at=forger.at).sign_artifact(FILES), identity=OFFICER)
    assert result.stdout == f"accepted {OFFICER}\n", result.stderr


def turn_proof(document):
    proof = document["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]
    proof["hashes"][0] = rebase64(proof["hashes"][0], flipped)


ATTACKS = {
    "a changed payload": ("SIGNATURE_ERROR", lambda f: (f.statement(PAYLOAD), PAYLOAD + b" ")),
    "another key's signature": (
        "SIGNATURE_ERROR",
        lambda f: (f.statement(PAYLOAD, sign_with=keys.generate()), PAYLOAD),
    ),
    "an SCT of an unknown log": (
        "CERTIFICATE_ERROR",
        lambda f: (f.statement(PAYLOAD, leaf=LeafPlan(sct_key=keys.generate())), PAYLOAD),
    ),
    "an unknown transparency log": (
        "TLOG_INCLUSION_PROMISE_ERROR",
        lambda f: (f.statement(PAYLOAD, log_key=keys.generate()), PAYLOAD),
    ),
    "a proof with a bit turned": (
        "TLOG_INCLUSION_PROOF_ERROR",
        lambda f: (edit(f.statement(PAYLOAD), turn_proof), PAYLOAD),
    ),
    "a time-stamp of another signature": (
        "TIMESTAMP_ERROR",
        lambda f: (f.statement(PAYLOAD, stamped=flipped), PAYLOAD),
    ),
    "a checkpoint of another origin": (
        "TLOG_INCLUSION_PROOF_ERROR",
        lambda f: (f.statement(PAYLOAD, log_url="https://log.example.com"), PAYLOAD),
    ),
    "another identity": (
        "UNTRUSTED_SIGNER_ERROR",
        lambda f: (f.statement(PAYLOAD, leaf=LeafPlan(identity=OFFICER)), PAYLOAD),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_npm_refuses(name, node, forger):
    code, make = ATTACKS[name]
    result = judge(node, *make(forger))
    assert result.returncode == 1
    assert result.stdout == ""
    assert f"code: '{code}'" in result.stderr
