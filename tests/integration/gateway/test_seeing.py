# ruff: noqa: E501 (tables and small programs read better in one line)
"""A decision is on the trace that leaves the process, in the metrics, in the record, and can be asked for."""

import json
import re

import pytest

from tests.support.gateway import deployment, gateway
from tests.support.otlp import receiver
from tests.support.routing import zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = {"a": "openai/small", "b": "openai/large"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module", params=["v1", "v2"])
def traced(request, tmp_path_factory, authority):
    home = tmp_path_factory.mktemp("traced")
    here = zone(home / "zone", authority, labels=LABELS)
    here.put()
    with (
        receiver() as traces,
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large)],
            litellm={"litellm_settings": {"callbacks": ["otel"]}},
            telemetry={"otlp_endpoint": traces.url, "otel_v2": request.param == "v2"},
            **here.sections(),
        ) as running,
    ):
        yield running, traces, here


def test_the_attributes_of_the_design_are_on_the_exported_trace(traced):
    running, traces, here = traced
    request_id = running.chat("hard prove the confidential theorem").headers["x-appliance-request-id"]
    spans = running.wait_until(
        lambda: [s for s in traces.with_attribute("router.request_id") if s.attributes["router.request_id"] == request_id],
        what="the span",
    )  # fmt: skip
    found = spans[0].attributes
    assert found["llm.routing.selected_model"] == found["router.model_selected"] == "large"
    assert found["llm.routing.strategy"] == found["router.strategy"] == "ml:knn"
    assert found["llm.routing.latency_ms"] == found["router.latency_ms"] > 0
    assert found["router.decision_outcome"] == "success"
    assert found["router.decision_reason"] == "best_score"
    assert found["router.candidates_evaluated"] == 2
    assert found["router.propensity"] == 1.0
    assert found["router.call_id"]
    assert found["router.fallback_triggered"] is False
    assert found["router.strategy_version"] == here.artifact().digest
    assert found["router.score"] == pytest.approx(0.9, abs=0.05)
    running.wait_until(
        lambda: [s for s in traces.spans if s.trace_id == spans[0].trace_id and "gen_ai.request.model" in s.attributes]
    )


def test_exporting_traces_is_no_unknown_destination(traced):
    running, _, _ = traced
    assert running.status()["egress_refused"] == 0


def test_metrics_count_decisions_and_speak_the_text_format(traced):
    running, _, _ = traced
    running.chat("easy the")
    text = running.client.get("/appliance/metrics").text
    for line in text.splitlines():
        assert re.fullmatch(
            r'# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [-+0-9.eE]+', line
        ), line
    assert re.search(
        r'appliance_decisions_total\{group="chat",outcome="success",reason="best_score",strategy="ml:knn"\} [1-9]', text
    )
    assert re.search(r'appliance_decision_latency_ms_count\{group="chat"\} [1-9]', text)
    assert 'appliance_requests_total{status="2xx"}' in text
    assert "appliance_egress_refused_total 0" in text


def test_why_shows_the_nearest_prompts_of_the_training_data_with_their_outcomes(traced):
    running, _, _ = traced
    request_id = running.chat("easy the").headers["x-appliance-request-id"]
    answer = running.client.get("/appliance/why", params={"request_id": request_id}).json()
    decision = answer["decisions"][0]
    assert decision["selected"] == "small"
    nearest = decision["neighbours"][0]
    assert nearest["cosine"] > 0.9
    assert nearest["outcomes"] == pytest.approx({"a": 1.0, "b": 0.2})
    assert running.client.get("/appliance/why", params={"request_id": "unknown"}).status_code == 404
    assert running.client.get("/appliance/why").status_code == 400


def test_why_and_replay_answer_the_operator_without_a_key(traced, tmp_path):
    running, _, here = traced
    request_id = running.chat("hard prove it").headers["x-appliance-request-id"]
    config = ("--config", str(running.config))
    text = running.command("why", request_id, *config).stdout
    assert "group chat: large by ml:knn, best_score" in text
    assert "candidate large: score 0.9000 as b" in text
    assert "of the training data, cosine" in text
    (tmp_path / "record.json").write_text(running.command("why", request_id, *config, "--json").stdout)
    (tmp_path / "body.json").write_text(json.dumps({"messages": [{"role": "user", "content": "hard prove it"}]}))
    anew = ("--router", str(here.router_directory), "--prompt", str(tmp_path / "body.json"), *config)
    made = running.command("replay", str(tmp_path / "record.json"), *anew, "--json")
    assert made.returncode == 0, made.stdout + made.stderr
    assert [(one["same"], one["furthest"]) for one in json.loads(made.stdout)] == [(True, 0.0)]
    record = json.loads((tmp_path / "record.json").read_text())
    record["decisions"][0]["selected"] = "small"
    (tmp_path / "forged.json").write_text(json.dumps(record))
    assert "GATEWAY_REPLAY" in running.command("replay", str(tmp_path / "forged.json")).stderr
    assert "GATEWAY_FORGOTTEN" in running.command("why", "nobody", *config).stderr


def test_logs_are_json_lines_and_hold_no_prompt(traced):
    running, _, _ = traced
    running.chat("hard confidential words")
    for body in ({"model": "nonsense-group"}, {"temperature": "confidential"}, {"tools": "confidential"}):
        running.client.post(
            "/v1/chat/completions",
            json={"model": "chat", "messages": [{"role": "user", "content": "confidential words"}], **body},
        )
    text = running.log.read_text()
    assert "confidential" not in text
    for line in text.splitlines():
        if not line.startswith(("\x1b", "LiteLLM: Proxy initialized")):
            assert {"at", "level", "logger", "message"} <= json.loads(line).keys()
    assert running.key not in text
