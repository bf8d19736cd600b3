"""The extraction: sources into the join, the join into outcomes, with a card that says what happened to every row."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from appliance.errors import TrainingError
from appliance.files import sync_directory, translated, write_atomic
from appliance.registry.contract import Objects
from appliance.registry.postgres import PostgresSettings
from appliance.training.extract.calls import RESPONSE_ID, Call, Span, call_of, first, name_of
from appliance.training.extract.jaeger import JaegerSettings, from_jaeger
from appliance.training.extract.redaction import Redactor
from appliance.training.extract.reward import Rules, off_scale, reward
from appliance.training.extract.spend import entry_of, from_postgres, from_store
from appliance.training.extract.store import Entry, JoinStore, refusal
from appliance.training.extract.traces import REWRITTEN, UNFINISHED, read_spans
from appliance.training.outcomes import Outcome
from appliance.training.progress import Progress, silent

BATCH = 5000  # entries committed together

DROPPED = {
    "no_prompt": "neither trace nor spend log holds a prompt",
    "no_model": "it is not known which model answered",
    "no_reward": "neither judge nor user scored it (see the reward's rules)",
    "off_scale": "its score or feedback is not on the scale named (--judge-scale, --feedback-scale)",
    "no_outcome": "the model's name or a figure of it is longer or larger than an outcome may hold",
    "spend_only": "no trace knows the call, and the spend log holds no prompt",
}


@dataclass(frozen=True)
class Sources:
    """Where to read.

    Attributes:
        traces: files of spans.
        postgres: the database of the spend logs, or None.
        objects: a bucket or folder of spend objects with a prefix, or None.
        jaeger: a running Jaeger with the time now, or None.
    """

    traces: Sequence[Path] = ()
    postgres: PostgresSettings | None = None
    objects: tuple[Objects, str] | None = None
    jaeger: tuple[JaegerSettings, datetime] | None = None


def extract(
    sources: Sources,
    out: Path,
    *,
    redact: Redactor,
    rules: Rules | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Read every source, join by call id, and write outcomes with their card.

    Killed at any point it goes on where it stopped when run again; sources that have grown are read from where they
    ended. What is written is redacted, in the working file too.

    Args:
        sources: where to read.
        out: the outcomes, `.jsonl` or `.jsonl.gz`; `<out>.card.json` and the working file `<out>.join` stand beside it.
        redact: applied to every prompt before it is stored.
        rules: of the reward; its own defaults where None.
        progress: told of what was read.

    Returns:
        The card.

    Raises:
        TrainingError: TRAINING_TRACE, TRAINING_SOURCE.
        FileError: FILE_MISSING, FILE_NO_SPACE, FILE_PERMISSION.
    """
    with translated(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    working = out.with_name(f"{out.name}.join")
    store = JoinStore(working)
    unfinished: Counter[str] = Counter()
    try:
        for path in sources.traces:
            _load(store, f"trace:{path.resolve()}", _trace_entries(store, path, unfinished), redact, progress)
        if sources.jaeger is not None:
            jaeger, now = sources.jaeger
            place = f"trace:{jaeger.url}/{jaeger.service}"
            _load(store, place, _jaeger_entries(store, place, jaeger, now), redact, progress)
        if sources.postgres is not None:
            place = f"spend:{sources.postgres.host}/{sources.postgres.database}"
            _load(store, place, _postgres_entries(store, place, sources.postgres), redact, progress)
        if sources.objects is not None:
            home, prefix = sources.objects
            place = f"spend:{home.location}/{prefix}"
            _load(store, place, _object_entries(store, place, home, prefix), redact, progress)
        progress("joining traces and spend logs")
        store.settle()
        return _write(store, out, rules or Rules(), unfinished, progress)
    except sqlite3.Error as error:
        raise refusal(error, working) from None
    finally:
        store.close()


class Item(NamedTuple):
    """One thing read: how far that is, the entry it gave or None, what it counts as, and its name where it has one."""

    position: str
    entry: Entry | None
    counted: str
    part: str | None = None


def _load(store: JoinStore, source: str, items: Iterable[Item], redact: Redactor, progress: Progress) -> None:
    entries: list[Entry] = []
    counts: Counter[str] = Counter()
    parts: dict[str, None] = {}
    position, pending = "", 0
    for total, item in enumerate(items):
        if pending >= BATCH and item.position != position:  # a position is left whole
            store.add(entries, counts, source=source, position=position, parts=list(parts))
            entries, counts, parts, pending = [], Counter(), {}, 0
            progress(f"read {total} from {source}")
        position = item.position
        counts[item.counted] += 1
        pending += 1
        if item.part is not None:
            parts[item.part] = None
        if item.entry is not None:
            call, trace_id, response_id = item.entry
            safe = replace(call, prompt=redact(call.prompt), task=redact(call.task))
            entries.append((safe, trace_id, response_id))
    if pending:
        store.add(entries, counts, source=source, position=position, parts=list(parts))


def _trace_entries(store: JoinStore, path: Path, unfinished: Counter[str]) -> Iterator[Item]:
    name = name_of(path.name)
    for position, line, span in read_spans(path, after=store.position(f"trace:{path.resolve()}")):
        if span is UNFINISHED:  # not counted as read, nor as dropped: it is read when it is whole
            unfinished["trace_lines_unfinished"] += 1
        elif span is REWRITTEN:
            yield Item(position, None, "trace_files_read_anew")
        elif span is None:
            yield Item(position, None, "trace_lines_not_understood")
        else:
            yield _span_item(position, span, f"{name}:{line}")


def _jaeger_entries(store: JoinStore, place: str, settings: JaegerSettings, now: datetime) -> Iterator[Item]:
    for position, span in from_jaeger(settings, after=store.position(place), now=now):
        if span is None:
            yield Item(position, None, "windows_without_traces")
        else:
            yield _span_item(position, span, settings.url)


def _span_item(position: str, span: Span, lineage: str) -> Item:
    call = call_of(span, lineage)
    if call is None:
        return Item(position, None, "spans_without_a_call")
    entry = (call, span.trace_id or None, name_of(first(span.attributes, RESPONSE_ID)) or None)
    return Item(position, entry, "spans_read")


def _postgres_entries(store: JoinStore, place: str, settings: PostgresSettings) -> Iterator[Item]:
    rows = from_postgres(settings, after=store.position(place), known=functools.partial(store.read_before, place))
    for position, row in rows:
        name = str(row["request_id"])
        yield Item(position, entry_of(row, f"LiteLLM_SpendLogs:{name}"), "spend_rows_read", name)


def _object_entries(store: JoinStore, place: str, home: Objects, prefix: str) -> Iterator[Item]:
    for key, count, payload in from_store(home, prefix, known=functools.partial(store.read_before, place)):
        entry = None if payload is None else entry_of(payload, f"{name_of(key)}#{count}")
        counted = "spend_objects_read" if entry is not None else "spend_objects_not_understood"
        yield Item(name_of(key), entry, counted, key)


def _write(store: JoinStore, out: Path, rules: Rules, unfinished: Counter[str], progress: Progress) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    temporary = out.with_name(f".{out.name}.tmp")
    with translated(out):
        try:
            with temporary.open("wb") as raw, _compressed(raw, out) as stream:
                for trace, spend in store.joined():
                    outcome, fate = _outcome(trace, spend, rules)
                    counts[fate] += 1
                    if outcome is not None:
                        line = outcome.model_dump_json(exclude_defaults=True).encode() + b"\n"
                        digest.update(line)
                        stream.write(line)
            temporary.rename(out)
            sync_directory(out.parent)
        finally:
            temporary.unlink(missing_ok=True)
    joined = counts.pop("joined", 0)
    card: dict[str, Any] = {
        "outcomes": out.name,
        "sha256_uncompressed": digest.hexdigest(),
        "reward": {"basis": rules.basis, "judge_scale": str(rules.judge), "feedback_scale": str(rules.feedback)},
        "read": {**store.counts(), **unfinished},
        "written": counts.pop("written", 0) + joined,
        "joined": joined,
        "dropped": {name: {"calls": n, "because": DROPPED[name]} for name, n in sorted(counts.items())},
    }
    write_atomic(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=2).encode() + b"\n")
    progress(f"wrote {card['written']} outcomes to {out}")
    return card


@contextlib.contextmanager
def _compressed(raw: Any, out: Path) -> Iterator[Any]:
    if out.suffix != ".gz":
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
        yield stream


def _outcome(trace: Call | None, spend: Call | None, rules: Rules) -> tuple[Outcome | None, str]:
    """The outcome of one call, and its fate: `joined`, `written` (trace alone), or why it was dropped."""
    if trace is None:
        if spend is None or not spend.prompt:
            return None, "spend_only" if spend is not None else "no_prompt"
        call = spend
    else:
        call = trace if spend is None else replace(trace.merged(spend), failed=spend.failed)
    if not call.prompt:
        return None, "no_prompt"
    if not call.model:
        return None, "no_model"
    worth = reward(call, rules)
    if worth is None:
        return None, "off_scale" if off_scale(call, rules) else "no_reward"
    known_cost = {} if call.cost_usd is None or call.cost_usd < 0 else {call.model: call.cost_usd}
    known_latency = {} if call.latency_ms is None else {call.model: call.latency_ms}
    propensity = call.propensity if call.propensity is not None and 0 < call.propensity <= 1 else None
    try:
        outcome = Outcome(
            query=call.prompt,
            scores={call.model: worth},
            query_id=call.call_id,
            task=call.task or None,
            costs=known_cost,
            latencies_ms=known_latency,
            first_token_ms={} if call.first_token_ms is None else {call.model: call.first_token_ms},
            retries={call.model: call.retries} if call.retries else {},
            errors={call.model: 1.0} if call.failed else {},
            timestamp=_time(call.started),
            propensity=propensity,
            lineage=call.lineage,
        )
    except ValueError:
        return None, "no_outcome"
    return outcome, "joined" if trace is not None and spend is not None else "written"


def _time(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC) if seconds else None
    except (ValueError, OverflowError, OSError):  # a clock that tells a year nobody has
        return None


def check_sources(sources: Sources) -> None:
    """Refuse an extraction from nothing.

    Raises:
        TrainingError: TRAINING_ARGUMENT.
    """
    if not sources.traces and sources.jaeger is None and sources.postgres is None and sources.objects is None:
        raise TrainingError("TRAINING_ARGUMENT", "name a source: --traces, --jaeger, --postgres or --objects")
