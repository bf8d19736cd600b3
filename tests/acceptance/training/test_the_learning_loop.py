"""The learning loop, closed in one room.

Traffic through a real gateway; LiteLLM's own spans over mutual TLS and its own spend objects in a real S3 server; a
judge's verdicts as spans; extraction, split, fit, gate; two officers at the border; the gateway that never stopped
serves the new router, and its trace shows the new choice. Every step is the command that a person would type.
"""

import json
import os

import numpy as np
import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.registry.homes import open_store
from appliance.training.extract.receiver import SpanLog, Tls, receiving
from appliance.training.extract.redaction import load_redactor
from appliance.training.outcomes import read_outcomes
from tests.support.gateway import deployment, gateway
from tests.support.routing import WORDS, zone
from tests.support.s3 import swift_server
from tests.support.trust import development_authority
from tests.support.upstream import upstream

pytestmark = [pytest.mark.slow, pytest.mark.server]

REQUESTS = 160
WORTH = {("small", "easy"): 1.0, ("small", "hard"): 0.0, ("large", "easy"): 0.5, ("large", "hard"): 1.0}
SECRET = "jane@example.org"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return development_authority(tmp_path_factory)


@pytest.fixture(scope="module")
def room(home, authority, monkeypatch_module):
    """A zone with gateway, receiver and bucket; its router channel points to nothing yet."""
    here = zone(home / "zone", authority, labels={"small": "small", "large": "large"})
    registry = home / "registry"
    registry.mkdir()
    identities = {"receiver": authority.tls_server("127.0.0.1"), "gateway": authority.tls_client("gateway-1")}
    for name, identity in identities.items():
        identity.write(home / "tls" / name, name)
    files = {name: home / "tls" / name for name in identities}
    tls = Tls(files["receiver"] / "receiver.pem", files["receiver"] / "receiver.key", files["receiver"] / "ca.pem")
    log = SpanLog(home / "live.jsonl", load_redactor(None))
    with (
        swift_server(identities["receiver"]) as s3,
        receiving(log, tls=tls, http_address=("127.0.0.1", 0), grpc_address=None) as (port, _),
        upstream("small") as small,
        upstream("large") as large,
    ):
        s3.make_bucket(home, "spend")
        store = home / "spend.yaml"
        store.write_text(yaml.safe_dump({"registry": s3.settings(home, bucket="spend")}))
        (home / "s3.key").write_text(s3.secret_key)
        (home / "s3.key").chmod(0o600)
        sections = here.sections()
        sections["routing"]["routers"]["default"] = {
            "registry": {"home": "directory", "path": str(registry)}, "channel": "loop", "poll_interval_s": 0.2,
        }  # fmt: skip
        client = files["gateway"]
        with gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large)],
            litellm={
                "litellm_settings": {
                    "callbacks": ["otel", "s3_v2"],
                    "s3_callback_params": {
                        "s3_bucket_name": "spend", "s3_region_name": "us-east-1", "s3_path": "logs",
                        "s3_endpoint_url": f"https://{s3.endpoint}", "s3_verify": str(home / "registry-ca.pem"),
                        "s3_aws_access_key_id": s3.access_key, "s3_aws_secret_access_key": "os.environ/S3_SECRET",
                    },
                },
            },
            telemetry={
                "otlp_endpoint": f"https://127.0.0.1:{port}", "ca_file": str(client / "ca.pem"),
                "client_certificate": str(client / "gateway.pem"), "client_key": str(client / "gateway.key"),
            },
            secret_files={"S3_SECRET": home / "s3.key"},
            **sections,
        ) as running:  # fmt: skip
            yield running, f"https://127.0.0.1:{port}/v1/traces", client, store
    log.close()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests prefers these to the exporter's own argument
            patch.delenv(name, raising=False)
        yield patch


@pytest.fixture(scope="module")
def appliance(home):
    def run(*arguments, status=0):
        environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"], env=environment)
        assert done.exit_code == status, done.output
        return json.loads(done.stdout)

    return run


def traffic(running, judge):
    """Requests as users type them, each judged by what it asked and who answered."""
    generator = np.random.default_rng(5)
    for number in range(REQUESTS):
        kind = "hard" if generator.random() < 0.5 else "easy"
        answer = running.chat(f"{kind} {' '.join(generator.choice(WORDS[3:], 5))} {number}, says {SECRET}")
        assert answer.status_code == 200, answer.text
        answered = answer.headers["x-appliance-deployment"]
        with judge.start_as_current_span("judge") as span:
            span.set_attribute("litellm.call_id", answer.headers["x-litellm-call-id"])
            span.set_attribute("gen_ai.evaluation.score.value", WORTH[answered, kind])


def test_the_loop_closes(room, home, appliance, authority):
    running, endpoint, client, store = room
    exporter = OTLPSpanExporter(
        endpoint=endpoint, certificate_file=str(client / "ca.pem"), timeout=200,
        client_certificate_file=str(client / "gateway.pem"), client_key_file=str(client / "gateway.key"),
    )  # fmt: skip
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    traffic(running, provider.get_tracer("judge"))
    provider.shutdown()
    objects = open_store(store)
    running.wait_until(lambda: len(objects.list("logs/")) >= REQUESTS, what="LiteLLM has written its spend objects")
    outcomes = home / "outcomes.jsonl.gz"
    card = appliance(
        "train", "extract", "--traces", home / "live.jsonl", "--objects", store, "--prefix", "logs/", "--out", outcomes
    )  # fmt: skip
    assert (card["written"], card["joined"], card["dropped"]) == (REQUESTS, REQUESTS, {})
    check_outcomes([outcome for outcome, _ in read_outcomes(outcomes)])
    assert SECRET not in (home / "live.jsonl").read_text()

    encoder = ("--encoder", home / "zone" / "encoder")
    split = home / "split"
    appliance("train", "prepare", "--data", outcomes, "--out", split, "--test-share", 0.4, *encoder)
    train, test = split / "train.jsonl.gz", split / "test.jsonl.gz"
    fitted = appliance(
        "train", "fit", "--data", train, "--out", home / "router", "--strategy", "knn", "--name", "loop", *encoder
    )  # fmt: skip
    worth = appliance("train", "value", home / "router", "--data", test, *encoder)
    assert worth["intervals"]["dr"][0] > worth["logged_mean"]
    packaged = appliance("train", "package", home / "router", "--data", test, "--out", home / "packaged", *encoder)
    assert packaged["gate"]["passed"]

    assert running.chat("hard prove the theorem").headers["x-appliance-routing"].startswith("round-robin")
    admit(appliance, home, authority, encoder, fitted["version"])
    serving = running.wait_until(
        lambda: running.status()["routers"]["default"]["serving"], what="the new router serves"
    )
    assert serving["artifact"] == f"loop {fitted['version']}"
    for kind, expected in (("hard", "large"), ("easy", "small")):
        answer = running.chat(f"{kind} what is the capital of the theorem")
        assert answer.headers["x-appliance-deployment"] == expected
        span = running.wait_until(lambda a=answer: decision(home, a), what="the trace of the new choice")
        assert span["llm.routing.strategy"] == "ml:knn"
        assert span["router.model_selected"] == expected
        assert span["router.strategy_version"] == serving["digest"]


def check_outcomes(made):
    """Every call once, worth what the judge said of that very answer, without the secret that its prompt held."""
    for outcome in made:
        kind = outcome.query.split()[0]
        (model,) = outcome.scores
        assert outcome.scores[model] == WORTH[model, kind]
        assert outcome.propensity == 0.5
        assert outcome.latencies_ms[model] > 1
        assert outcome.costs == {model: 0.0}
        assert SECRET not in outcome.query
        assert "logs/" in outcome.lineage
        assert "live.jsonl:" in outcome.lineage
    assert {kind for outcome in made for kind in outcome.scores} == {"small", "large"}


def admit(appliance, home, authority, encoder, version):
    """The border: signed by the producer, examined, approved by two officers, promoted."""
    trust = ("--trust", home / "zone" / "trust")
    place = ("--registry", home / "registry", *trust)
    desk = ("--border", home / "border")
    appliance("artifact", "sign", home / "packaged", "--authority", authority.path, "--role", "producer")
    prompts = ("--prompts", home / "split" / "test.jsonl.gz")
    case = appliance("artifact", "admit", home / "packaged", *trust, *encoder, *prompts, *desk)["case"]
    for officer in ("import-officer@appliance.internal", "import-officer-2@appliance.internal"):
        signed = ("--authority", authority.path, "--identity", officer)
        appliance("artifact", "approve", case, *place, *desk, *signed)
    appliance("artifact", "promote", "loop", version, *place, "--authority", authority.path)


def decision(home, answer):
    """The attributes of the span on which the gateway recorded this answer's decision."""
    call_id = answer.headers["x-litellm-call-id"]
    for line in (home / "live.jsonl").read_text().splitlines():
        if call_id in line and "router.strategy_version" in line:
            span = json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
            return {item["key"]: next(iter(item["value"].values())) for item in span["attributes"]}
    return None
