"""Authorised downgrade and clock reset: single use, threshold-signed, one machine, one version."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.signer import CryptoSigner

from appliance import documents
from appliance.errors import ApplianceError
from appliance.trust.authorisation import write_token
from appliance.trust.authority import Authority
from appliance.trust.keys import KeyRing, sign
from appliance.trust.repository import Repository
from appliance.trust.store import TrustStore

HOST, OTHER = "a" * 64, "b" * 64
WEEK = timedelta(days=7)


@pytest.fixture
def authority(zone):
    return Authority.open(zone.path)


@pytest.fixture
def store(zone, tmp_path, now):
    return TrustStore.initialise(tmp_path / "state", zone.anchor, zone.repository, now=now, machine=HOST)


@pytest.fixture
def token(authority, now):
    return write_token(authority, "downgrade", machine=HOST, version="1.2.3", now=now, lifetime=WEEK)


def redeem(store, token, now, **changes):
    store.redeem(token, **{"action": "downgrade", "version": "1.2.3", "now": now, "machine": HOST, **changes})


def refused(code, call, *args, **kwargs):
    with pytest.raises(ApplianceError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value


def resigned(zone, token, names, **changes):
    """Change the statement and sign it with the named keys."""
    statement = {**json.loads(token)["statement"], **changes}
    payload = documents.write_json(statement)
    ring = KeyRing(zone.path / "keys")
    holders = {CryptoSigner(ring.load(name)).public_key.keyid: ring.load(name) for name in names}
    signatures = {key_id: sign(key, payload).hex() for key_id, key in holders.items()}
    return documents.write_json({"statement": statement, "signatures": signatures})


def test_a_token_works_once(store, token, now):
    redeem(store, token, now)
    refused("TRUST_TOKEN_USED", redeem, store, token, now)
    refused("TRUST_TOKEN_USED", redeem, TrustStore.open(store.directory, machine=HOST), token, now)


def test_a_refused_token_is_not_used_up(store, token, now):
    refused("TRUST_TOKEN_VERSION", redeem, store, token, now, version="1.2.2")
    redeem(store, token, now)


def test_two_tokens_for_the_same_act_are_two(store, authority, token, now):
    redeem(store, token, now)
    redeem(store, write_token(authority, "downgrade", machine=HOST, version="1.2.3", now=now, lifetime=WEEK), now)


WRONG = {
    "another machine": ("TRUST_TOKEN_MACHINE", {"machine": OTHER}),
    "another version": ("TRUST_TOKEN_VERSION", {"version": "1.2.2"}),
    "a version that begins the same": ("TRUST_TOKEN_VERSION", {"version": "1.2.3.1"}),
    "another act": ("TRUST_TOKEN_ACTION", {"action": "clock", "version": "1.2.3"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_token_for(name, store, token, now):
    code, changes = WRONG[name]
    refused(code, redeem, store, token, now, **changes)


def test_a_host_without_an_identity_cannot_be_authorised(zone, token, now, tmp_path, monkeypatch):
    from appliance.trust import store as module

    monkeypatch.setattr(module, "machine_identity", lambda: None)
    unbound = TrustStore.initialise(tmp_path / "u", zone.anchor, zone.repository, now=now)
    refused("TRUST_TOKEN_MACHINE", redeem, unbound, token, now, machine=None)


def test_a_token_holds_for_its_days_and_no_longer(store, token, now):
    refused("TRUST_TOKEN_EXPIRED", redeem, store, token, now + WEEK + timedelta(seconds=1))


def test_a_token_from_the_future_is_refused(store, authority, now):
    early = write_token(
        authority, "downgrade", machine=HOST, version="1.2.3", now=now + timedelta(days=3), lifetime=WEEK
    )
    refused("TRUST_TOKEN_EXPIRED", redeem, store, early, now)


SIGNERS = {
    "one root key": ("tuf-root-1",),
    "nobody": (),
    "keys of lesser roles": ("tuf-targets-1", "tuf-snapshot-1", "tuf-timestamp-1"),
    "one root key and a lesser one": ("tuf-root-1", "tuf-targets-1"),
    "the certificate authority": ("root-1", "signing-1"),
}


@pytest.mark.parametrize("name", SIGNERS)
def test_a_token_signed_by(name, zone, store, token, now):
    refused("TRUST_THRESHOLD", redeem, store, resigned(zone, token, SIGNERS[name]), now)


def test_a_surplus_signature_that_does_not_hold_spoils_the_token(zone, store, token, now):
    good = json.loads(resigned(zone, token, ("tuf-root-1", "tuf-root-2")))
    good["signatures"]["0" * 64] = next(iter(good["signatures"].values()))
    refused("TRUST_TOKEN_MALFORMED", redeem, store, documents.write_json(good), now)


def test_any_two_of_the_three_root_keys_suffice(zone, store, token, now):
    for number, pair in enumerate((("tuf-root-1", "tuf-root-3"), ("tuf-root-2", "tuf-root-3"))):
        redeem(store, resigned(zone, token, pair, nonce=f"{number:032x}"), now)


@pytest.mark.parametrize("field", ["machine", "version", "nonce", "expires", "action", "issued"])
def test_a_token_whose(field, store, token, now):
    """...is edited after signing holds no signature any more."""
    new = {"machine": OTHER, "version": "0.0.1", "nonce": "0" * 32, "action": "clock"}
    new |= {"expires": "2030-01-01T00:00:00Z", "issued": "2020-01-01T00:00:00Z"}
    document = json.loads(token)
    document["statement"][field] = new[field]
    changes = {key: value for key, value in new.items() if key == field and key in {"machine", "version", "action"}}
    refused("TRUST_THRESHOLD", redeem, store, documents.write_json(document), now, **changes)


FORMS = {
    "nothing": lambda t: b"",
    "loose spacing": lambda t: t.replace(b":", b": ", 1),
    "an unknown field": lambda t: t.replace(b'{"sign', b'{"a":1,"sign'),
    "another type": lambda t: t.replace(b"authorisation/v1", b"release/v1"),
    "no such day": lambda t: t.replace(b'"expires":"2026-11-18', b'"expires":"2026-02-31'),
    "signatures in a list": lambda t: documents.write_json({**json.loads(t), "signatures": []}),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_token_with(name, store, token, now):
    refused("TRUST_TOKEN_MALFORMED", redeem, store, FORMS[name](token), now)


def test_a_token_cannot_be_written_without_enough_root_keys(zone, tmp_path, now):
    shutil.copytree(zone.path, tmp_path / "ca")
    for number in (1, 3):
        (tmp_path / f"ca/keys/tuf-root-{number}.pem").unlink()
    few = Authority.open(tmp_path / "ca")
    refused("TRUST_THRESHOLD", write_token, few, "downgrade", machine=HOST, version="1", now=now, lifetime=WEEK)


@pytest.mark.parametrize("version", ["", "9" * 129])
def test_a_token_cannot_be_written_for_no_version(version, authority, now):
    facts = {"machine": "a" * 64, "now": now, "lifetime": timedelta(days=1)}
    refused("TRUST_TOKEN_MALFORMED", write_token, authority, "downgrade", version=version, **facts)
    assert write_token(authority, "downgrade", version="9" * 128, **facts)


def test_a_token_cannot_be_written_for_what_is_no_machine(authority, now):
    refused(
        "TRUST_TOKEN_MALFORMED",
        write_token,
        authority,
        "downgrade",
        machine="web-1",
        version="1",
        now=now,
        lifetime=WEEK,
    )


def test_a_token_of_keys_that_were_rotated_out_is_refused(zone, store, tmp_path, token, now):
    shutil.copytree(zone.path, tmp_path / "ca")
    repository = Repository(Authority.open(tmp_path / "ca"))
    for number in (1, 2):
        repository.rotate_key(f"tuf-root-{number}", now=now)
    store.refresh(tmp_path / "ca/repository", now=now)
    refused("TRUST_THRESHOLD", redeem, store, resigned(zone, token, ("tuf-root-1", "tuf-root-2")), now)


def test_a_mark_that_a_wrong_clock_has_raised_is_set_back_by_authorisation(store, authority, now):
    store.checked_time(now + timedelta(days=400))  # somebody's clock was a year ahead, within what is believable
    refused("TRUST_CLOCK_BEHIND", store.material, now=now)
    back = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    token = write_token(authority, "clock", machine=HOST, version=back, now=now, lifetime=WEEK)
    redeem(store, token, now, action="clock", version=back)
    assert store.material(now=now).policy
    refused("TRUST_TOKEN_USED", redeem, store, token, now, action="clock", version=back)


def test_no_authorisation_sets_the_clock_before_the_signed_metadata(store, authority, birth, now):
    back = "1970-01-01T00:00:00Z"
    token = write_token(authority, "clock", machine=HOST, version=back, now=now, lifetime=WEEK)
    redeem(store, token, now, action="clock", version=back)
    refused("TRUST_CLOCK_BEHIND", store.checked_time, datetime(1970, 1, 2, tzinfo=UTC))
    assert store.floor() == birth
