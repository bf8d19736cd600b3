"""Attacks on the signing certificate, its SCT, and the time at which everything was valid."""

import ipaddress
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import certificates, keys
from appliance.trust.names import statement_type
from appliance.trust.verification import TrustMaterial, verify_statement
from tests.support.forgery import LeafPlan, edit, flipped, high_s

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})
MINUTE = timedelta(minutes=1)


def leaf(**changes):
    return {"leaf": LeafPlan(**changes)}


def self_signed(forger):
    key = keys.generate()
    certificate = certificates.root_certificate(key, "me", at=forger.at, lifetime=timedelta(days=1))
    return leaf(issuer=certificate, issuer_key=key)


def same_name_other_key(forger):
    return leaf(issuer_key=keys.generate())


def from_tls_authority(forger):
    return leaf(issuer=forger.authority.certificate("tls-1"), issuer_key=forger.key("tls"))


def from_root(forger):
    return leaf(issuer=forger.authority.certificate("root-1"), issuer_key=forger.key("root"))


EMAIL = x509.RFC822Name("release-signer@appliance.internal")
RSA_KEY = rsa.generate_private_key(65537, 2048)
P384_KEY = ec.generate_private_key(ec.SECP384R1())
UNKNOWN = ObjectIdentifier("1.3.6.1.4.1.99999.1")

ATTACKS = {
    # who issued it
    "a self-made authority": ("TRUST_CERTIFICATE_AUTHORITY", self_signed),
    "the authority's name with another key": ("TRUST_CERTIFICATE_AUTHORITY", same_name_other_key),
    "the zone's TLS authority": ("TRUST_CERTIFICATE_AUTHORITY", from_tls_authority),
    "the zone's root itself": ("TRUST_CERTIFICATE_AUTHORITY", from_root),
    "a bit of the certificate turned": (
        "TRUST_CERTIFICATE_AUTHORITY",
        leaf(der=lambda d: d.replace(b"release-signer@", b"selease-signer@")),
    ),
    "its own signature in the other form": (
        "TRUST_CERTIFICATE_AUTHORITY",
        lambda forger: leaf(der=_with_high_s),
    ),
    "a byte after the certificate": ("TRUST_CERTIFICATE_MALFORMED", leaf(der=lambda d: d + b"\x00")),
    "half a certificate": ("TRUST_CERTIFICATE_MALFORMED", leaf(der=lambda d: d[: len(d) // 2])),
    "no certificate in the field": ("TRUST_CERTIFICATE_MALFORMED", leaf(der=lambda _: b"")),
    # what it is for
    "a TLS server usage": ("TRUST_CERTIFICATE_USAGE", leaf(usages=[ExtendedKeyUsageOID.SERVER_AUTH])),
    "a time-stamping usage": ("TRUST_CERTIFICATE_USAGE", leaf(usages=[ExtendedKeyUsageOID.TIME_STAMPING])),
    "code signing and more": (
        "TRUST_CERTIFICATE_USAGE",
        leaf(usages=[ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH]),
    ),
    "any usage": ("TRUST_CERTIFICATE_USAGE", leaf(usages=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])),
    "a key that may sign certificates": ("TRUST_CERTIFICATE_USAGE", leaf(key_usage={"key_cert_sign": True})),
    "a key that may agree on keys": ("TRUST_CERTIFICATE_USAGE", leaf(key_usage={"key_agreement": True})),
    "a key that may not sign": (
        "TRUST_CERTIFICATE_USAGE",
        leaf(key_usage={"digital_signature": False, "key_encipherment": True}),
    ),
    "an authority's certificate": (
        "TRUST_CERTIFICATE_PROFILE",
        leaf(extra=[(x509.BasicConstraints(ca=True, path_length=None), True)]),
    ),
    "an unknown critical extension": (
        "TRUST_CERTIFICATE_PROFILE",
        leaf(extra=[(x509.UnrecognizedExtension(UNKNOWN, b"\x05\x00"), True)]),
    ),
    "an unknown extension": (
        "TRUST_CERTIFICATE_PROFILE",
        leaf(extra=[(x509.UnrecognizedExtension(UNKNOWN, b"\x05\x00"), False)]),
    ),
    "an RSA key": ("TRUST_CERTIFICATE_KEY", leaf(key=RSA_KEY)),
    "a key on another curve": ("TRUST_CERTIFICATE_KEY", leaf(key=P384_KEY)),
    # whom it names
    "two identities": (
        "TRUST_CERTIFICATE_IDENTITY",
        leaf(names=[EMAIL, x509.RFC822Name("import-officer@appliance.internal")]),
    ),
    "a host name as identity": ("TRUST_CERTIFICATE_IDENTITY", leaf(names=[x509.DNSName("appliance.internal")])),
    "an identity and an address": (
        "TRUST_CERTIFICATE_IDENTITY",
        leaf(names=[EMAIL, x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]),
    ),
    "a user principal name as identity": (
        "TRUST_CERTIFICATE_IDENTITY",
        leaf(names=[x509.OtherName(ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x06signer")]),
    ),
    "no identity": ("TRUST_CERTIFICATE_IDENTITY", leaf(names=[])),
    "an identity that may be overlooked": ("TRUST_CERTIFICATE_PROFILE", leaf(san_critical=False)),
    "a subject beside the identity": ("TRUST_CERTIFICATE_PROFILE", leaf(subject=certificates.name("release-signer"))),
    "two issuers that disagree": ("TRUST_CERTIFICATE_ISSUER", leaf(issuer_v2=b"\x0c\x05other")),
    "an issuer that is not text": ("TRUST_CERTIFICATE_ISSUER", leaf(issuer_v2=b"\x02\x01\x05")),
    "another issuer": ("TRUST_CERTIFICATE_ISSUER", leaf(issuer_v1="https://accounts.example.com")),
    "an unknown identity": ("TRUST_ROLE", leaf(identity="mallory@appliance.internal")),
    "an identity in other letters": ("TRUST_ROLE", leaf(identity="Release-Signer@appliance.internal")),
    "an identity with a suffix": ("TRUST_ROLE", leaf(identity="release-signer@appliance.internal.example.com")),
    "an identity as a link": (
        "TRUST_ROLE",
        leaf(names=[x509.UniformResourceIdentifier("mailto://release-signer@appliance.internal")]),
    ),
    # the certificate log's receipt
    "no SCT": ("TRUST_CERTIFICATE_PROFILE", leaf(scts=0)),
    "two SCTs": ("TRUST_SCT", leaf(scts=2)),
    "an SCT of an unknown log": ("TRUST_SCT_LOG", leaf(sct_key=keys.generate())),
    "an SCT by the transparency log's key": ("TRUST_SCT_LOG", lambda forger: leaf(sct_key=forger.key("log"))),
    "an SCT of another certificate": ("TRUST_SCT_SIGNATURE", leaf(sct_over=lambda tbs: flipped(tbs, 30))),
    "an SCT from a year that does not exist": ("TRUST_SCT", leaf(sct_at=2**64 - 1)),
    # the minutes in which it is valid
    "a certificate of years instead of minutes": (
        "TRUST_CERTIFICATE_LIFETIME",
        leaf(lifetime=timedelta(days=1, seconds=1)),
    ),
    "an SCT from before the certificate": ("TRUST_CERTIFICATE_TIME", lambda f: leaf(sct_at=f.at - 2 * MINUTE)),
    "an SCT from after the certificate": ("TRUST_CERTIFICATE_TIME", lambda f: leaf(sct_at=f.at + 11 * MINUTE)),
    "an SCT from before its log": ("TRUST_CERTIFICATE_TIME", lambda f: leaf(sct_at=f.at - timedelta(days=300))),
    "signed before the certificate": ("TRUST_CERTIFICATE_TIME", leaf(starts=MINUTE)),
    "signed after the certificate": ("TRUST_CERTIFICATE_TIME", leaf(starts=-20 * MINUTE)),
    "time-stamped after the certificate": ("TRUST_CERTIFICATE_TIME", {"stamp_at": 11 * MINUTE}),
    "time-stamped before the certificate": ("TRUST_CERTIFICATE_TIME", {"stamp_at": -MINUTE}),
    "logged after the certificate": ("TRUST_CERTIFICATE_TIME", {"integrated": 11 * MINUTE}),
    "logged before the certificate": ("TRUST_CERTIFICATE_TIME", {"integrated": -MINUTE}),
}


def _with_high_s(der):
    """The certificate with its signature in the other form: the same TBS, another valid encoding."""
    certificate = x509.load_der_x509_certificate(der)
    old, new = certificate.signature, high_s(certificate.signature)
    unsigned = der[4 : -len(old) - 3]  # outer header (30 82 length) and BIT STRING header (03 length 00)
    content = unsigned + b"\x03" + bytes([len(new) + 1]) + b"\x00" + new
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def refused(code, bundle, material, at):
    with pytest.raises(TrustError) as caught:
        verify_statement(PAYLOAD, bundle, kind="release", material=material, at=at)
    assert caught.value.code == code, caught.value


def forge(name, forger):
    """The bundle of an attack."""
    changes = ATTACKS[name][1]
    changes = dict(changes(forger) if callable(changes) else changes)
    plan = changes.get("leaf")
    if plan is not None and (plan.key is RSA_KEY or plan.key is P384_KEY):
        changes["signature"] = lambda _: b"never reached"
        changes["sign_with"] = keys.generate()
    return forger.statement(PAYLOAD, **changes)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_certificate_is_refused_with_its_code(name, forger, zone, now):
    refused(ATTACKS[name][0], forge(name, forger), zone.material, now + timedelta(hours=1))


def test_bits_that_are_said_to_be_unused_are_part_of_the_certificate(forger, zone, now):
    """Where a signature ends in a zero bit, its BIT STRING may call that bit unused and still be DER: other bytes."""
    ends = []

    def one_unused(der):
        ends.append(der[-1] & 1)
        at = len(der) - len(x509.load_der_x509_certificate(der).signature) - 1
        return der[:at] + b"\x01" + der[at + 1 :]

    while not ends or ends[-1]:  # one signature in two ends in a zero bit; the others are no DER
        bundle = forger.statement(PAYLOAD, leaf=LeafPlan(der=one_unused))
        refused("TRUST_CERTIFICATE_MALFORMED", bundle, zone.material, now)


def test_a_signature_under_a_strangers_authority_is_refused(stranger, zone, now):
    refused("TRUST_CERTIFICATE_AUTHORITY", stranger.statement(PAYLOAD), zone.material, now)


def test_the_stranger_is_honest_in_his_own_zone(stranger, other_zone, now):
    verify_statement(PAYLOAD, stranger.statement(PAYLOAD), kind="release", material=other_zone.material, at=now)


def test_a_signature_outlives_its_certificate_by_years(forger, zone, now):
    bundle = forger.statement(PAYLOAD)
    later = now + timedelta(days=5 * 365)
    assert verify_statement(PAYLOAD, bundle, kind="release", material=zone.material, at=later).signed_at == now


def test_an_identity_written_as_a_uri_is_accepted_where_the_policy_names_it(forger, zone, now):
    from appliance.trust.policy import Identity, Role

    uri = "https://appliance.internal/release"
    policy = zone.material.policy
    role = policy.roles["release-signer"]
    named = Role(identities=(Identity(identity=uri, issuer=role.identities[0].issuer),), kinds=role.kinds)
    material = TrustMaterial(zone.material.trusted_root, policy.model_copy(update={"roles": {"release-signer": named}}))
    bundle = forger.statement(PAYLOAD, leaf=LeafPlan(names=[x509.UniformResourceIdentifier(uri)]))
    assert verify_statement(PAYLOAD, bundle, kind="release", material=material, at=now).identity == uri


def windows(material, service, *, end=None, start=None):
    """The material with one service's validity window moved, as a trusted root after rotation has it."""

    def move(document):
        for each in document[service]:
            window = each["publicKey"]["validFor"] if "publicKey" in each else each["validFor"]
            window.update({k: f"{v:%Y-%m-%dT%H:%M:%SZ}" for k, v in (("start", start), ("end", end)) if v})

    return replace(material, trusted_root=edit(material.trusted_root, move))


SERVICES = ("certificateAuthorities", "ctlogs", "tlogs", "timestampAuthorities")


@pytest.mark.parametrize("service", SERVICES)
def test_a_key_that_was_retired_before_the_signature_is_refused(service, forger, zone, now):
    material = windows(zone.material, service, end=now - timedelta(seconds=1))
    refused("TRUST_KEY_WINDOW", forger.statement(PAYLOAD), material, now)


@pytest.mark.parametrize("service", SERVICES)
def test_a_key_that_was_not_yet_in_use_is_refused(service, forger, zone, now):
    material = windows(zone.material, service, start=now + timedelta(seconds=1))
    refused("TRUST_KEY_WINDOW", forger.statement(PAYLOAD), material, now)


@pytest.mark.parametrize("service", SERVICES)
def test_a_signature_from_before_a_keys_retirement_stays_valid(service, forger, zone, now):
    material = windows(zone.material, service, end=now)
    bundle = forger.statement(PAYLOAD)
    verify_statement(PAYLOAD, bundle, kind="release", material=material, at=now + timedelta(days=900))


def test_stock_sigstore_accepts_the_retired_key_that_we_refuse(forger, zone, now):
    """The gap that our windows close: sigstore-python looks at the start of a window and never at its end."""
    import json

    from sigstore.models import Bundle, TrustedRoot
    from sigstore.verify import Verifier, policy
    from sigstore_models.trustroot import v1

    material = windows(zone.material, "tlogs", end=now - timedelta(days=1))
    root = TrustedRoot(v1.TrustedRoot.from_json(json.dumps(json.loads(material.trusted_root))))
    bundle = forger.statement(PAYLOAD)
    identity = policy.Identity(identity="release-signer@appliance.internal", issuer="https://ca.appliance.internal")
    Verifier(trusted_root=root).verify_artifact(PAYLOAD, Bundle.from_json(bundle), identity)
    refused("TRUST_KEY_WINDOW", bundle, material, now)


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_retired_key_never_signed_is_not_taken_for_its_signature(service, forger, zone, now):
    """An officer counts on from what a given-up key signed; a stranger's words under its old signature are not that."""
    import base64
    import hashlib
    import json

    material, stranger = windows(zone.material, service, end=now - timedelta(days=1)), b"what nobody signed"
    bundle = json.loads(forger.statement(PAYLOAD))
    refused("TRUST_KEY_WINDOW", documents.write_json(bundle), material, now)
    digest = base64.b64encode(hashlib.sha256(stranger).digest()).decode()
    bundle["messageSignature"]["messageDigest"]["digest"] = digest
    with pytest.raises(TrustError) as caught:
        verify_statement(stranger, documents.write_json(bundle), kind="release", material=material, at=now)
    assert caught.value.code == "TRUST_SIGNATURE"


def test_a_signature_from_the_future_is_refused(forger, zone, now):
    refused("TRUST_SIGNED_LATER", forger.statement(PAYLOAD), zone.material, now - timedelta(hours=1))


def test_a_signature_that_is_younger_by_a_clocks_inaccuracy_is_accepted(forger, zone, now):
    verify_statement(
        PAYLOAD, forger.statement(PAYLOAD), kind="release", material=zone.material, at=now - timedelta(minutes=4)
    )
