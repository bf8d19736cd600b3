"""LiteLLM's spend logs: rows of `LiteLLM_SpendLogs`, and the objects its S3 logger writes."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.errors import RegistryError, TrainingError
from appliance.registry.contract import Objects
from appliance.registry.postgres import PostgresSettings
from appliance.training.extract.calls import MODEL, UNNAMED, Call, counted, name_of, number, prompt_of
from appliance.training.extract.store import Entry

BEGINNING = datetime(1, 1, 1)  # noqa: DTZ001 (the column has no zone)
LATE = timedelta(days=1)  # a row is written when its call ends, and in batches: behind rows that started after it
FETCH_ROWS = 2000  # rows a round trip of the server-side cursor
OTHER_MODEL_RANK = len(MODEL)  # the provider's name of the model, which several deployments may share
MAX_OBJECT_BYTES = 64 * 1024**2
OF_ONE_OBJECT = ("REGISTRY_NAME", "REGISTRY_TOO_LARGE")  # refusals that say nothing of the other objects
COLUMNS = (
    "request_id", "spend", "startTime", "endTime", "completionStartTime", "model", "model_id", "model_group",
    "metadata", "messages", "status", "call_type",
)  # fmt: skip


def from_postgres(
    settings: PostgresSettings, *, after: str | None, known: Callable[[str], bool]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows in the order of their start, through a server-side cursor: (position, row).

    What started up to a day before the position is looked at again, for rows that came late. A row from the future, of
    a gateway whose clock was wrong, is read and moves no position: all that comes until then would stay unread.

    Args:
        settings: of the database; TLS under our own authority.
        after: the position of the row read last, or None to begin.
        known: whether the row of a request id was read before.

    Raises:
        TrainingError: TRAINING_SOURCE.
    """
    import psycopg
    from psycopg import sql
    from psycopg.rows import dict_row

    from appliance.registry.postgres import connected

    since, last = json.loads(after) if after else (BEGINNING.isoformat(), "")
    reached = (datetime.fromisoformat(since), str(last))
    begin = max(reached[0], BEGINNING + LATE) - LATE
    query = sql.SQL(
        'SELECT {} FROM public."LiteLLM_SpendLogs" WHERE "startTime" >= %s ORDER BY "startTime", request_id'
    ).format(sql.SQL(", ").join(map(sql.Identifier, COLUMNS)))
    try:
        with connected(settings) as connection, connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute("SET LOCAL statement_timeout = 0")
            (clock,) = connection.execute("SELECT now() AT TIME ZONE 'UTC'").fetchone() or (reached[0],)
            with connection.cursor(name="spend", row_factory=dict_row) as cursor:
                cursor.itersize = FETCH_ROWS
                cursor.execute(query, (begin,))
                for row in cursor:
                    if after and known(row["request_id"]):
                        continue
                    if row["startTime"] <= clock:
                        reached = max(reached, (row["startTime"], row["request_id"]))
                    yield json.dumps([reached[0].isoformat(), reached[1]]), row
    except (psycopg.Error, RegistryError) as error:
        raise TrainingError("TRAINING_SOURCE", f"the spend logs cannot be read: {error}", host=settings.host) from None


def from_store(
    store: Objects, prefix: str, *, known: Callable[[str], bool]
) -> Iterator[tuple[str, int, Mapping[str, Any] | None]]:
    """Objects of a bucket or folder in the order of their keys: (key, number in it, payload); None for what is none.

    Keys begin with the time a call started, and objects are written when it ended: an order of keys is no order of
    arrival, so that every key not read yet is read.

    Raises:
        TrainingError: TRAINING_SOURCE.
    """
    try:
        for page in store.pages(prefix):
            for entry in page:
                folder = entry.key.endswith("/") and not entry.size_bytes  # consoles make them
                if folder or known(entry.key):
                    continue
                for count, payload in enumerate(_payloads(store, entry.key)):
                    yield entry.key, count, payload
    except RegistryError as error:
        raise TrainingError(
            "TRAINING_SOURCE", f"the spend objects cannot be read: {error}", place=store.location
        ) from None


def _payloads(store: Objects, key: str) -> Sequence[Mapping[str, Any] | None]:
    """What one object holds, [None] where that is nothing we know; nothing of one that went since it was listed."""
    try:
        blob = store.get(key, max_bytes=MAX_OBJECT_BYTES)
    except RegistryError as error:
        if error.code == "REGISTRY_NOT_FOUND":
            return []
        if error.code not in OF_ONE_OBJECT:
            raise
        return [None]
    return (list(_documents(blob.data)) if blob is not None else []) or [None]


def _documents(data: bytes) -> Iterator[Mapping[str, Any] | None]:
    if data[:2] == b"\x1f\x8b":
        try:
            data = _inflated(data)
        except (OSError, EOFError, zlib.error):
            return
    whole = _json(data)
    parts = [whole] if whole is not None else [_json(line) for line in data.splitlines() if line.strip()]
    for part in parts:
        for item in part if isinstance(part, list) else [part]:
            yield item if isinstance(item, Mapping) else None


def _inflated(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        inflated = stream.read(MAX_OBJECT_BYTES + 1)
    if len(inflated) > MAX_OBJECT_BYTES:
        raise gzip.BadGzipFile("larger than allowed")
    return inflated


def entry_of(row: Mapping[str, Any], lineage: str) -> Entry | None:
    """The call that a row or payload tells of, with its response id; None where it has no id."""
    metadata = _mapping(row.get("metadata"))
    response_id = name_of(row.get("request_id") or row.get("id"))
    call_id = name_of(row.get("litellm_call_id") or metadata.get("litellm_call_id") or response_id)
    if not call_id:
        return None
    started, ended = _seconds(row.get("startTime")), _seconds(row.get("endTime"))
    first_token = _seconds(row.get("completionStartTime"))
    hidden = _mapping(row.get("hidden_params"))
    deployment = name_of(row.get("model_id") or hidden.get("model_id"))
    model = name_of(row.get("model"))
    call = Call(
        call_id=call_id,
        source="spend",
        lineage=lineage,
        model=deployment or model,
        model_rank=0 if deployment else OTHER_MODEL_RANK if model else UNNAMED,
        model_at=ended or 0.0,
        prompt=prompt_of(row.get("messages")) if row.get("messages") not in (None, "", {}, "{}", "[]") else "",
        started=started or 0.0,
        latency_ms=(ended - started) * 1e3 if started is not None and ended is not None and ended >= started else None,
        first_token_ms=(first_token - started) * 1e3 if started and first_token and first_token >= started else None,
        cost_usd=number(row.get("spend", row.get("response_cost"))),
        failed=str(row.get("status") or "success") == "failure",
        retries=counted(metadata.get("attempted_retries")),
    )
    return call, None, response_id or None


def _mapping(value: Any) -> Mapping[str, Any]:
    parsed = _json(value) if isinstance(value, str | bytes) else value
    return parsed if isinstance(parsed, Mapping) else {}


def _json(data: str | bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _seconds(value: Any) -> float | None:
    """A time as seconds since 1970: a datetime, a number, or RFC 3339."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, str) and number(value) is None:
        try:
            return _seconds(datetime.fromisoformat(value))
        except ValueError:
            return None
    return number(value)
