"""Stage 0's means: a release is verified with the anchor, Python's standard library and `openssl` alone."""

import base64
import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance import documents
from appliance.trust.names import statement_type
from tests.support.forgery import LeafPlan, flipped

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})


def openssl(folder, *arguments):
    return subprocess.run(
        ["openssl", *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@dataclass
class StageZero:
    """The checks of an installer that has nothing but the anchor, Python's standard library and openssl."""

    folder: Path
    anchor: bytes

    def verify(self, payload: bytes, bundle: bytes) -> str:
        """Name the first check that fails, or `accepted`."""
        anchor, document = json.loads(self.anchor), json.loads(bundle)
        material = document["verificationMaterial"]
        signature = base64.b64decode(document["messageSignature"]["signature"])
        token = base64.b64decode(material["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"])
        files = {
            "payload": payload,
            "signature": signature,
            "token.tsr": token,
            "leaf.der": base64.b64decode(material["certificate"]["rawBytes"]),
            "ca.pem": anchor["release"]["certificate_chain"][-1].encode(),
            "issuing.pem": "".join(anchor["release"]["certificate_chain"][:-1]).encode(),
            "tsa-ca.pem": anchor["timestamp_chain"][-1].encode(),
            "tsa.pem": "".join(anchor["timestamp_chain"][:-1]).encode(),
        }
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        stamp = openssl(
            self.folder, "ts", "-verify", "-data", "signature", "-in", "token.tsr", "-CAfile", "tsa-ca.pem",
            "-untrusted", "tsa.pem",
        )  # fmt: skip
        if stamp.returncode:
            return "time-stamp"
        shown = openssl(self.folder, "ts", "-reply", "-in", "token.tsr", "-text").stdout
        line = next(each for each in shown.splitlines() if each.startswith("Time stamp: "))
        time = datetime.strptime(line.removeprefix("Time stamp: "), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
        openssl(self.folder, "x509", "-inform", "DER", "-in", "leaf.der", "-out", "leaf.pem")
        chain = openssl(
            self.folder, "verify", "-x509_strict", "-attime", int(time.timestamp()), "-CAfile", "ca.pem",
            "-untrusted", "issuing.pem", "leaf.pem",
        )  # fmt: skip
        if chain.returncode:
            return "chain"
        names = openssl(self.folder, "x509", "-in", "leaf.pem", "-noout", "-ext", "subjectAltName,extendedKeyUsage")
        lines = [each.strip() for each in names.stdout.splitlines()]
        if "Code Signing" not in lines or f"email:{anchor['release']['identity']}" not in lines:
            return "identity"
        key = openssl(self.folder, "x509", "-in", "leaf.pem", "-noout", "-pubkey").stdout
        (self.folder / "key.pem").write_text(key)
        digest = openssl(self.folder, "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature", "payload")
        return "accepted" if digest.returncode == 0 else "signature"


@pytest.fixture
def stage_zero(tmp_path, zone):
    return StageZero(tmp_path, zone.anchor)


def test_openssl_accepts_a_release_whose_certificate_expired_long_ago(stage_zero, zone, forger):
    assert stage_zero.verify(PAYLOAD, zone.signer("release-signer", at=forger.at).sign_statement(PAYLOAD)) == "accepted"


def test_openssl_accepts_every_one_of_many_signatures(stage_zero, zone, forger):
    signer = zone.signer("release-signer", at=forger.at)
    assert {stage_zero.verify(PAYLOAD, signer.sign_statement(PAYLOAD)) for _ in range(5)} == {"accepted"}


ATTACKS = {
    "a changed manifest": ("signature", lambda f, s: (PAYLOAD + b" ", f.statement(PAYLOAD))),
    "another signature": ("signature", lambda f, s: (PAYLOAD, f.statement(PAYLOAD, signed_bytes=flipped))),
    "a stranger's release": ("time-stamp", lambda f, s: (PAYLOAD, s.statement(PAYLOAD))),
    "a stranger's certificate under our time-stamp": (
        "chain",
        lambda f, s: (
            PAYLOAD,
            f.statement(
                PAYLOAD,
                leaf=LeafPlan(issuer=s.authority.certificate("signing-1"), issuer_key=s.key("signing")),
            ),
        ),
    ),
    "a time-stamp of another signature": ("time-stamp", lambda f, s: (PAYLOAD, f.statement(PAYLOAD, stamped=flipped))),
    "a certificate that was not valid then": (
        "chain",
        lambda f, s: (PAYLOAD, f.statement(PAYLOAD, leaf=LeafPlan(starts=_hours(3)))),
    ),
    "another role's certificate": (
        "identity",
        lambda f, s: (PAYLOAD, f.statement(PAYLOAD, leaf=LeafPlan(identity="import-officer@appliance.internal"))),
    ),
}


def _hours(count):
    from datetime import timedelta

    return timedelta(hours=count)


@pytest.mark.parametrize("name", ATTACKS)
def test_openssl_refuses(name, stage_zero, forger, stranger):
    check, make = ATTACKS[name]
    assert stage_zero.verify(*make(forger, stranger)) == check


def test_the_anchor_is_canonical_so_that_its_digest_names_it(zone):
    assert documents.write_json(json.loads(zone.anchor)) == zone.anchor


def test_a_server_certificate_serves_tls_to_a_strict_client(zone, tmp_path):
    """The chain that `ca issue` writes passes Python's strict X.509 checks, and mutual TLS holds."""
    import socket
    import ssl
    import threading

    zone.tls_server("localhost", "127.0.0.1").write(tmp_path, "server")
    zone.tls_client("gateway").write(tmp_path, "client")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server.load_verify_locations(tmp_path / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(tmp_path / "ca.pem")
    client.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with server.wrap_socket(listener.accept()[0], server_side=True) as connection:
                connection.sendall(repr(connection.getpeercert()["subject"]).encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        plain = socket.create_connection(listener.getsockname())
        with client.wrap_socket(plain, server_hostname="localhost") as connection:
            assert b"gateway" in connection.recv(4096)
        thread.join()
