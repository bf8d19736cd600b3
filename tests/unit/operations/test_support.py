"""Seeded canaries: whatever secret lies on the host, in whatever form, is not in the bundle."""

import base64
import io
import json
import tarfile
from collections import Counter
from datetime import UTC, datetime

import pytest
import yaml

from appliance.errors import OperationError
from appliance.operations.doctor.gather import Places
from appliance.operations.support import gate
from appliance.operations.support.shape import Every, code, digest, fit, looks_secret, name, number, phrase
from appliance.operations.support.write import support_bundle

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MASTER = "sk-canary0master1key2with3entropy4abcdef"
UPSTREAM = "Zq8pK2canaryUpstream7Vw1xY5nR3tB6mL9"
PASSPHRASE = "correct horse canary staple"
PEM = (
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49canaryPEMbodyAgEGCCqGSM49AwEHBG0wawIBAQQgq1w2\n"
    "e3r4t5y6u7i8o9p0canarySECONDlineAbCdEfGhIjKlMnOpQrStUvWxYz012345\n-----END PRIVATE KEY-----\n"
)
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJ0b2tlbiJ9.c2lnbmF0dXJlY2FuYXJ5"
CANARIES = [MASTER, UPSTREAM, PASSPHRASE, TOKEN, *PEM.splitlines()[1:3]]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """An installation with canaries in every place where secrets, or careless people, put them."""
    etc = tmp_path / "prefix" / "etc"
    (etc / "secrets").mkdir(parents=True)
    (tmp_path / "prefix" / "state").mkdir()
    for file, content in {"master.key": MASTER, "up.secret": UPSTREAM, "phrase.secret": PASSPHRASE}.items():
        (etc / "secrets" / file).write_text(content + "\n")
        (etc / "secrets" / file).chmod(0o600)
    (etc / "tls.key").write_text(PEM)
    (etc / "registry-credentials.yaml").write_text(f"access_key: canary-access\nsecret_key: {UPSTREAM}\n")
    deployment = {
        "model_name": "chat",
        "litellm_params": {
            "model": f"openai/{UPSTREAM}", "api_base": f"http://user:{PASSPHRASE}@10.0.0.1/v1",
            "api_key": "os.environ/UP",
        },
        "model_info": {"id": f"small-{MASTER}", "note": PASSPHRASE},
    }  # fmt: skip
    (etc / "litellm.yaml").write_text(yaml.safe_dump({"model_list": [deployment]}))
    config = {
        "schema_version": 1,
        "state_dir": "../state/gateway",
        "litellm": {
            "config": "litellm.yaml", "master_key_file": "secrets/master.key", "secrets": {"UP": "secrets/up.secret"}
        },
        "routing": {"groups": {"chat": {"strategy": "round-robin", "weights": {f"small-{MASTER}": 3}}}},
    }  # fmt: skip
    (etc / "appliance.yaml").write_text(yaml.safe_dump(config))
    log = tmp_path / "gateway.log"
    fields = {"at": "2026-11-23T12:00:00.000Z", "level": "info", "logger": "appliance.worker"}
    log.write_text(
        "\n".join(
            [
                json.dumps({**fields, "message": "serving", "worker": 0, "api_key": MASTER, "prompt": PASSPHRASE}),
                *(json.dumps({**fields, "message": f"upstream said {secret}"}) for secret in CANARIES),
                json.dumps({**fields, "message": base64.b64encode(UPSTREAM.encode()).decode()}),
                json.dumps({**fields, "message": MASTER.encode().hex()}),
                json.dumps({**fields, "message": f"{UPSTREAM[:18]} {UPSTREAM[18:]}"}),
                json.dumps({"logger": "LiteLLM", "level": "error", "message": f"Bearer {TOKEN}"}),
                PEM,
                f"plain text with {MASTER}",
                '{"logger": "appliance.x", "message": "cut off',
            ]
        )
    )
    monkeypatch.setenv("UPSTREAM_API_KEY", UPSTREAM)
    monkeypatch.setenv("HARMLESS", PASSPHRASE)
    return Places.below(tmp_path / "prefix"), log


def forms(secret: str):
    raw = secret.encode()
    yield from (raw, raw[::-1], raw.hex().encode(), raw[:16], raw[-16:], raw.decode().encode("utf-16-le"))
    for shift in range(3):
        yield base64.b64encode(b"x" * shift + raw)[4:-4]


def test_no_canary_leaves_the_host_in_any_form(host, tmp_path):
    places, log = host
    report = support_bundle(places, tmp_path / "out.tar", now=NOW, logs=(log,))
    written = (tmp_path / "out.tar").read_bytes()
    squeezed = b"".join(written.split())
    for secret in CANARIES:
        for form in forms(secret):
            assert form not in written
            assert form not in squeezed
    assert b"canary" not in written.lower()
    assert report["left_out"]


def test_credentials_that_only_the_sidecars_settings_name_are_known_to_the_gate(host, tmp_path):
    places, _ = host
    etc = places.prefix / "etc"
    (etc / "bucket.yaml").write_text("access_key: sidecar\nsecret_key: harmless-name-7\n")
    (etc / "registry.yaml").write_text(
        "registry: {home: s3, endpoint: 'minio:9000', bucket: b-b, ca_file: ca.pem, credentials_file: bucket.yaml}"
    )
    config = yaml.safe_load((etc / "appliance.yaml").read_text())
    config["routing"]["groups"] = {"harmless-name-7": {"strategy": "round-robin"}}  # a name like any other
    (etc / "appliance.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(OperationError) as refused:
        support_bundle(places, tmp_path / "out.tar", now=NOW)
    assert refused.value.code == "OPERATION_SUPPORT_LEAK"
    assert not (tmp_path / "out.tar").exists()


def test_what_support_needs_is_there(host, tmp_path):
    places, log = host
    support_bundle(places, tmp_path / "out.tar", now=NOW, logs=(log,))
    with tarfile.open(tmp_path / "out.tar") as tar:
        files = {member.name.split("/")[1]: json.load(tar.extractfile(member)) for member in tar}
    assert set(files) == {
        "CONTENTS.json", "versions.json", "status.json", "doctor.json", "configuration.json", "models.json",
        "releases.json", "trust.json", "log.json",
    }  # fmt: skip
    assert files["versions.json"]["packages"]["litellm"]
    assert files["configuration.json"]["routing"]["deadline_ms"] == 25
    assert {each["check"] for each in files["doctor.json"]} >= {"gateway", "disk", "kernel"}
    assert files["status.json"] == {"not_collected": "GATEWAY_NOT_RUNNING"}
    assert files["log.json"][0] == {
        "at": "2026-11-23T12:00:00.000Z", "level": "info", "logger": "appliance.worker", "message": "serving",
        "worker": 0,
    }  # fmt: skip


def test_only_its_owner_reads_the_bundle_and_it_names_no_account(host, tmp_path):
    places, _ = host
    support_bundle(places, tmp_path / "out.tar", now=NOW)
    assert (tmp_path / "out.tar").stat().st_mode & 0o777 == 0o600
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert {(member.uid, member.uname) for member in tar} == {(0, "")}


@pytest.mark.parametrize(
    "content",
    [
        b"x" + UPSTREAM.encode() + b"y",
        UPSTREAM.encode()[:20],
        UPSTREAM.encode()[::-1],
        UPSTREAM.encode().hex().encode(),
        base64.b64encode(b"Authorization: Basic " + UPSTREAM.encode()),
        base64.urlsafe_b64encode(UPSTREAM.encode()),
        b"\n".join([UPSTREAM.encode()[:12], UPSTREAM.encode()[12:24], UPSTREAM.encode()[24:]]),
        UPSTREAM.encode("utf-16-le"),
        b'"' + UPSTREAM.encode()[:18] + b'", "' + UPSTREAM.encode()[18:] + b'"',
    ],
    ids=["plain", "cut", "reversed", "hex", "base64 inside", "base64 url", "wrapped", "UTF-16", "split"],
)
def test_the_gate_refuses_a_bundle_with_a_secret_in_it(content):
    with pytest.raises(OperationError) as refused:
        gate.check({"log.json": content}, [UPSTREAM.encode()])
    assert refused.value.code == "OPERATION_SUPPORT_LEAK"
    assert UPSTREAM not in str(refused.value.as_dict())


def test_the_gate_lets_an_honest_bundle_pass():
    gate.check({"log.json": b'{"message": "serving", "digest": "' + b"ab12" * 16 + b'"}'}, [UPSTREAM.encode()])


def test_nothing_is_written_when_the_gate_refuses(host, tmp_path, monkeypatch):
    places, _ = host
    monkeypatch.setenv("SOME_TOKEN", "litellm")  # a secret that stands in the list of packages
    with pytest.raises(OperationError) as refused:
        support_bundle(places, tmp_path / "out.tar", now=NOW)
    assert refused.value.code == "OPERATION_SUPPORT_LEAK"
    assert not list(tmp_path.glob("*.tar")) + list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize(
    "text", [MASTER, TOKEN, PEM, "Bearer abcdefghij", "password=hunter2", "https://u:p@host/", UPSTREAM]
)
def test_keys_are_known_by_their_look(text):
    assert looks_secret(text)


@pytest.mark.parametrize(
    "text",
    ["openai/llama-3.1-8b-instruct", "release-signer@appliance.internal", "OPERATION_EGRESS", "all-MiniLM-L6-v2-int8",
     "appliance-gateway.service", "Run `appliance artifact promote NAME`.", "0.1.0-facae5d05d49",
     "sentence-transformers 5.1.2", "/opt/appliance/state/gateway"],
)  # fmt: skip
def test_honest_words_are_not_taken_for_keys(text):
    assert not looks_secret(text)


def test_the_shape_lets_nothing_pass_that_it_does_not_name():
    left_out: Counter[str] = Counter()
    shape = {"a": number, "b": [{"c": code}], "d": Every(digest), "e": name, "f": phrase}
    value = {
        "a": 1, "b": [{"c": "FILE_MISSING", "x": "no"}, "no"], "d": {"ok": "ab12cd34", UPSTREAM: "ab12cd34"},
        "e": {"not": "a name"}, "f": "two\nlines", "g": "no",
    }  # fmt: skip
    assert fit(value, shape, left_out) == {
        "a": 1, "b": [{"c": "FILE_MISSING"}, None], "d": {"ok": "ab12cd34"}, "e": None, "f": None
    }  # fmt: skip
    assert sum(left_out.values()) == 6


def test_the_archive_is_readable_by_stock_tar(host, tmp_path):
    places, _ = host
    support_bundle(places, tmp_path / "out.tar", now=NOW)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "out.tar").read_bytes()), mode="r:") as tar:
        assert tar.getnames()


def test_where_the_secrets_cannot_be_listed_nothing_is_written(host, tmp_path, monkeypatch):
    places, _ = host

    def denied(_places):
        raise PermissionError(13, "Permission denied", "secrets")

    monkeypatch.setattr("appliance.operations.support.collect._secret_files", denied)
    with pytest.raises(OperationError) as refused:
        support_bundle(places, tmp_path / "out.tar", now=NOW)
    assert refused.value.code == "OPERATION_UNREADABLE"
    assert not (tmp_path / "out.tar").exists()
