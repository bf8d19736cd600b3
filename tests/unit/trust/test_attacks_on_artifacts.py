"""Attacks on an artifact's files and on the OMS statement that lists them."""

from dataclasses import replace

import pytest

from appliance.artifact import from_files
from appliance.errors import ApplianceError, TrustError
from appliance.trust.verification import verify_artifact
from tests.support.forgery import LeafPlan, edit

FILES = {"router.yaml": b"name: r\n", "router.safetensors": b"weights", "extra/vocabulary.json": b"{}"}
NAME = "artifact.sigstore.json"


def statement(change):
    return {"statement": lambda data: edit(data, change)}


def serialization(**changes):
    return statement(lambda d: d["predicate"]["serialization"].update(changes))


def resources(change):
    def apply(document):
        document["predicate"]["resources"] = change(document["predicate"]["resources"])

    return statement(apply)


def field(name, value):
    def apply(document):
        document[name] = value

    return statement(apply)


def moved(listed):
    """Two files' digests exchanged."""
    first, second, *rest = listed
    first["digest"], second["digest"] = second["digest"], first["digest"]
    return [first, second, *rest]


def with_signatures(change):
    def apply(document):
        document["dsseEnvelope"]["signatures"] = change(document["dsseEnvelope"]["signatures"])
        return document

    return {"bundle": apply}


def shards(listed):
    return [{**each, "name": f"{each['name']}:0:7"} for each in listed]


STATEMENTS = {
    "a path ignored": ("TRUST_OMS_IGNORED", serialization(ignore_paths=[NAME, "router.safetensors"])),
    "every path ignored": ("TRUST_OMS_IGNORED", serialization(ignore_paths=["."])),
    "no path ignored": ("TRUST_OMS_IGNORED", serialization(ignore_paths=[])),
    "symbolic links allowed": ("TRUST_OMS_IGNORED", serialization(allow_symlinks=True)),
    "symbolic links allowed as text": ("TRUST_OMS_IGNORED", serialization(allow_symlinks="false")),
    "files in shards": ("TRUST_OMS_IGNORED", serialization(method="shards", shard_size=7)),
    "another hash": ("TRUST_OMS_IGNORED", serialization(hash_type="blake2b")),
    "an unknown option": ("TRUST_OMS_IGNORED", serialization(follow="yes")),
    "another predicate": ("TRUST_OMS_TYPE", field("predicateType", "https://slsa.dev/provenance/v1")),
    "the old predicate that lists no serialization": (
        "TRUST_OMS_TYPE",
        field("predicateType", "https://model_signing/Digests/v0.1"),
    ),
    "another statement version": ("TRUST_OMS_TYPE", field("_type", "https://in-toto.io/Statement/v0.1")),
    "a surplus field": ("TRUST_OMS_MALFORMED", field("note", "trust me")),
    "a surplus predicate field": ("TRUST_OMS_MALFORMED", statement(lambda d: d["predicate"].update(x=1))),
    "no predicate": ("TRUST_OMS_MALFORMED", field("predicate", None)),
    "no list of files": ("TRUST_OMS_MALFORMED", resources(lambda _: "all")),
    "a list of names alone": ("TRUST_OMS_MALFORMED", resources(lambda r: [each["name"] for each in r])),
    "a digest that is a number": ("TRUST_OMS_MALFORMED", resources(lambda r: [{**each, "digest": 1} for each in r])),
    "another subject": (
        "TRUST_OMS_MALFORMED",
        field("subject", [{"name": "artifact", "digest": {"sha256": "0" * 64}}]),
    ),
    "two subjects": ("TRUST_OMS_MALFORMED", statement(lambda d: d["subject"].append(d["subject"][0]))),
    "a file left out": ("TRUST_OMS_FILES", resources(lambda r: r[:-1])),
    "no file at all": ("TRUST_OMS_FILES", resources(lambda _: [])),
    "a file that is not there": ("TRUST_OMS_FILES", resources(lambda r: [*r, {**r[0], "name": "z"}])),
    "a file twice": ("TRUST_OMS_FILES", resources(lambda r: [*r, r[-1]])),
    "files in another order": ("TRUST_OMS_FILES", resources(lambda r: r[::-1])),
    "two files' digests exchanged": ("TRUST_OMS_FILES", resources(moved)),
    "file names with shards in them": ("TRUST_OMS_FILES", resources(shards)),
    "another digest algorithm's name": (
        "TRUST_OMS_FILES",
        resources(lambda r: [{**each, "algorithm": "sha512"} for each in r]),
    ),
    "a digest in upper case": (
        "TRUST_OMS_FILES",
        resources(lambda r: [{**each, "digest": each["digest"].upper()} for each in r]),
    ),
    "loose spacing": ("TRUST_OMS_MALFORMED", {"statement": lambda data: data.replace(b":", b": ", 1)}),
    "no JSON": ("TRUST_OMS_MALFORMED", {"statement": lambda _: b"weights"}),
    "a list": ("TRUST_OMS_MALFORMED", {"statement": lambda d: b"[" + d + b"]"}),
    "another payload type": ("TRUST_PAYLOAD_TYPE", {"envelope_type": "application/vnd.docker+json"}),
    "a payload type that no encoding can write": (
        "TRUST_BUNDLE_ENCODING",
        {"raw": lambda r: r.replace(b"application/vnd.in-toto+json", b"\\ud800")},
    ),
    "two signatures in the envelope": (
        "TRUST_BUNDLE_SURPLUS",
        with_signatures(lambda each: each * 2),
    ),
    "no signature in the envelope": (
        "TRUST_BUNDLE_INCOMPLETE",
        with_signatures(lambda _: []),
    ),
    "a key hint beside the signature": (
        "TRUST_BUNDLE_SURPLUS",
        with_signatures(lambda each: [{**each[0], "keyid": "release-signer"}]),
    ),
    "no payload type": ("TRUST_PAYLOAD_TYPE", {"envelope_type": ""}),
}


def refused(code, files, bundle, zone, now, **options):
    with pytest.raises(ApplianceError) as caught:
        verify_artifact(from_files({**files, NAME: bundle}), material=zone.material, at=now, **options)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_correctly_signed_list_of_files_with(name, forger, zone, now):
    code, changes = STATEMENTS[name]
    refused(code, FILES, forger.artifact(FILES, **changes), zone, now)


ALTERATIONS = {
    "a file altered": lambda f: {**f, "router.safetensors": b"weightz"},
    "a file removed": lambda f: {k: v for k, v in f.items() if k != "extra/vocabulary.json"},
    "a file added": lambda f: {**f, "run.json": b"{}"},
    "a file emptied": lambda f: {**f, "router.safetensors": b""},
    "a file renamed": lambda f: {("x.json" if k == "extra/vocabulary.json" else k): v for k, v in f.items()},
    "a file moved to another folder": lambda f: {k.removeprefix("extra/"): v for k, v in f.items()},
    "two files exchanged": lambda f: {
        **f,
        "router.safetensors": f["extra/vocabulary.json"],
        "extra/vocabulary.json": f["router.safetensors"],
    },
    "a file renamed to what looks the same": lambda f: {
        k.replace("vocabulary", "voc\u0430bulary"): v for k, v in f.items()
    },
    "the metadata altered": lambda f: {**f, "router.yaml": b"name: s\n"},
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_after_signing(name, forger, zone, now):
    refused("TRUST_OMS_FILES", ALTERATIONS[name](FILES), forger.artifact(FILES), zone, now)


def test_the_honest_twin_of_every_artifact_attack_is_accepted(forger, zone, now):
    artifact = from_files({**FILES, NAME: forger.artifact(FILES)})
    verdict = verify_artifact(artifact, material=zone.material, at=now)
    assert (verdict.kind, verdict.role, verdict.digest) == ("router", "import-officer", artifact.digest)


def test_the_refusal_names_what_is_missing_altered_and_unsigned(forger, zone, now):
    present = {"router.yaml": b"name: s\n", "extra/vocabulary.json": b"{}", "new.json": b""}
    with pytest.raises(TrustError) as caught:
        verify_artifact(from_files({**present, NAME: forger.artifact(FILES)}), material=zone.material, at=now)
    evidence = caught.value.evidence
    assert (evidence["missing"], evidence["altered"], evidence["unsigned"]) == (
        ["router.safetensors"],
        ["router.yaml"],
        ["new.json"],
    )


def test_an_unsigned_artifact_is_refused(zone, now):
    with pytest.raises(ApplianceError) as caught:
        verify_artifact(from_files(FILES), material=zone.material, at=now)
    assert caught.value.code == "ARTIFACT_UNSIGNED"


def test_a_router_of_a_stranger_is_refused(stranger, zone, now):
    refused("TRUST_CERTIFICATE_AUTHORITY", FILES, stranger.artifact(FILES), zone, now)


def test_a_router_is_narrowed_to_the_role_that_the_caller_asks_for(forger, zone, now):
    produced = forger.artifact(FILES, leaf=LeafPlan(identity="producer@appliance.internal"))
    artifact = from_files({**FILES, NAME: produced})
    assert verify_artifact(artifact, material=zone.material, at=now).role == "producer"
    refused("TRUST_ROLE", FILES, produced, zone, now, role="import-officer")


def test_a_zone_host_may_not_sign_routers(forger, zone, now):
    signed = forger.artifact(FILES, leaf=LeafPlan(identity="zone-host@appliance.internal"))
    refused("TRUST_ROLE", FILES, signed, zone, now)


@pytest.mark.parametrize(
    "name", ["model.pkl", "model.joblib", "model.pt", "model.bin", "model.h5", "run.py", "lib.so", "A.PKL"]
)
def test_a_signed_file_of_a_format_that_the_policy_does_not_allow_is_refused(name, forger, zone, now):
    files = {"router.yaml": b"name: r\n", name: b"x"}
    refused("TRUST_FORMAT", files, forger.artifact(files), zone, now)


def test_a_legacy_format_is_accepted_where_the_policy_names_it(forger, zone, now):
    files = {"router.yaml": b"name: r\n", "model.pkl": b"x", "LICENSE": b"", "README.md": b""}
    policy = zone.material.policy.model_copy(update={"model_formats": ("pickle",)})
    artifact = from_files({**files, NAME: forger.artifact(files)})
    verify_artifact(artifact, material=replace(zone.material, policy=policy), at=now)


def test_the_digest_of_an_artifact_on_the_deny_list_is_refused(forger, zone, now):
    from appliance.trust.policy import Denied

    artifact = from_files({**FILES, NAME: forger.artifact(FILES)})
    policy = zone.material.policy.model_copy(update={"denied": Denied(digests=(artifact.digest,))})
    with pytest.raises(TrustError) as caught:
        verify_artifact(artifact, material=replace(zone.material, policy=policy), at=now)
    assert caught.value.code == "TRUST_DENIED"
