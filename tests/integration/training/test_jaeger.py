"""A running Jaeger as a source: both versions of its API, over mutual TLS, windows halved until nothing is cut off."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from appliance.errors import TrainingError
from appliance.training.extract import jaeger as source
from appliance.training.extract.jaeger import JaegerSettings, read_jaeger
from appliance.training.extract.redaction import load_redactor
from appliance.training.extract.run import Sources, extract
from appliance.training.outcomes import read_outcomes
from tests.support.faulty_tls import faulty_server
from tests.support.jaeger import Trace, jaeger

START = datetime(2026, 11, 1, tzinfo=UTC)
NOW = START + timedelta(hours=6)
PROMPT = json.dumps([{"role": "user", "content": "Why is the sky blue, jane@example.org?"}])


def trace(number: int, at: datetime) -> Trace:
    attributes = {
        "litellm.call_id": f"call-{number}", "gen_ai.request.model": "m1", "gen_ai.input.messages": PROMPT,
        "judge.score": 1.0,
    }  # fmt: skip
    return Trace(f"{number + 1:032x}", int(at.timestamp() * 1e6) + 5000 * number, attributes)


@pytest.fixture
def running(authority, tmp_path):
    # a rush of 40 within a second, and a few through the hours
    traces = [trace(n, START + timedelta(minutes=90)) for n in range(40)]
    traces += [trace(100 + n, START + timedelta(minutes=30 * n)) for n in range(10)]
    server = authority.issue("127.0.0.1").write(tmp_path, "jaeger")
    client = authority.issue("training", client=True).write(tmp_path, "client")
    with jaeger(traces, *server) as running:
        yield running, client


def settings(running, client, **more) -> JaegerSettings:
    certificate, key, ca = client
    fields = {
        "url": f"https://127.0.0.1:{running.port}", "service": "litellm", "ca_file": ca, "since": START,
        "client_certificate": certificate, "client_key": key, "traces_per_window": 8, **more,
    }  # fmt: skip
    return JaegerSettings(**fields)


def run(tmp_path, chosen, now=NOW):
    out = tmp_path / "o.jsonl"
    card = extract(Sources(jaeger=(chosen, now)), out, redact=load_redactor(None))
    return card, {outcome.query_id: outcome for outcome, _ in read_outcomes(out)}


@pytest.mark.parametrize("api", ["v3", "legacy"])
def test_every_trace_is_read_though_an_answer_is_cut_at_the_limit(running, tmp_path, api):
    server, client = running
    card, made = run(tmp_path, settings(server, client, api=api))
    assert card["written"] == len(made) == 50
    assert made["call-7"].query == "Why is the sky blue, [e-mail]?"
    assert made["call-7"].latencies_ms == {"m1": 1.5}
    assert made["call-7"].lineage.startswith(f"https://127.0.0.1:{server.port}#")


def test_a_second_run_asks_only_for_what_came_since(running, tmp_path):
    server, client = running
    run(tmp_path, settings(server, client))
    server.asked.clear()
    server.traces.append(trace(200, NOW + timedelta(minutes=3)))
    card, made = run(tmp_path, settings(server, client), now=NOW + timedelta(minutes=10))
    assert "call-200" in made
    assert card["written"] == 51
    asked = parse_qs(urlsplit(server.asked[0]).query)["query.start_time_min"][0]
    assert datetime.fromisoformat(asked) == NOW - timedelta(seconds=60)


@pytest.mark.parametrize("api", ["v3", "legacy"])
def test_a_clock_that_is_days_ahead_hides_nothing_that_comes_once_it_is_right(running, tmp_path, api):
    server, client = running
    server.clock = NOW
    card, _ = run(tmp_path, settings(server, client, api=api), now=NOW + timedelta(days=3))
    assert card["written"] == 50
    server.traces.append(trace(200, NOW + timedelta(minutes=3)))
    server.clock = NOW + timedelta(minutes=10)
    card, made = run(tmp_path, settings(server, client, api=api), now=NOW + timedelta(minutes=10))
    assert "call-200" in made
    assert card["written"] == 51


def test_a_clock_before_what_was_read_is_named(running, tmp_path):
    server, client = running
    for now in (datetime(1970, 1, 1, tzinfo=UTC), START - timedelta(seconds=1)):
        with pytest.raises(TrainingError) as refused:
            run(tmp_path, settings(server, client), now=now)
        assert refused.value.code == "TRAINING_SOURCE"
        assert refused.value.evidence["read_until"].startswith("2026-11-01T00:00:00")
    run(tmp_path, settings(server, client))
    with pytest.raises(TrainingError):
        run(tmp_path, settings(server, client), now=NOW - timedelta(hours=1))
    server.clock = datetime(1970, 1, 1, tzinfo=UTC)
    with pytest.raises(TrainingError) as refused:
        run(tmp_path, settings(server, client), now=NOW + timedelta(hours=1))
    assert refused.value.evidence["clock"].startswith("1970-01-01T00:00:00")
    server.clock = None
    assert run(tmp_path, settings(server, client), now=NOW - timedelta(seconds=30))[0]["written"] == 50


def test_more_at_one_moment_than_is_asked_for_is_refused_not_lost(running, tmp_path):
    server, client = running
    server.traces[:] = [trace(0, START) for _ in range(9)]
    server.traces[:] = [Trace(f"{n:032x}", t.start_us, t.attributes) for n, t in enumerate(server.traces)]
    with pytest.raises(TrainingError) as refused:
        run(tmp_path, settings(server, client))
    assert refused.value.code == "TRAINING_SOURCE"
    assert refused.value.evidence["traces_per_window"] == 8


NO_ANSWERS = {
    "storage": (500, b'{"error": {"message": "storage"}}'),
    "half a document": (200, b'{"result": {"resou'),
    "nothing": (200, b""),
    "a login page": (200, b"<html>"),
    "an empty object": (200, b"{}"),
    "other types": (200, b'{"result": {"resourceSpans": {}}, "data": "x"}'),
    "a half line behind a whole one": (200, b'{"result": {"resourceSpans": []}}\n{"result": {"resou'),
    "an error behind a whole line": (200, b'{"result": {"resourceSpans": []}}\n{"error": {"message": "storage"}}'),
    "a proxy's 404": (404, b"<html>not found</html>"),
    "another path's 404": (404, b"404 page not found\n"),
}


@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_an_answer_that_is_none_is_named_and_what_was_read_stays(running, tmp_path, answer):
    server, client = running
    run(tmp_path, settings(server, client))
    server.answer = answer
    with pytest.raises(TrainingError) as refused:
        run(tmp_path, settings(server, client), now=NOW + timedelta(hours=1))
    assert refused.value.code == "TRAINING_SOURCE"
    server.answer = None
    card, _ = run(tmp_path, settings(server, client), now=NOW + timedelta(hours=1))
    assert card["written"] == 50


def test_an_answer_that_drips_meets_the_deadline_though_what_came_is_whole(authority, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "DEADLINE_S", 0.5)

    def drip(connection, _request):
        connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"result": {"resourceSpans": []}}\n')
        with contextlib.suppress(OSError):
            connection.recv(1)  # until the other side gives up

    with faulty_server(authority.issue("127.0.0.1"), drip) as server:
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        chosen = JaegerSettings(
            url=f"https://{server.endpoint}", service="litellm", ca_file=tmp_path / "ca.pem", since=START
        )
        with pytest.raises(TrainingError) as refused:
            run(tmp_path, chosen)
    assert refused.value.code == "TRAINING_SOURCE"
    assert "0.5 s" in refused.value.cause


def test_without_our_certificate_jaeger_cannot_be_read(running, tmp_path):
    server, client = running
    with pytest.raises(TrainingError) as refused:
        run(tmp_path, settings(server, client, client_certificate=None, client_key=None))
    assert refused.value.code == "TRAINING_SOURCE"


def test_the_settings_file_is_read_strictly(tmp_path):
    from appliance.errors import DocumentError

    path = tmp_path / "jaeger.yaml"
    document = {"url": "https://jaeger:16686", "service": "litellm", "ca_file": "ca.pem", "since": "2026-11-01T00:00Z"}
    path.write_text(yaml.safe_dump({"jaeger": document}))
    assert read_jaeger(path).api == "v3"
    path.write_text(yaml.safe_dump({"jaeger": {**document, "url": "http://jaeger:16686"}}))
    with pytest.raises(DocumentError):
        read_jaeger(path)
