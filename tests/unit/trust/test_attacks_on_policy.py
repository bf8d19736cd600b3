"""Attacks with correct signatures: by those who may not, over what was denied, of the wrong kind, too old."""

from dataclasses import replace
from datetime import timedelta

import pytest

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import keys
from appliance.trust.names import statement_type
from appliance.trust.policy import Denied, Identity, LogIndex, Policy, read_policy, write_policy
from appliance.trust.verification import verify_statement
from tests.support.forgery import LeafPlan


def statement(kind="channel", **fields):
    return documents.write_json({"_type": statement_type(kind), "name": "stable", "epoch": 7, **fields})


OFFICER = {"leaf": LeafPlan(identity="import-officer@appliance.internal")}
CHANNEL = statement()


def with_policy(zone, **changes):
    return replace(zone.material, policy=zone.material.policy.model_copy(update=changes))


def refused(code, payload, bundle, material, at, kind="channel"):
    with pytest.raises(TrustError) as caught:
        verify_statement(payload, bundle, kind=kind, material=material, at=at)
    assert caught.value.code == code, caught.value


def accepted(payload, bundle, material, at, kind="channel"):
    return verify_statement(payload, bundle, kind=kind, material=material, at=at)


CONTENT = {
    "an inventory passed off as a channel": ("TRUST_TYPE", statement("inventory")),
    "a release passed off as a channel": ("TRUST_TYPE", statement("release")),
    "a later version of the type": (
        "TRUST_TYPE",
        documents.write_json({"_type": "https://appliance.internal/channel/v2", "epoch": 7}),
    ),
    "a type in another case": (
        "TRUST_TYPE",
        documents.write_json({"_type": "https://appliance.internal/Channel/v1", "epoch": 7}),
    ),
    "a type that is a list": ("TRUST_TYPE", documents.write_json({"_type": [statement_type("channel")]})),
    "no type": ("TRUST_TYPE", documents.write_json({"epoch": 7})),
    "a statement that is a list": ("TRUST_STATEMENT_MALFORMED", documents.write_json([1])),
    "a statement that is no JSON": ("TRUST_STATEMENT_MALFORMED", b"#!/bin/sh\n"),
    "an empty statement": ("TRUST_STATEMENT_MALFORMED", b""),
    "a statement with a key twice": (
        "TRUST_STATEMENT_MALFORMED",
        b'{"_type":"https://appliance.internal/channel/v1","epoch":1,"epoch":7}\n',
    ),
    "a statement with loose spacing": ("TRUST_STATEMENT_MALFORMED", CHANNEL.replace(b":", b": ", 1)),
    "a statement without its last newline": ("TRUST_STATEMENT_MALFORMED", CHANNEL[:-1]),
    "a statement in another encoding": ("TRUST_STATEMENT_MALFORMED", CHANNEL.decode().encode("utf-16")),
    "a statement nested without end": ("TRUST_STATEMENT_MALFORMED", b'{"a":' * 5000),
}


@pytest.mark.parametrize("name", CONTENT)
def test_a_correctly_signed_statement_of_the_wrong_content_is_refused(name, forger, zone, now):
    code, payload = CONTENT[name]
    refused(code, payload, forger.statement(payload, **OFFICER), zone.material, now)


def test_the_right_content_by_the_right_role_is_accepted(forger, zone, now):
    assert accepted(CHANNEL, forger.statement(CHANNEL, **OFFICER), zone.material, now).role == "import-officer"


def test_a_release_signer_may_not_move_a_channel(forger, zone, now):
    refused("TRUST_ROLE", CHANNEL, forger.statement(CHANNEL), zone.material, now)


def test_an_import_officer_may_not_sign_a_release(forger, zone, now):
    release = statement("release")
    refused("TRUST_ROLE", release, forger.statement(release, **OFFICER), zone.material, now, kind="release")


def test_a_kind_that_no_role_may_sign_is_refused(forger, zone, now):
    payload = statement("firmware")
    refused("TRUST_ROLE", payload, forger.statement(payload, **OFFICER), zone.material, now, kind="firmware")


def test_a_role_that_was_taken_out_of_the_policy_is_refused_for_old_signatures_too(forger, zone, now):
    bundle = forger.statement(CHANNEL, **OFFICER)
    accepted(CHANNEL, bundle, zone.material, now)
    roles = {name: role for name, role in zone.material.policy.roles.items() if name != "import-officer"}
    refused("TRUST_ROLE", CHANNEL, bundle, with_policy(zone, roles=roles), now)


def test_an_identity_that_left_its_role_is_refused(forger, zone, now):
    role = zone.material.policy.roles["import-officer"].model_copy(update={"identities": ()})
    material = with_policy(zone, roles={**zone.material.policy.roles, "import-officer": role})
    refused("TRUST_ROLE", CHANNEL, forger.statement(CHANNEL, **OFFICER), material, now)


def test_the_issuer_must_fit_as_well_as_the_identity(forger, zone, now):
    role = zone.material.policy.roles["import-officer"]
    elsewhere = Identity(identity="import-officer@appliance.internal", issuer="https://login.example.com")
    roles = {"import-officer": role.model_copy(update={"identities": (elsewhere,)})}
    refused("TRUST_ROLE", CHANNEL, forger.statement(CHANNEL, **OFFICER), with_policy(zone, roles=roles), now)


def denials(bundle_verdict, log):
    other = f"{bundle_verdict.certificate_serial + 1:x}"
    index = bundle_verdict.log_index
    return {
        "certificate": (
            Denied(certificate_serials=(f"{bundle_verdict.certificate_serial:x}",)),
            Denied(certificate_serials=(other,)),
        ),
        "certificate as openssl prints some": (
            Denied(certificate_serials=(f"0{bundle_verdict.certificate_serial:x}",)),
            Denied(certificate_serials=(f"0{other}",)),
        ),
        "log entry": (
            Denied(log_indices=(LogIndex(log=log, index=index),)),
            Denied(log_indices=(LogIndex(log=log, index=index + 1), LogIndex(log="0" * 64, index=index))),
        ),
        "content": (Denied(digests=(bundle_verdict.digest,)), Denied(digests=("0" * 64,))),
    }


@pytest.mark.parametrize("what", ["certificate", "certificate as openssl prints some", "log entry", "content"])
def test_what_the_policy_denies_is_refused_and_its_neighbour_is_not(what, forger, zone, now):
    bundle = forger.statement(CHANNEL, **OFFICER)
    verdict = accepted(CHANNEL, bundle, zone.material, now)
    log = keys.key_id(forger.key("log").public_key()).hex()
    denied, spared = denials(verdict, log)[what]
    refused("TRUST_DENIED", CHANNEL, bundle, with_policy(zone, denied=denied), now)
    accepted(CHANNEL, bundle, with_policy(zone, denied=spared), now)


EPOCHS = {
    "lower than the lowest of its kind": ({"channel": 8}, {}, "TRUST_EPOCH"),
    "lower than the lowest of its name": ({"channel:stable": 8}, {}, "TRUST_EPOCH"),
    "lower than the higher of two limits": ({"channel": 1, "channel:stable": 8}, {}, "TRUST_EPOCH"),
    "missing": ({"channel": 1}, {"epoch": None}, "TRUST_EPOCH"),
    "text": ({"channel": 1}, {"epoch": "9"}, "TRUST_EPOCH"),
    "a truth value": ({"channel": 1}, {"epoch": True}, "TRUST_EPOCH"),
    "a fraction": ({"channel": 1}, {"epoch": 9.5}, "TRUST_EPOCH"),
    "the lowest": ({"channel": 7}, {}, None),
    "lower than another name's": ({"channel:canary": 8}, {}, None),
    "lower than another kind's": ({"release": 8}, {}, None),
}


@pytest.mark.parametrize("name", EPOCHS)
def test_an_epoch_that_is(name, forger, zone, now):
    lowest, fields, code = EPOCHS[name]
    payload = statement(**fields)
    bundle, material = forger.statement(payload, **OFFICER), with_policy(zone, lowest_epochs=lowest)
    if code is None:
        accepted(payload, bundle, material, now)
    else:
        refused(code, payload, bundle, material, now)


POLICIES = {
    "an unknown field": lambda d: {**d, "trust_everyone": True},
    "another schema": lambda d: {**d, "schema_version": 2},
    "a role without kinds": lambda d: {**d, "roles": {"x": {"identities": []}}},
    "a serial in upper case": lambda d: {**d, "denied": {"certificate_serials": ["AB"]}},
    "a digest that is too short": lambda d: {**d, "denied": {"digests": ["ab"]}},
    "an epoch below zero": lambda d: {**d, "lowest_epochs": {"release": -1}},
    "an epoch beyond counting": lambda d: {**d, "lowest_epochs": {"release": 2**64}},
    "an identity pattern object": lambda d: {**d, "roles": {"x": {"identities": [{"regexp": ".*"}], "kinds": []}}},
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_with(name, zone):
    import json

    document = POLICIES[name](json.loads(write_policy(zone.material.policy)))
    with pytest.raises(TrustError) as caught:
        read_policy(documents.write_json(document))
    assert caught.value.code == "TRUST_POLICY_MALFORMED"


def test_a_policy_survives_being_written_and_read(zone):
    assert read_policy(write_policy(zone.material.policy)) == zone.material.policy


def test_a_trusted_root_that_cannot_be_used_has_its_own_code(forger, zone, now):
    for broken in (b"{}", b"[]", b"not json", zone.material.trusted_root.replace(b"rawBytes", b"rawBites")):
        bundle = forger.statement(CHANNEL, **OFFICER)
        refused("TRUST_ROOT_MALFORMED", CHANNEL, bundle, replace(zone.material, trusted_root=broken), now)


def test_a_verdict_is_the_same_at_any_later_time(forger, zone, now):
    bundle = forger.statement(CHANNEL, **OFFICER)
    first = accepted(CHANNEL, bundle, zone.material, now)
    assert accepted(CHANNEL, bundle, zone.material, now + timedelta(days=3650)) == first


def test_an_empty_policy_trusts_nobody(forger, zone, now):
    material = replace(zone.material, policy=Policy(schema_version=1, roles={}))
    refused("TRUST_ROLE", CHANNEL, forger.statement(CHANNEL, **OFFICER), material, now)
