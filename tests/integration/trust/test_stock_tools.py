"""Anyone can check us: the public tools, unmodified, in a network namespace without a network."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from appliance import documents
from appliance.trust import keys
from appliance.trust.names import ISSUER, statement_type
from tests.support.forgery import LeafPlan, edit, flipped

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})
FILES = {"router.yaml": b"name: r\n", "router.safetensors": b"weights", "extra/vocabulary.json": b"{}"}
RELEASE, OFFICER = "release-signer@appliance.internal", "import-officer@appliance.internal"


def sealed(*command, cwd):
    """Run a command where only a downed loopback exists."""
    return subprocess.run(
        ["unshare", "-rn", *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LC_ALL": "C.UTF-8", "COLUMNS": "400"},
        check=False,
    )


def test_the_namespace_really_has_no_network(tmp_path):
    probe = "import socket; socket.create_connection(('192.0.2.1', 443), 2)"
    assert "Network is unreachable" in sealed(sys.executable, "-c", probe, cwd=tmp_path).stderr


@dataclass
class Sigstore:
    """`sigstore verify identity --offline --trust-config`."""

    folder: Path
    trust_config: Path

    def __call__(self, payload, bundle, identity=RELEASE, issuer=ISSUER):
        (self.folder / "payload").write_bytes(payload)
        (self.folder / "bundle").write_bytes(bundle)
        return sealed(
            sys.executable, "-m", "sigstore", "--trust-config", self.trust_config, "verify", "identity", "--offline",
            "--bundle", "bundle", "--cert-identity", identity, "--cert-oidc-issuer", issuer, "payload",
            cwd=self.folder,
        )  # fmt: skip


@dataclass
class ModelSigning:
    """`model_signing verify sigstore --trust_config`."""

    folder: Path
    trust_config: Path

    def __call__(self, files, bundle, identity=OFFICER, issuer=ISSUER):
        model = self.folder / "model"
        shutil.rmtree(model, ignore_errors=True)
        for name, data in {**files, "artifact.sigstore.json": bundle}.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_bytes(data)
        return sealed(
            sys.executable, "-m", "model_signing", "verify", "sigstore", "--trust_config", self.trust_config,
            "--signature", model / "artifact.sigstore.json", "--identity", identity, "--identity_provider", issuer,
            model, cwd=self.folder,
        )  # fmt: skip


@pytest.fixture
def sigstore(tmp_path, zone):
    return Sigstore(tmp_path, zone.path / "trust_config.json")


@pytest.fixture
def model_signing(tmp_path, zone):
    return ModelSigning(tmp_path, zone.path / "trust_config.json")


@pytest.mark.slow
def test_sigstore_accepts_a_release_signature(sigstore, zone, forger):
    result = sigstore(PAYLOAD, zone.signer("release-signer", at=forger.at).sign_statement(PAYLOAD))
    assert result.returncode == 0, result.stderr
    assert "OK: payload" in result.stderr + result.stdout


TAMPERED = {
    "a changed payload": (
        "Bundle message digest mismatch",
        lambda f, s: (PAYLOAD.replace(b"1.2.3", b"6.6.6"), f.statement(PAYLOAD)),
    ),
    "a changed signature": (
        "Signature is invalid for input",
        lambda f, s: (PAYLOAD, f.statement(PAYLOAD, signature=flipped)),
    ),
    "a stranger's authority": ("signature does not match", lambda f, s: (PAYLOAD, s.statement(PAYLOAD))),
    "a wrong SCT": (
        "SCT verify failed",
        lambda f, s: (PAYLOAD, f.statement(PAYLOAD, leaf=LeafPlan(sct_key=keys.generate()))),
    ),
    "another log's key": (
        "checkpoint: invalid signature",
        lambda f, s: (PAYLOAD, f.statement(PAYLOAD, log_key=keys.generate())),
    ),
    "a time outside of the certificate": (
        "cert is not valid at validation time",
        lambda f, s: (PAYLOAD, f.statement(PAYLOAD, leaf=LeafPlan(starts=-timedelta(hours=2)))),
    ),
    "a proof with a bit turned": (
        "inclusion proof",
        lambda f, s: (PAYLOAD, edit(f.statement(PAYLOAD), _turn_root)),
    ),
}


def _turn_root(document):
    from tests.support.forgery import rebase64

    proof = document["verificationMaterial"]["tlogEntries"][0]["inclusionProof"]
    proof["hashes"][0] = rebase64(proof["hashes"][0], flipped)


@pytest.mark.slow
@pytest.mark.parametrize("name", TAMPERED)
def test_sigstore_refuses(name, sigstore, forger, stranger):
    reason, make = TAMPERED[name]
    result = sigstore(*make(forger, stranger))
    assert result.returncode == 1
    assert "FAIL: payload" in result.stderr
    assert reason in result.stderr


@pytest.mark.slow
def test_sigstore_refuses_another_identity_or_issuer(sigstore, forger):
    bundle = forger.statement(PAYLOAD)
    assert "SANs do not match" in sigstore(PAYLOAD, bundle, identity="mallory@appliance.internal").stderr
    assert "does not match" in sigstore(PAYLOAD, bundle, issuer="https://accounts.example.com").stderr


@pytest.mark.slow
def test_model_signing_accepts_a_router(model_signing, zone, forger):
    result = model_signing(FILES, zone.signer("import-officer", at=forger.at).sign_artifact(FILES))
    assert result.returncode == 0, result.stdout + result.stderr


MODELS = {
    "a changed file": (
        "Hash mismatch for 'router.safetensors'",
        lambda f, s: ({**FILES, "router.safetensors": b"weightz"}, f.artifact(FILES)),
    ),
    "a missing file": ("Missing files", lambda f, s: ({"router.yaml": FILES["router.yaml"]}, f.artifact(FILES))),
    "an added file": ("Extra files", lambda f, s: ({**FILES, "run.json": b"{}"}, f.artifact(FILES))),
    "a stranger's authority": ("signature does not match", lambda f, s: (FILES, s.artifact(FILES))),
    "another key's signature": (
        "DSSE: invalid signature",
        lambda f, s: (FILES, f.artifact(FILES, sign_with=keys.generate())),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_model_signing_refuses(name, model_signing, forger, stranger):
    reason, make = MODELS[name]
    result = model_signing(*make(forger, stranger))
    assert result.returncode == 1
    assert result.stderr.startswith("Verification failed with error:")
    assert reason in result.stderr
