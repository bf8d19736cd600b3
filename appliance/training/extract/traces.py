"""Traces from files: OTLP-JSON (one export request a line, or one document) and Jaeger's query JSON, legacy and v3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.errors import TrainingError
from appliance.training.extract.calls import Span, name_of
from appliance.training.outcomes import read_lines

ERROR_STATUS = (2, "STATUS_CODE_ERROR")
MAX_DOCUMENT_BYTES = 512 * 1024**2  # a Jaeger answer is one document, mostly on one line
UNFINISHED = Span("", "", 0, 0)  # stands for a last line that somebody is still writing
REWRITTEN = Span("", "", 0, 0)  # stands for the beginning of a file that is not what was read before


def read_spans(path: Path, *, after: str | None = None) -> Iterator[tuple[str, int, Span | None]]:
    """Spans of a trace file: (position, line, span); None for a line that is no trace.

    A position names the line and digests everything up to it, so that a file that was rotated, cut or written anew
    under the same name is noticed: `REWRITTEN` comes first then, and the file is read from its beginning.
    `UNFINISHED` stands for a last line without its end, behind others that are whole.

    Args:
        path: `.json`, `.jsonl`, either gzipped.
        after: the position that was read before, or None.

    Raises:
        TrainingError: TRAINING_TRACE where nothing of the file is a trace.
        FileError: where it cannot be read.
    """
    skipped, _, before = (after or "").partition(":")
    skip, alike = int(skipped or 0), not after
    digest = hashlib.sha256()
    understood = False
    number = unread = 0
    position = ""
    whole = bytearray()  # perhaps one document over many lines
    for number, line in read_lines(path, max_bytes=MAX_DOCUMENT_BYTES):
        if number > skip and not alike:
            break
        digest.update(line.rstrip(b"\r\n"))
        if number <= skip:
            understood = True
            alike = number == skip and digest.hexdigest() == before
            continue
        position = f"{number}:{digest.hexdigest()}"
        found: list[Span | None] = list(spans_of(_parsed(line)))
        if not found and not understood:
            whole += line
            unread += 1
            if len(whole) > MAX_DOCUMENT_BYTES:
                break
            continue
        understood = True
        # where this is no document over many lines, those before are no traces
        yield from ((position, number, None) for _ in range(unread))
        unread = 0
        yield from ((position, number, span) for span in found or [None if line.endswith(b"\n") else UNFINISHED])
    if not alike:
        yield "", 0, REWRITTEN
        yield from read_spans(path)
    elif number and not understood:
        spans = list(spans_of(_parsed(bytes(whole))))
        if not spans:
            raise TrainingError("TRAINING_TRACE", f"{path.name} holds no spans of a known format", lines=number)
        yield from ((position, number, span) for span in spans)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def spans_of(document: Any) -> Iterator[Span]:
    """Spans of one parsed document of any of the formats."""
    if not isinstance(document, Mapping):
        return
    if isinstance(document.get("result"), Mapping):  # Jaeger's v3 API wraps OTLP
        document = document["result"]
    for resource in _maps(document.get("resourceSpans")):
        for scope in _maps(resource.get("scopeSpans") or resource.get("instrumentationLibrarySpans")):
            for span in _maps(scope.get("spans")):
                yield otlp_span(span)
    for trace in _maps(document.get("data")):
        for span in _maps(trace.get("spans")):
            yield jaeger_span(span)


def otlp_span(span: Mapping[str, Any]) -> Span:
    """One span of OTLP-JSON: ids hex, 64-bit integers as strings, enumerations as numbers."""
    status = span.get("status") if isinstance(span.get("status"), Mapping) else {}
    attributes = {str(item.get("key")): _value(item.get("value")) for item in _maps(span.get("attributes"))}
    for event in _maps(span.get("events")):  # older instrumentations put the messages into events
        for item in _maps(event.get("attributes")):
            attributes.setdefault(str(item.get("key")), _value(item.get("value")))
    return Span(
        name_of(span.get("traceId")),
        name_of(span.get("spanId")),
        _nanoseconds(_integer(span.get("startTimeUnixNano"))),
        _nanoseconds(_integer(span.get("endTimeUnixNano"))),
        attributes,
        status.get("code") in ERROR_STATUS if status else False,
    )


def jaeger_span(span: Mapping[str, Any]) -> Span:
    """One span of Jaeger's legacy JSON: microseconds, tags, logs."""
    attributes = {str(tag.get("key")): tag.get("value") for tag in _maps(span.get("tags"))}
    for log in _maps(span.get("logs")):
        for item in _maps(log.get("fields")):
            attributes.setdefault(str(item.get("key")), item.get("value"))
    start_us, duration_us = _integer(span.get("startTime")), _integer(span.get("duration"))
    failed = attributes.get("error") in (True, "true") or attributes.get("otel.status_code") == "ERROR"
    return Span(
        name_of(span.get("traceID")),
        name_of(span.get("spanID")),
        _nanoseconds(start_us * 1000),
        _nanoseconds((start_us + duration_us) * 1000),
        attributes,
        failed,
    )


def _value(value: Any) -> Any:
    """An AnyValue of OTLP-JSON as a plain value."""
    if not isinstance(value, Mapping):
        return None
    if "intValue" in value:
        return _integer(value["intValue"])
    for name in ("stringValue", "doubleValue", "boolValue", "bytesValue"):
        if name in value:
            return value[name]
    if isinstance(value.get("arrayValue"), Mapping):
        return [_value(item) for item in _maps(value["arrayValue"].get("values"))]
    if isinstance(value.get("kvlistValue"), Mapping):
        return {str(item.get("key")): _value(item.get("value")) for item in _maps(value["kvlistValue"].get("values"))}
    return None


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _nanoseconds(value: int) -> int:
    """A time of OTLP, 64 bits without a sign; 0, its word for an unknown one, where it is none."""
    return value if 0 <= value < 1 << 64 else 0


def _integer(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
