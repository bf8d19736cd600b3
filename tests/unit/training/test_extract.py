"""From traces and spend logs to outcomes: every format, redaction before the disk, nothing counted twice."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.errors import FileError, RegistryError, TrainingError
from appliance.registry.directory import DirectoryStore
from appliance.registry.homes import open_objects
from appliance.training.cleaning import merge_copies
from appliance.training.extract.calls import Call, call_of, prompt_of
from appliance.training.extract.redaction import load_redactor
from appliance.training.extract.reward import Rules, Scale, reward
from appliance.training.extract.run import Sources, check_sources, extract
from appliance.training.extract.spend import entry_of
from appliance.training.extract.store import JoinStore
from appliance.training.extract.traces import jaeger_span, read_spans, spans_of
from appliance.training.outcomes import MAX_LINE_BYTES, read_outcomes

PARTS = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "What is entropy?"}]}])


def value(item):
    if isinstance(item, bool):
        return {"boolValue": item}
    if isinstance(item, int):
        return {"intValue": str(item)}
    return {"doubleValue": item} if isinstance(item, float) else {"stringValue": item}


def otlp(number, **attributes):
    span = {
        "traceId": f"{number:032x}", "spanId": f"{number:016x}", "startTimeUnixNano": str(10**18 + number),
        "endTimeUnixNano": str(10**18 + number + 250_000_000), "status": {"code": attributes.pop("status", 1)},
        "attributes": [{"key": key.replace("__", "."), "value": value(v)} for key, v in attributes.items()],
    }  # fmt: skip
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def call(number, model="m1", **more):
    named = {"litellm__call_id": f"call-{number}", "gen_ai__request__model": model, "gen_ai__input__messages": PARTS}
    return otlp(number, **{**named, **more})


def lines(path: Path, documents) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def run(tmp_path, documents, **options):
    traces = lines(tmp_path / "t.jsonl", documents)
    out = tmp_path / "o.jsonl"
    card = extract(Sources(traces=[traces]), out, redact=load_redactor(None), **options)
    return card, [outcome for outcome, _ in read_outcomes(out)] if out.stat().st_size else []


def test_a_judged_call_becomes_an_outcome_with_its_lineage(tmp_path):
    card, made = run(tmp_path, [call(1, judge__score=0.8, litellm__cost__total=0.002, router__propensity=0.5)])
    assert card["written"] == 1
    assert made[0].query == "What is entropy?"
    assert made[0].scores == {"m1": 0.8}
    assert made[0].costs == {"m1": 0.002}
    assert made[0].latencies_ms == {"m1": 250.0}
    assert made[0].propensity == 0.5
    assert made[0].lineage.startswith("t.jsonl:1#")


def test_what_a_trace_tells_of_a_calls_course_stands_beside_its_worth(tmp_path):
    slow = call(1, judge__score=1.0, gen_ai__response__time_to_first_chunk=0.12, router__retries=2)
    _, made = run(tmp_path, [slow, call(2, status=2)])
    told = {o.query_id: (o.scores, o.first_token_ms, o.retries, o.errors) for o in made}
    assert told == {
        "call-1": ({"m1": 1.0}, {"m1": 120.0}, {"m1": 2.0}, {}),
        "call-2": ({"m1": 0.0}, {}, {}, {"m1": 1.0}),
    }
    (merged,) = merge_copies(made)
    assert (merged.scores, merged.errors, merged.retries) == ({"m1": 0.5}, {"m1": 0.5}, {"m1": 1.0})


def test_every_drop_has_its_reason(tmp_path):
    documents = [
        call(1),
        otlp(2, litellm__call_id="call-2", gen_ai__request__model="m1"),
        otlp(3, litellm__call_id="call-3", gen_ai__input__messages=PARTS, judge__score=1.0),
        otlp(4, http__method="GET"),
        {"something": "else"},
    ]
    card, made = run(tmp_path, documents)
    assert made == []
    assert {name: fate["calls"] for name, fate in card["dropped"].items()} == {
        "no_model": 1,
        "no_prompt": 1,
        "no_reward": 1,
    }
    assert card["read"] == {"spans_read": 3, "spans_without_a_call": 1, "trace_lines_not_understood": 1}


def test_spans_of_one_call_each_give_their_part(tmp_path):
    documents = [
        otlp(7, router__model_selected="dep-1", router__propensity=0.25),
        otlp(7, litellm__call_id="call-7", gen_ai__input__messages=PARTS, judge__score=1.0),
    ]
    documents[0]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["spanId"] = "f" * 16
    _, made = run(tmp_path, documents)
    assert len(made) == 1
    assert made[0].scores == {"dep-1": 1.0}
    assert made[0].propensity == 0.25


def spans_of_one_call():
    """The gateway's decisions (the first deployment failed), LiteLLM's call, its authentication, a judge elsewhere."""
    made = {
        "first": otlp(5, llm__routing__selected_model="dep-1", router__call_id="c", router__propensity=0.25),
        "second": otlp(5, llm__routing__selected_model="dep-2", router__call_id="c", router__propensity=1.0),
        "failed": otlp(5, litellm__call_id="c", litellm__provider__model="openai/x", status=2),
        "answer": otlp(5, litellm__call_id="c", litellm__provider__model="openai/y", gen_ai__input__messages=PARTS),
        "auth": otlp(5, gen_ai__request__model="group"),
        "judge": otlp(6, litellm__call_id="c", judge__score=0.5, gen_ai__request__model="the-judge"),
    }  # fmt: skip
    for number, (name, lasted_ms) in enumerate(zip(made, (1, 1, 20, 30, 2, 9000), strict=True)):
        span = made[name]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        start = 10**18 + number * 10**9
        span.update(
            spanId=f"{number:016x}", startTimeUnixNano=str(start), endTimeUnixNano=str(start + lasted_ms * 10**6)
        )
    return list(made.values())


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (5, 0, 3, 1, 4, 2), (3, 5, 2, 4, 1, 0)])
def test_a_call_reads_alike_in_whatever_order_its_spans_arrive(tmp_path, order):
    spans = spans_of_one_call()
    card, made = run(tmp_path, [spans[number] for number in order])
    assert card["written"] == 1
    assert card["dropped"] == {}
    assert made[0].query == "What is entropy?"
    assert made[0].scores == {"dep-2": 0.5}
    assert made[0].propensity == 1.0
    assert made[0].latencies_ms == {"dep-2": 30.0}
    assert made[0].timestamp.timestamp() == 10**9


def test_a_span_that_came_twice_counts_once_and_a_clock_that_was_set_back_is_no_latency(tmp_path):
    document = call(1, judge__score=1.0)
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["endTimeUnixNano"] = str(10**18 - 10**12)
    _, made = run(tmp_path, [document, document])
    assert len(made) == 1
    assert made[0].lineage.count("#") == 1
    assert made[0].latencies_ms == {}


def test_a_failover_that_answered_is_no_failed_call(tmp_path):
    spans = spans_of_one_call()
    _, made = run(tmp_path, [spans[2], spans[1], spans[5], spans[3]])
    assert made[0].scores == {"dep-2": 0.5}
    (tmp_path / "o.jsonl.join").unlink()
    _, made = run(tmp_path, [spans[2], spans[5], otlp(5, litellm__call_id="c", gen_ai__input__messages=PARTS)])
    assert made[0].scores == {"openai/x": 0.0}


def test_a_working_file_of_another_release_is_refused_not_misread(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "join") as old:
        old.execute("CREATE TABLE calls (source, call_id, trace_id, response_id, document)")
    old.close()
    with pytest.raises(TrainingError) as refused:
        JoinStore(tmp_path / "join")
    assert refused.value.code == "TRAINING_SOURCE"


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.input.messages": PARTS},
        {"gen_ai.input.messages": [{"role": "user", "content": "What is entropy?"}]},
        {"gen_ai.prompt": "What is entropy?"},
        {"gen_ai.prompt.0.role": "system", "gen_ai.prompt.0.content": "Be brief.", "gen_ai.prompt.1.role": "user",
         "gen_ai.prompt.1.content": "What is entropy?"},
        {"llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "What is entropy?"},
        {"gen_ai.event.content": json.dumps({"role": "user", "content": "What is entropy?"})},
        {"llm.input_messages": '[{"role": "user", "content": [{"type": "text", "text": "What is entropy?"}]}]'},
        {"input.value": json.dumps({"messages": [{"role": "user", "content": "What is entropy?"}]})},
    ],
)  # fmt: skip
def test_messages_are_read_in_every_shape(attributes):
    document = {"traceID": "a", "spanID": "b", "startTime": 1, "duration": 2000}
    tags = [{"key": key, "value": item} for key, item in {**attributes, "gen_ai.system": "x"}.items()]
    found = call_of(jaeger_span({**document, "tags": tags}), "x")
    assert found.prompt == "What is entropy?"
    assert found.latency_ms == 2.0


@pytest.mark.parametrize("odd", [None, 3, [], {}, "[" * 5000, [None], '{"role": 1}', [{"role": "user", "parts": "x"}]])
def test_messages_of_no_known_shape_never_crash(odd):
    assert isinstance(prompt_of(odd), str)


def test_jaegers_answers_are_read_legacy_and_v3(tmp_path):
    legacy = {"data": [{"traceID": "t", "spans": [{"traceID": "t", "spanID": "s", "startTime": 5, "duration": 7,
        "tags": [{"key": "error", "value": True}, {"key": "gen_ai.request.model", "value": "m"}]}]}]}  # fmt: skip
    span = next(spans_of(legacy))
    assert (span.start_ns, span.end_ns, span.failed) == (5000, 12000, True)
    assert next(spans_of({"result": call(1)})).attributes["litellm.call_id"] == "call-1"
    path = tmp_path / "jaeger.json"
    path.write_text(json.dumps(legacy, indent=2))
    assert len(list(read_spans(path))) == 1


def test_a_file_without_any_trace_is_refused(tmp_path):
    with pytest.raises(TrainingError) as refused:
        run(tmp_path, [{"a": 1}, {"b": 2}])
    assert refused.value.code == "TRAINING_TRACE"


def test_an_extraction_from_nothing_is_refused():
    with pytest.raises(TrainingError) as refused:
        check_sources(Sources())
    assert refused.value.code == "TRAINING_ARGUMENT"


SECRETS = {
    "mail me at jane.doe@example.org": "jane.doe", "key sk-abcdefghijklmnop1234": "sk-abc", "host 10.1.2.3": "10.1.2.3",
    "Authorization: Bearer abcdefghijklmnopqrstu": "abcdefghijklmnopqrstu", "card 4111 1111 1111 1111": "4111",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----": "MIIE",
    "iban DE89 3704 0044 0532 0130 00": "3704",
    "-----BEGIN PRIVATE KEY-----\nMIIEcut off": "MIIE",
}  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_reaches_neither_the_outcomes_nor_the_working_file(tmp_path, text):
    messages = json.dumps([{"role": "user", "content": f"Why? {text}"}])
    document = otlp(
        1, litellm__call_id="c", gen_ai__request__model="m", gen_ai__input__messages=messages, judge__score=1.0
    )
    _, made = run(tmp_path, [document])
    assert made[0].query.startswith("Why?")
    for path in tmp_path.iterdir():
        if path.name != "t.jsonl":
            assert SECRETS[text].encode() not in path.read_bytes(), path.name


def test_a_sites_own_rules_apply_after_ours(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text('rules:\n  - {name: project, pattern: "(?i)project \\\\w+", replacement: "[\\\\1 project]"}\n')
    assert load_redactor(rules)("about Project Manhattan") == "about [\\1 project]"
    rules.write_text("defaults: false\nrules: []\n")
    assert load_redactor(rules)("a@b.de") == "a@b.de"


def test_a_rule_that_does_not_compile_is_refused(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text('rules:\n  - {name: broken, pattern: "(", replacement: ""}\n')
    with pytest.raises(TrainingError) as refused:
        load_redactor(rules)
    assert refused.value.code == "TRAINING_REDACTION"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-Abc123_def456-ghi789", "github_pat_11ABCDEFG0abcdefghij_klmno", "glpat-abcdefghij1234567890",
        "AIzaSyA-1234567890abcdefghijklmnopqrstuv", "AKIAIOSFODNN7EXAMPLE", "Authorization: Basic dXNlcjpwYXNz",
        "hunter2hunter2", "pa$$w0rd", "2001:db8:85a3::8a2e:370:7334", "fe80::1ff:fe23:4567:890a",
        "1:22:333:4444:5:6:7:8", "DE89 3704 0044 0532 0130 00", "4111-1111-1111-1111", "10.1.2.3", "jane@example.org",
    ],
)  # fmt: skip
def test_what_is_secret_is_redacted_and_what_stands_around_it_stays(secret):
    assert load_redactor(None)(f"Why is it, my password is {secret} then") in {
        f"Why is it, my {name} then"
        for name in ("[password]", *(f"password is [{kind}]" for kind in (
            "key", "login", "address", "iban", "number", "e-mail",
        )))
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "def login(password: str, secret=None):", "password = input('x')", "the password is weak", "pwd=${PWD}",
        "a[::2] and a[1::2] of std::vector, x :: Int", "at 12:30:45 on 2026-11-30", "skateboarders like sk-learn",
    ],
)  # fmt: skip
def test_talk_and_code_are_no_secrets(text):
    assert load_redactor(None)(text) == text


def test_the_reward_is_what_its_rules_say():
    def worth(rules=None, **known):
        return reward(Call("c", "trace", "l", **known), rules or Rules())

    assert worth(failed=True, judge=1.0) == 0.0
    assert worth(judge=0.8) == 0.8
    assert worth(feedback=-1.0) == 0.0
    assert worth(judge=1.0, feedback=-1.0) == 0.75
    assert worth() is None
    assert worth(Rules("success")) == 1.0
    stars = Rules(judge=Scale.parsed("1..5"), feedback=Scale.parsed("5..1"))
    assert [worth(stars, judge=mark) for mark in (1.0, 2.0, 5.0)] == [0.0, 0.25, 1.0]
    assert worth(stars, feedback=5.0) == 0.0
    assert worth(stars, judge=0.5) is None


def test_a_mark_off_its_scale_is_dropped_and_counted_and_never_guessed(tmp_path):
    marks = [0.5, 1.0, 4.0, 7.5]
    card, made = run(tmp_path, [call(n, judge__score=mark) for n, mark in enumerate(marks)])
    assert [outcome.scores["m1"] for outcome in made] == [0.5, 1.0]
    assert card["dropped"]["off_scale"]["calls"] == 2
    assert card["reward"] == {"basis": "quality", "judge_scale": "0..1", "feedback_scale": "-1..1"}


@pytest.mark.parametrize("text", ["5", "1..", "a..b", "1..1", "0..inf", "nan..1"])
def test_a_scale_that_is_none_is_refused(text):
    with pytest.raises(TrainingError) as refused:
        Scale.parsed(text)
    assert refused.value.code == "TRAINING_ARGUMENT"


@pytest.mark.parametrize(
    "text",
    [
        "s\u200bk-abcdefghijklmnop1234567890", "bob@exa\u00admple.com", "user\uff20example.com",
        "4111\u20111111\u20111111\u20111111", "\uff14" + "\uff11" * 15, "db://joe:hunter2@db/x",
        "4111\u00a01111\u00a01111\u00a01111",
    ],
)  # fmt: skip
def test_what_a_reader_sees_is_redacted_whatever_characters_it_is_written_in(text):
    redacted = load_redactor(None)(f"d\u00e9j\u00e0 vu \u200b {text} na\u00efve")
    assert redacted.startswith("d\u00e9j\u00e0 vu \u200b ")
    assert redacted.endswith(" na\u00efve")
    assert text not in redacted
    assert "[" in redacted


def test_a_line_that_somebody_is_still_writing_is_read_when_it_is_whole(tmp_path):
    traces = lines(tmp_path / "t.jsonl", [call(n, judge__score=1.0) for n in range(3)])
    whole = traces.read_bytes()
    traces.write_bytes(whole[:-200])
    sources, out = Sources(traces=[traces]), tmp_path / "o.jsonl"
    card = extract(sources, out, redact=load_redactor(None))
    assert card["read"] == {"spans_read": 2, "trace_lines_unfinished": 1}
    traces.write_bytes(whole)
    card = extract(sources, out, redact=load_redactor(None))
    assert card["read"] == {"spans_read": 3}
    assert card["written"] == 3


def test_what_stands_before_the_first_trace_is_counted_too(tmp_path):
    traces = lines(tmp_path / "t.jsonl", [call(1, judge__score=1.0)])
    traces.write_text('{"resourceSpans": [{"sco\nnonsense\n' + traces.read_text())
    assert [(number, span is None) for _, number, span in read_spans(traces)] == [(3, True), (3, True), (3, False)]


def test_a_pretty_document_of_many_lines_takes_no_longer_a_line_than_a_short_one(tmp_path):
    spans = call(1, judge__score=1.0)["resourceSpans"]
    path = tmp_path / "t.json"
    path.write_text(
        "{\n" + "\n" * 10 + '"padding": [\n' + "0,\n" * 60_000 + '0],\n"resourceSpans": ' + json.dumps(spans) + "}\n"
    )
    started = time.process_time()
    assert sum(1 for _ in read_spans(path)) == 1
    assert time.process_time() - started < 5


def test_a_document_on_one_line_may_be_longer_than_an_outcome(tmp_path):
    document = call(1, judge__score=1.0)
    path = lines(tmp_path / "t.json", [{"padding": "x" * MAX_LINE_BYTES, **document}])
    assert sum(1 for _ in read_spans(path)) == 1


def test_a_clock_that_is_wrong_costs_the_time_and_not_the_outcome(tmp_path):
    documents = [call(1, judge__score=1.0)]
    span = documents[0]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["startTimeUnixNano"] = str(10**23)
    _, made = run(tmp_path, documents)
    assert (made[0].timestamp, made[0].latencies_ms) == (None, {})
    entry = entry_of({"id": "r", "startTime": 20.0, "endTime": 10.0, "model": "m"}, "k")
    assert entry is not None
    assert entry[0].latency_ms is None


def test_a_grown_file_is_read_from_where_it_ended_and_nothing_counts_twice(tmp_path):
    first, _ = run(tmp_path, [call(n, judge__score=1.0) for n in range(5)])
    again, _ = run(tmp_path, [call(n, judge__score=1.0) for n in range(5)])
    assert first == again
    grown, made = run(tmp_path, [call(n, judge__score=1.0) for n in range(8)])
    assert grown["read"] == {"spans_read": 8}
    assert len(made) == 8


def test_a_batch_and_how_far_it_went_are_stored_together(tmp_path):
    from collections import Counter

    store = JoinStore(tmp_path / "join")
    entry = (Call("c", "trace", "l:1"), None, None)
    with pytest.raises(TypeError):
        store.add([entry, (Call("d", "trace", object()), None, None)], Counter(spans_read=2), source="s", position="9")
    assert store.position("s") is None
    assert list(store.joined()) == []
    store.add([entry], Counter(spans_read=1), source="s", position="1")
    assert store.position("s") == "1"
    store.close()


def test_a_working_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "join").write_bytes(b"not a database, by far not a database at all" * 99)
    with pytest.raises(TrainingError) as refused:
        JoinStore(tmp_path / "join")
    assert refused.value.code == "TRAINING_SOURCE"


SPEND = {
    "id": "chatcmpl-9", "litellm_call_id": "call-9", "response_cost": 0.01, "startTime": 100.0, "endTime": 101.5,
    "completionStartTime": 100.2, "model": "gpt", "model_id": "dep-9", "status": "success",
    "metadata": {"attempted_retries": 1}, "messages": [{"role": "user", "content": "Why is the sky blue?"}],
}  # fmt: skip


def test_spend_objects_join_by_call_id_and_by_response_id(tmp_path):
    bucket = tmp_path / "spend" / "2026"
    bucket.mkdir(parents=True)
    (bucket / "a.json").write_text(json.dumps(SPEND))
    by_response = {**SPEND, "id": "chatcmpl-8", "litellm_call_id": None}
    (bucket / "b.json.gz").write_bytes(gzip.compress(json.dumps(by_response).encode()))
    (bucket / "c.json").write_text("no json")
    traces = lines(tmp_path / "t.jsonl", [
        otlp(9, litellm__call_id="call-9", gen_ai__input__messages=PARTS, judge__score=0.5),
        otlp(8, litellm__call_id="call-8", gen_ai__response__id="chatcmpl-8", judge__score=1.0),
    ])  # fmt: skip
    store = DirectoryStore(tmp_path / "spend")
    out = tmp_path / "o.jsonl.gz"
    card = extract(Sources([traces], None, (store, "2026/")), out, redact=load_redactor(None))
    made = {outcome.query_id: outcome for outcome, _ in read_outcomes(out)}
    assert card["joined"] == 2
    assert card["read"]["spend_objects_read"] == 2
    assert card["read"]["spend_objects_not_understood"] == 1
    assert made["call-9"].query == "What is entropy?"
    assert made["call-9"].costs == {"dep-9": 0.01}
    assert made["call-8"].query == "Why is the sky blue?"


def test_a_spend_row_without_any_id_is_no_call():
    assert entry_of({"spend": 1}, "x") is None
    row, _, response = entry_of(
        {**SPEND, "metadata": json.dumps({"attempted_retries": 2}), "startTime": "2026-01-01T00:00:00"}, "x"
    )
    assert response == "chatcmpl-9"
    assert row.retries == 2


def edited(document, **fields):
    document["resourceSpans"][0]["scopeSpans"][0]["spans"][0].update(fields)
    return document


HUGE = {"intValue": "1" + "0" * 400}
HOSTILE = {
    "half a character in the call id": call(1, judge__score=1.0, litellm__call_id="x\ud800"),
    "half a character in the trace id": edited(call(1, judge__score=1.0), traceId="\udfff"),
    "half a character in the response id": call(1, judge__score=1.0, gen_ai__response__id="\udfff"),
    "half a character in the task": call(1, judge__score=1.0, task="\ud800"),
    "a start beyond every clock": edited(call(1, judge__score=1.0), startTimeUnixNano="1" + "0" * 400),
    "an end beyond every clock": edited(call(1, judge__score=1.0), endTimeUnixNano="1" + "0" * 400),
    "a start of no kind": edited(call(1, judge__score=1.0), startTimeUnixNano=["1"]),
    "a retry count beyond every number": edited(
        call(1), attributes=[*call(1, judge__score=1.0)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"],
                             {"key": "router.retries", "value": HUGE}]),
    "a role that is no word": call(1, judge__score=1.0, gen_ai__input__messages=json.dumps(
        [{"role": "user", "content": "What is entropy?"}, {"role": {}, "content": "x"}, {"role": ["user"]}])),
    "a thousand brackets for a task": call(1, judge__score=1.0, task="[" * 1000),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_span_costs_at_most_itself(tmp_path, name):
    card, made = run(tmp_path, [HOSTILE[name], call(2, judge__score=0.5)])
    assert card["written"] == 2
    assert {outcome.query for outcome in made} == {"What is entropy?"}
    assert all(0 < latency < 1e6 for outcome in made for latency in outcome.latencies_ms.values())


@pytest.mark.parametrize("ids", [{"litellm__call_id": ["c"]}, {"litellm__call_id": "c" * 10_000}, {}])
def test_what_is_no_id_is_none_and_spans_without_any_are_no_call(tmp_path, ids):
    named = {key: item for key, item in ids.items() if isinstance(item, str)}
    spans = [
        otlp(n, gen_ai__request__model="m", gen_ai__input__messages=PARTS, judge__score=1.0, **named) for n in (1, 2)
    ]
    card, _ = run(tmp_path, [edited(span, traceId="") for span in spans])
    assert card["read"] == {"spans_without_a_call": 2}


def test_a_call_id_cannot_pass_for_a_trace(tmp_path):
    victim = call(1, judge__score=1.0)
    forged = otlp(2, litellm__call_id=f"trace:{1:032x}", judge__score=0.0)
    _, made = run(tmp_path, [victim, forged])
    assert [outcome.scores for outcome in made] == [{"m1": 1.0}]


def test_one_call_id_sent_for_ever_fills_neither_memory_nor_disk(tmp_path):
    _, made = run(tmp_path, [edited(call(1, judge__score=1.0), spanId=f"{n:016x}") for n in range(6_000)])
    assert len(made) == 1
    assert len(made[0].lineage) < 4000


def test_a_verdict_finds_its_answer_by_response_id_unless_several_bear_it(tmp_path):
    verdict = otlp(9, gen_ai__response__id="chatcmpl-1", gen_ai__evaluation__score__value=0.25)
    _, made = run(tmp_path, [verdict, call(1, gen_ai__response__id="chatcmpl-1")])
    assert [outcome.scores for outcome in made] == [{"m1": 0.25}]
    (tmp_path / "o.jsonl.join").unlink()
    card, made = run(tmp_path, [verdict, *(call(n, gen_ai__response__id="chatcmpl-1") for n in (1, 2))])
    assert made == []
    assert card["dropped"]["no_reward"]["calls"] == 2


@pytest.mark.parametrize("form", ["one line", "pretty", "shorter", "longer"])
def test_a_file_that_was_written_anew_under_its_name_is_read_anew(tmp_path, form):
    path, out = tmp_path / "t.json", tmp_path / "o.jsonl"

    def write(numbers):
        if form in ("one line", "pretty"):
            spans = [call(n, judge__score=1.0)["resourceSpans"][0] for n in numbers]
            path.write_text(json.dumps({"resourceSpans": spans}, indent=2 if form == "pretty" else None) + "\n")
        else:
            lines(path, [call(n, judge__score=1.0) for n in numbers])

    write(range(3))
    extract(Sources(traces=[path]), out, redact=load_redactor(None))
    write({"shorter": range(3, 5), "longer": range(3, 9)}.get(form, range(5)))
    card = extract(Sources(traces=[path]), out, redact=load_redactor(None))
    assert card["read"]["trace_files_read_anew"] == 1
    assert card["written"] == {"longer": 9}.get(form, 5)
    assert all(outcome.lineage.count("#") == 1 for outcome, _ in read_outcomes(out))
    assert extract(Sources(traces=[path]), out, redact=load_redactor(None)) == card


def test_a_spend_object_that_comes_late_is_read_though_its_key_is_older(tmp_path):
    bucket, out = tmp_path / "spend", tmp_path / "o.jsonl"
    bucket.mkdir()
    sources = Sources(objects=(DirectoryStore(bucket), ""))
    for name in ("time-09-00", "time-08-00"):  # the call of eight o'clock took longer than an hour
        (bucket / f"{name}.json").write_text(json.dumps({**SPEND, "id": name, "litellm_call_id": name}))
        card = extract(sources, out, redact=load_redactor(None), rules=Rules("success"))
    assert card["written"] == card["read"]["spend_objects_read"] == 2


def test_spend_objects_of_any_name_are_read(tmp_path):
    bucket, out = tmp_path / "spend", tmp_path / "o.jsonl"
    (bucket / "My Team").mkdir(parents=True)
    for name in (b"My Team/x y.json", b"bad\xff.json", b"a\nb.json", b"a.json"):
        (bucket / os.fsdecode(name)).write_text(json.dumps({**SPEND, "litellm_call_id": name.hex()}))
    sources = Sources(objects=(open_objects(bucket), ""))
    for _ in range(2):
        card = extract(sources, out, redact=load_redactor(None), rules=Rules("success"))
        assert card["read"] == {"spend_objects_read": 4}
    assert card["written"] == 4


class Going(DirectoryStore):
    """A bucket whose objects run out of time, or are too large, once they have been listed."""

    def get(self, key, *, max_bytes, unless=None):
        if key == "gone.json":
            raise RegistryError("REGISTRY_NOT_FOUND", "it is not there", key=key)
        return super().get(key, max_bytes=10 if key == "large.json" else max_bytes, unless=unless)


def test_an_object_that_went_or_is_too_large_costs_itself(tmp_path):
    bucket = tmp_path / "spend"
    bucket.mkdir()
    for name in ("gone", "large", "one"):
        (bucket / f"{name}.json").write_text(json.dumps(SPEND))
    sources = Sources(objects=(Going(bucket), ""))
    card = extract(sources, tmp_path / "o.jsonl", redact=load_redactor(None), rules=Rules("success"))
    assert card["read"] == {"spend_objects_not_understood": 1, "spend_objects_read": 1}


def test_an_object_of_several_gzip_members_is_read_whole_and_half_of_one_is_not_understood(tmp_path):
    bucket = tmp_path / "spend"
    bucket.mkdir()
    rows = [json.dumps({**SPEND, "id": f"c{n}", "litellm_call_id": f"c{n}"}).encode() + b"\n" for n in range(3)]
    (bucket / "a.gz").write_bytes(b"".join(map(gzip.compress, rows)))
    (bucket / "b.gz").write_bytes(gzip.compress(rows[0])[:-9])
    sources = Sources(objects=(open_objects(bucket), ""))
    card = extract(sources, tmp_path / "o.jsonl", redact=load_redactor(None), rules=Rules("success"))
    assert card["read"] == {"spend_objects_not_understood": 1, "spend_objects_read": 3}


def test_spend_objects_of_one_response_make_no_outcome_twice(tmp_path):
    bucket = tmp_path / "spend"
    bucket.mkdir()
    for name in ("a", "b", "c"):
        (bucket / f"{name}.json").write_text(json.dumps({**SPEND, "litellm_call_id": f"other-{name}"}))
    traces = lines(tmp_path / "t.jsonl", [
        otlp(9, litellm__call_id="call-9", gen_ai__response__id="chatcmpl-9", judge__score=0.5),
    ])  # fmt: skip
    card = extract(
        Sources([traces], None, (DirectoryStore(bucket), "")), tmp_path / "o.jsonl", redact=load_redactor(None)
    )
    assert (card["written"], card["joined"]) == (1, 1)
    assert card["dropped"]["no_reward"]["calls"] == 2


def test_two_extractions_into_one_file_are_refused_not_counted_twice(tmp_path):
    lines(tmp_path / "t.jsonl", [call(1, judge__score=1.0)])
    busy = JoinStore(tmp_path / "o.jsonl.join", wait_s=0)
    with pytest.raises(FileError) as refused:
        JoinStore(tmp_path / "o.jsonl.join", wait_s=0)
    assert refused.value.code == "FILE_LOCKED"
    busy.close()
    card, _ = run(tmp_path, [call(1, judge__score=1.0)])
    assert card["written"] == 1


ON_A_FULL_DISK = """
import sys, subprocess
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from appliance.errors import FileError
from tests.unit.training.test_extract import Sources, call, extract, lines, load_redactor
home, root = Path(sys.argv[1]), Path(sys.argv[1]) / "small"
root.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", root], check=True)
sources = Sources(traces=[lines(home / "t.jsonl", [call(n, judge__score=1.0) for n in range(6000)])])
try:
    extract(sources, root / "o.jsonl", redact=load_redactor(None))
except FileError as error:
    print(error.code, (root / "o.jsonl").exists())
subprocess.run(["mount", "-o", "remount,size=64m", root], check=True)
card = extract(sources, root / "o.jsonl", redact=load_redactor(None))
print(card["read"], card["written"])
"""


def test_on_a_full_disk_an_extraction_is_refused_and_goes_on_when_there_is_room(tmp_path):
    command = ["unshare", "-rm", sys.executable, "-c", ON_A_FULL_DISK, tmp_path, Path(__file__).parents[3]]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("FILE_NO_SPACE False\n{'spans_read': 6000} 6000\n", "")
