"""Spend logs out of a real PostgreSQL: server-side cursor, joined to traces, resumed."""

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from appliance.errors import TrainingError
from appliance.registry.postgres import parameters
from appliance.training.extract.redaction import load_redactor
from appliance.training.extract.run import Sources, extract
from appliance.training.outcomes import read_outcomes
from tests.unit.training.test_extract import PARTS, lines, otlp

# columns and types as LiteLLM's schema.prisma gives them
TABLE = """CREATE TABLE IF NOT EXISTS public."LiteLLM_SpendLogs" (
  request_id TEXT PRIMARY KEY, call_type TEXT, api_key TEXT DEFAULT '', spend DOUBLE PRECISION DEFAULT 0,
  "startTime" TIMESTAMP(3), "endTime" TIMESTAMP(3), "completionStartTime" TIMESTAMP(3), model TEXT DEFAULT '',
  model_id TEXT DEFAULT '', model_group TEXT DEFAULT '', metadata JSONB DEFAULT '{}', messages JSONB DEFAULT '{}',
  response JSONB DEFAULT '{}', status TEXT)"""
START = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)


@pytest.fixture
def table(database, tmp_path):
    settings = database.settings(tmp_path)
    with psycopg.connect(**parameters(settings), autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute('TRUNCATE public."LiteLLM_SpendLogs"')
        yield settings, connection


def insert(connection, numbers):
    statement = (
        'INSERT INTO public."LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", "endTime", model, '
        "model_id, metadata, messages, status) "
        "VALUES (%s, 'acompletion', %s, %s, %s, 'gpt', 'dep-1', %s, %s, 'success')"
    )
    rows = []
    for number in numbers:
        started = START + timedelta(seconds=number)
        metadata = Jsonb({"litellm_call_id": f"call-{number}"})
        rows.append(
            (f"chatcmpl-{number}", 0.001 * number, started, started + timedelta(seconds=2), metadata, Jsonb({}))
        )
    with connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def test_rows_join_their_traces_and_a_second_run_reads_only_what_is_new(table, tmp_path):
    settings, connection = table
    insert(connection, range(1, 3001))
    spans = [
        otlp(n, litellm__call_id=f"call-{n}", gen_ai__input__messages=PARTS, judge__score=1.0) for n in range(1, 11)
    ]
    traces = lines(tmp_path / "t.jsonl", spans)
    out = tmp_path / "o.jsonl"
    sources = Sources(traces=[traces], postgres=settings)
    card = extract(sources, out, redact=load_redactor(None))
    assert card["read"] == {"spans_read": 10, "spend_rows_read": 3000}
    assert card["joined"] == 10
    assert card["dropped"]["spend_only"]["calls"] == 2990
    made = {outcome.query_id: outcome for outcome, _ in read_outcomes(out)}
    assert made["call-7"].costs == {"dep-1": pytest.approx(0.007)}
    insert(connection, range(3001, 3006))
    again = extract(sources, out, redact=load_redactor(None))
    assert again["read"]["spend_rows_read"] == 3005
    assert json.loads((tmp_path / "o.jsonl.card.json").read_text()) == again


def test_a_row_that_is_written_behind_later_ones_is_read_by_the_next_run(table, tmp_path):
    settings, connection = table
    out = tmp_path / "o.jsonl"
    seen = []
    for numbers in ([1, 2, 4000], [3, 3999], [], [4001]):  # calls 3 and 3999 began before 4000 and took longer
        insert(connection, numbers)
        card = extract(Sources(postgres=settings), out, redact=load_redactor(None))
        seen.append(card["read"]["spend_rows_read"])
    assert seen == [3, 5, 5, 6]
    assert card["dropped"]["spend_only"]["calls"] == 6


def test_a_row_from_the_future_hides_none_of_what_comes_until_then(table, tmp_path):
    settings, connection = table
    out = tmp_path / "o.jsonl"
    ahead = int((datetime.now(UTC).replace(tzinfo=None) - START).total_seconds()) + 90 * 86_400
    seen = []
    for numbers in ([1, ahead], [2 * 86_400], [], [4 * 86_400]):
        insert(connection, numbers)
        card = extract(Sources(postgres=settings), out, redact=load_redactor(None))
        seen.append(card["read"]["spend_rows_read"])
    assert seen == [2, 3, 3, 4]
    assert card["dropped"]["spend_only"]["calls"] == 4


def test_a_database_that_does_not_answer_is_named_and_what_was_read_stays(table, tmp_path):
    settings, _ = table
    gone = settings.model_copy(update={"port": 1})
    with pytest.raises(TrainingError) as refused:
        extract(Sources(postgres=gone), tmp_path / "o.jsonl", redact=load_redactor(None))
    assert refused.value.code == "TRAINING_SOURCE"
    assert not (tmp_path / "o.jsonl").exists()
