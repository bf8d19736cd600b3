"""Offline root keys in PKCS#11 tokens: a whole ceremony under SoftHSM; no root key ever exists as a file."""

import subprocess
from datetime import timedelta

import pytest

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import ceremony, tls
from appliance.trust.authorisation import write_token
from appliance.trust.authority import Authority
from appliance.trust.keys import no_passphrase
from appliance.trust.names import statement_type
from appliance.trust.profiles import read_recipes
from appliance.trust.store import TrustStore
from appliance.trust.tokens import open_token_key, read_uri
from tests.integration.trust.conftest import BIRTH, MODULE, NOW
from tests.support.trust import RECIPES, DevelopmentAuthority

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})


HOLDERS = {"tuf-root-1": "alice", "tuf-root-2": "bob", "tuf-root-3": "carol", "root-1": "alice"}


@pytest.fixture(scope="module")
def zone(softhsm, tmp_path_factory):
    """An authority whose root keys were made in tokens, and never left them."""
    folder = tmp_path_factory.mktemp("zone") / "ca"
    places = {name: open_token_key(softhsm(holder, name), make=True) for name, holder in HOLDERS.items()}
    ceremony.create_authority(folder, read_recipes(RECIPES), development=False, now=BIRTH, elsewhere=places)
    return DevelopmentAuthority(folder)


def opened(zone, softhsm, *names):
    places = {name: open_token_key(softhsm(HOLDERS[name], name)) for name in names}
    return Authority.open(zone.path, passphrase=no_passphrase, elsewhere=places)


def test_no_root_key_exists_as_a_file(zone):
    names = {path.stem for path in (zone.path / "keys").iterdir()}
    assert not names & HOLDERS.keys()
    assert {"signing-1", "log-1", "tuf-targets-1"} <= names


def test_signing_needs_no_token_and_a_host_accepts_the_result(zone, tmp_path):
    from appliance.trust.verification import verify_statement

    store = TrustStore.initialise(tmp_path / "state", zone.anchor, zone.repository, now=NOW)
    bundle = zone.signer("release-signer", at=NOW).sign_statement(PAYLOAD)
    verify_statement(PAYLOAD, bundle, kind="release", material=store.material(now=NOW), at=NOW)


def test_two_tokens_of_three_rotate_a_lost_third_and_hosts_follow(zone, softhsm, tmp_path):
    store = TrustStore.initialise(tmp_path / "state", zone.anchor, zone.repository, now=NOW)
    with pytest.raises(TrustError) as caught:
        ceremony.rotate_key(opened(zone, softhsm, "tuf-root-1"), "tuf-root-3", now=NOW)
    assert caught.value.code == "TRUST_THRESHOLD"
    authority = opened(zone, softhsm, "tuf-root-1", "tuf-root-2")
    assert ceremony.rotate_key(authority, "tuf-root-3", now=NOW) == "tuf-root-4"
    store.refresh(zone.repository, now=NOW)
    assert store.state().versions["root"] == 2


def test_the_x509_root_in_a_token_certifies_a_new_signing_authority(zone, softhsm, tmp_path):
    from appliance.trust.verification import verify_statement

    with pytest.raises(TrustError) as caught:
        ceremony.rotate_service(Authority.open(zone.path), "signing", now=NOW)
    assert caught.value.code == "TRUST_KEY_MISSING"
    assert ceremony.rotate_service(opened(zone, softhsm, "root-1"), "signing", now=NOW) == ["signing-2"]
    later = NOW + timedelta(hours=1)
    bundle = zone.signer("release-signer", at=later).sign_statement(PAYLOAD)
    verify_statement(PAYLOAD, bundle, kind="release", material=zone.material, at=later)
    (tmp_path / "root.pem").write_bytes(tls.tls_roots(Authority.open(zone.path)))
    checked = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "root.pem", "certificates/signing-2.pem"],
        cwd=zone.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_tokens_sign_an_authorised_downgrade(zone, softhsm, tmp_path):
    store = TrustStore.initialise(tmp_path / "state", zone.anchor, zone.repository, now=NOW, machine="a" * 64)
    authority = opened(zone, softhsm, "tuf-root-1", "tuf-root-2")
    token = write_token(authority, "downgrade", machine="a" * 64, version="1.0.0", now=NOW, lifetime=timedelta(days=1))
    store.redeem(token, action="downgrade", version="1.0.0", now=NOW, machine="a" * 64)


def test_a_tokens_key_does_not_leave_it(softhsm, zone):
    from cryptography.hazmat.primitives import serialization

    key = open_token_key(softhsm("alice", "tuf-root-1"))
    for attempt in (
        key.private_numbers,
        lambda: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        lambda: key.exchange(None, None),
    ):
        with pytest.raises(TrustError) as caught:
            attempt()
        assert caught.value.code == "TRUST_TOKEN_KEY"


WRONG = {
    "another token": lambda uri: uri.replace("token=alice", "token=mallory"),
    "another label": lambda uri: uri.replace("object=tuf-root-1", "object=nothing"),
    "no such module": lambda uri: uri.replace(str(MODULE), "/nonexistent.so"),
    "no such PIN file": lambda uri: uri.replace("/pin", "/pan"),
    "a wrong PIN": lambda uri: uri.replace("alice", "dave").split("&")[0] + "&pin-value=0000",
    "no module": lambda uri: uri.split("?")[0],
    "no object": lambda uri: uri.replace("object=tuf-root-1", ""),
    "an unknown attribute": lambda uri: uri.replace(";object", ";serial=1;object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_token_named_with(name, softhsm, zone):
    with pytest.raises(TrustError) as caught:
        open_token_key(WRONG[name](softhsm("alice", "tuf-root-1")))
    assert caught.value.code == "TRUST_TOKEN_KEY"


def test_a_uri_is_read_with_its_escapes():
    uri = read_uri("pkcs11:token=my%20zone;object=k?module-path=/m.so&pin-value=a%26b")
    assert (uri.token, uri.label, uri.module, uri.pin) == ("my zone", "k", "/m.so", "a&b")


def test_a_plus_in_a_uri_is_a_plus(tmp_path):
    """In a form it would be a space: a PIN tried wrongly, and after a few tries the token locks itself."""
    assert read_uri("pkcs11:token=t;object=k?module-path=/m.so&pin-value=12+34").pin == "12+34"
    (tmp_path / "a+b 100%").write_text("pin\n")
    place = f"{tmp_path}/a+b%20100%25"
    assert read_uri(f"pkcs11:token=t;object=k?module-path=/m.so&pin-source=file:{place}").pin == "pin"
