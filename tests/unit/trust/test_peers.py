"""Two authorities: the connected side signs releases, the zone signs what it admits; each speaks for itself alone."""

import json
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import ceremony, keys
from appliance.trust.anchor import read_anchor
from appliance.trust.authority import Authority
from appliance.trust.encoding import b64
from appliance.trust.names import statement_type
from appliance.trust.peers import peers
from appliance.trust.policy import Identity
from appliance.trust.profiles import read_recipes
from appliance.trust.repository import TRUSTED_ROOT, Repository
from appliance.trust.trusted_root import from_trust_config
from appliance.trust.verification import verify_statement
from tests.support.forgery import Forger, LeafPlan, edit
from tests.support.media import contents
from tests.support.trust import RECIPES, DevelopmentAuthority

RELEASE = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})
CHANNEL = documents.write_json({"_type": statement_type("channel"), "name": "stable", "epoch": 1})
VENDOR = "vendor.example"
OTHER = "other.example"


def refused(code, call, *args, **kwargs):
    with pytest.raises(TrustError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value


def recipes(domain):
    """The standard policy, its release signer being the vendor's."""
    standard = read_recipes(RECIPES)
    role = standard.policy.roles["release-signer"]
    signer = Identity(identity=f"release-signer@{VENDOR}", issuer=f"https://ca.{VENDOR}")
    roles = {**standard.policy.roles, "release-signer": role.model_copy(update={"identities": (signer,)})}
    return replace(standard, policy=standard.policy.model_copy(update={"roles": roles}))


@pytest.fixture(scope="module")
def vendor(tmp_path_factory, birth_time):
    folder = tmp_path_factory.mktemp("vendor") / "ca"
    ceremony.create_authority(folder, recipes(VENDOR), development=True, now=birth_time, domain=VENDOR)
    return DevelopmentAuthority(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory, birth_time):
    folder = tmp_path_factory.mktemp("other") / "ca"
    own_recipes = read_recipes(RECIPES, domain=OTHER)
    ceremony.create_authority(folder, own_recipes, development=True, now=birth_time, domain=OTHER)
    return DevelopmentAuthority(folder)


@pytest.fixture(scope="module")
def birth_time():
    from datetime import UTC, datetime

    return datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def own(zone, tmp_path):
    shutil.copytree(zone.path, tmp_path / "ca")
    return DevelopmentAuthority(tmp_path / "ca")


@pytest.fixture
def joined(own, vendor, now):
    """The zone's authority after it has enrolled the vendor and named the vendor's release signer."""
    authority = Authority.open(own.path)
    ceremony.enrol_peer(authority, trusted_root(vendor), now=now)
    ceremony.set_policy(authority, recipes(VENDOR).policy, now=now)
    return own


def trusted_root(authority):
    return Repository(Authority.open(authority.path)).target(TRUSTED_ROOT)


def judge(material, payload, bundle, kind, at):
    return verify_statement(payload, bundle, kind=kind, material=material, at=at)


def test_each_side_signs_its_own_and_the_zone_accepts_both(joined, vendor, tmp_path, now):
    store = joined.store(tmp_path / "state", now=now)
    material = store.material(now=now)
    release = vendor.signer("release-signer", at=now).sign_statement(RELEASE)
    channel = joined.signer("import-officer", at=now).sign_statement(CHANNEL)
    assert judge(material, RELEASE, release, "release", now).issuer == f"https://ca.{VENDOR}"
    assert judge(material, CHANNEL, channel, "channel", now).issuer == "https://ca.appliance.internal"


def test_before_it_is_enrolled_the_peer_is_a_stranger(own, vendor, now):
    release = vendor.signer("release-signer", at=now).sign_statement(RELEASE)
    refused("TRUST_CERTIFICATE_AUTHORITY", judge, own.material, RELEASE, release, "release", now)


def test_the_anchor_carries_the_chain_of_whoever_signs_releases(joined, vendor, own):
    anchor, peer = read_anchor(joined.anchor), read_anchor(vendor.anchor)
    assert anchor.release == peer.release
    assert anchor.timestamp_chain == peer.timestamp_chain
    assert anchor.root != peer.root


def test_a_peer_cannot_speak_in_the_zones_name(joined, vendor, now):
    """The vendor's authority certifies the zone's import officer."""
    forger = Forger(vendor.path, now)
    plan = LeafPlan(identity="import-officer@appliance.internal", issuer_v1="https://ca.appliance.internal")
    refused(
        "TRUST_CERTIFICATE_ISSUER",
        judge,
        joined.material,
        CHANNEL,
        forger.statement(CHANNEL, leaf=plan),
        "channel",
        now,
    )


def test_a_peers_officer_has_no_say_in_the_zone(joined, vendor, now):
    forger = Forger(vendor.path, now)
    plan = LeafPlan(identity="import-officer@appliance.internal", issuer_v1=f"https://ca.{VENDOR}")
    refused("TRUST_ROLE", judge, joined.material, CHANNEL, forger.statement(CHANNEL, leaf=plan), "channel", now)


def test_the_zone_cannot_sign_releases_for_the_vendor(joined, now):
    forger = Forger(joined.path, now)
    refused("TRUST_ROLE", judge, joined.material, RELEASE, forger.statement(RELEASE), "release", now)


def test_releases_cannot_be_left_to_somebody_who_is_not_enrolled(own, now):
    authority = Authority.open(own.path)
    before = contents(own.path)
    refused("TRUST_PEER", ceremony.set_policy, authority, recipes(VENDOR).policy, now=now)
    assert contents(own.path) == before


def test_the_recipes_names_move_to_the_authoritys_domain_and_others_stay():
    from appliance.trust.profiles import read_policy_recipe

    moved = read_policy_recipe(RECIPES / "policy.yaml", domain=VENDOR)
    names = {(each.identity, each.issuer) for role in moved.roles.values() for each in role.identities}
    assert (f"producer@{VENDOR}", f"https://ca.{VENDOR}") in names
    assert not any("appliance.internal" in part for name in names for part in name)


MIXTURES = {
    "transparency log": lambda v: {"log_key": v.key("log"), "log_url": f"https://log-1.{VENDOR}"},
    "time-stamp": lambda v: {"stamp_key": v.key("tsa"), "stamp_certificate": v.authority.certificate("tsa-1")},
    "certificate log": lambda v: {"leaf": LeafPlan(identity="import-officer@appliance.internal", sct_key=v.key("ct"))},
}


@pytest.mark.parametrize("service", MIXTURES)
def test_a_peers_stolen_key_helps_nobody_in_the_zone(service, joined, vendor, now):
    forger = Forger(joined.path, now)
    changes = {
        "leaf": LeafPlan(identity="import-officer@appliance.internal"),
        **MIXTURES[service](Forger(vendor.path, now)),
    }
    refused("TRUST_DOMAIN", judge, joined.material, CHANNEL, forger.statement(CHANNEL, **changes), "channel", now)


def test_a_peers_rotation_is_followed_by_enrolling_it_again(joined, vendor, tmp_path, now):
    shutil.copytree(vendor.path, tmp_path / "vendor")
    ceremony.rotate_service(Authority.open(tmp_path / "vendor"), "signing", now=now)
    later = now + timedelta(hours=1)
    renewed = DevelopmentAuthority(tmp_path / "vendor")
    release = renewed.signer("release-signer", at=later).sign_statement(RELEASE)
    refused("TRUST_CERTIFICATE_AUTHORITY", judge, joined.material, RELEASE, release, "release", later)
    authority = Authority.open(joined.path)
    assert ceremony.enrol_peer(authority, trusted_root(renewed), now=now) == VENDOR
    assert peers(authority) == [VENDOR]
    judge(joined.material, RELEASE, release, "release", later)


PEERS = {
    "this authority's own domain": lambda own, vendor: trusted_root(own),
    "services of two domains": lambda own, vendor: edit(
        trusted_root(vendor), lambda d: d["tlogs"][0].update(baseUrl="https://log-1.appliance.internal")
    ),
    "a domain that leads elsewhere": lambda own, vendor: trusted_root(vendor).replace(VENDOR.encode(), b"../../x.y"),
    "keys of this authority under another name": lambda own, vendor: trusted_root(own).replace(
        b".appliance.internal", b".other.internal"
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_with(name, own, vendor, now):
    authority = Authority.open(own.path)
    before = Repository(authority).version("targets")
    refused("TRUST_PEER", ceremony.enrol_peer, authority, PEERS[name](own, vendor), now=now)
    assert Repository(authority).version("targets") == before
    assert not peers(authority)


@pytest.mark.parametrize("kept", ["tlogs", "ctlogs", "certificateAuthorities", "timestampAuthorities"])
def test_a_peer_with_a_key_of_another_peer_is_refused(kept, joined, vendor, other, now):
    """Under its own name it would take the other's signatures away from the zone."""
    theirs = json.loads(trusted_root(vendor).replace(VENDOR.encode(), OTHER.encode()))

    def borrow(document):
        document[kept] = document[kept] + theirs[kept]

    honest = trusted_root(other)
    authority = Authority.open(joined.path)
    refused("TRUST_PEER", ceremony.enrol_peer, authority, edit(honest, borrow), now=now)
    assert ceremony.enrol_peer(authority, honest, now=now) == OTHER
    assert peers(authority) == [OTHER, VENDOR]
    bundle = vendor.signer("release-signer", at=now).sign_statement(RELEASE)
    assert judge(joined.material, RELEASE, bundle, "release", now).role == "release-signer"


def test_a_peer_that_is_no_trusted_root_is_refused(own, now):
    authority = Authority.open(own.path)
    for data in (b"", b"{}", b"[]"):
        refused("TRUST_ROOT_MALFORMED", ceremony.enrol_peer, authority, from_or_same(data), now=now)


def test_a_peer_whose_certificate_has_no_name_is_refused_and_not_kept(own, vendor, now):
    """It could be read and never written again: no metadata could be signed from then on."""
    nobody, key = x509.Name([]), keys.generate()
    certificate = (
        x509.CertificateBuilder().subject_name(nobody).issuer_name(nobody).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    encoded = b64(certificate.public_bytes(Encoding.DER))

    def unname(document):
        document["timestampAuthorities"][0]["certChain"]["certificates"][0]["rawBytes"] = encoded

    authority = Authority.open(own.path)
    refused("TRUST_ROOT_MALFORMED", ceremony.enrol_peer, authority, edit(trusted_root(vendor), unname), now=now)
    assert not peers(authority)


def test_a_peer_is_not_kept_where_it_cannot_be_signed(own, vendor, now):
    (own.path / "keys/tuf-targets-1.pem").unlink()
    authority = Authority.open(own.path)
    refused("TRUST_THRESHOLD", ceremony.enrol_peer, authority, trusted_root(vendor), now=now)
    assert not peers(authority)


def from_or_same(data):
    try:
        return from_trust_config(data)
    except TrustError:
        return data


def test_a_peer_may_hand_over_its_trust_configuration(vendor):
    assert from_trust_config((vendor.path / "trust_config.json").read_bytes()) == trusted_root(vendor)
    assert from_trust_config(trusted_root(vendor)) == trusted_root(vendor)
    refused("TRUST_ROOT_MALFORMED", from_trust_config, b"not json")
