"""Traces from a running Jaeger, through its query API: version 3 (OTLP-JSON) or the legacy one its page uses.

Neither has pages, so that time is the page: a window that is answered with as many traces as were asked for is halved
until it is answered whole. How far was read is the end of the last window; what may still be on its way there is left
for the next run. A clock that is wrong must not carry that into the future, where nothing would be read until it comes:
the time is the earlier one of ours and Jaeger's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import urllib3
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import RegistryError, TrainingError
from appliance.files import read_regular
from appliance.registry.tls import client_context
from appliance.registry.transport import Deadline, HttpsPool
from appliance.training.extract.calls import Span
from appliance.training.extract.traces import spans_of

MAX_ANSWER_BYTES = 512 * 1024**2
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
DEADLINE_S = 600.0  # of one answer
NONE_FOUND = ("no traces found", "trace not found")  # what version 3 says with status 404 (apiv3/http_gateway.go)


class JaegerSettings(BaseModel):
    """Where Jaeger is.

    Attributes:
        url: of the query service, https, with its base path if it has one.
        api: `v3` or `legacy`.
        service: whose traces, as LiteLLM calls itself there.
        ca_file: the internal CA's certificates, PEM; nothing else is trusted.
        client_certificate, client_key: for mutual TLS, PEM.
        since: traces that started before are not read.
        window_s: length of the first window.
        traces_per_window: how many to ask for; Jaeger's own limit must not be lower.
        settle_s: traces younger than that are left for the next run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(pattern=r"^https://[^\s/?#@]+(/[^\s?#]*)?$")]
    api: Literal["v3", "legacy"] = "v3"
    service: Annotated[str, Field(min_length=1, max_length=256)]
    ca_file: Path
    client_certificate: Path | None = None
    client_key: Path | None = None
    since: AwareDatetime
    window_s: Annotated[float, Field(ge=1, le=7 * 86_400)] = 3600.0
    traces_per_window: Annotated[int, Field(ge=2, le=100_000)] = 1000
    settle_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    jaeger: JaegerSettings


def read_jaeger(path: Path) -> JaegerSettings:
    """Read a YAML file with one key, `jaeger`.

    Raises:
        DocumentError, FileError: as `documents` and `files` say.
    """
    data = read_regular(path, max_bytes=documents.MAX_BYTES)
    return documents.validate(_File, documents.read_yaml(data, what=path.name), what=path.name).jaeger


@dataclass(frozen=True)
class Window:
    """A stretch of time, microseconds since 1970; traces that start within."""

    start_us: int
    end_us: int


def from_jaeger(settings: JaegerSettings, *, after: str | None, now: datetime) -> Iterator[tuple[str, Span | None]]:
    """Spans window by window: (position, span); None for a window without any.

    Args:
        settings: where and what.
        after: the position reached before, or None to begin at `since`.
        now: the time.

    Raises:
        TrainingError: TRAINING_SOURCE, naming what Jaeger answered.
        RegistryError: REGISTRY_TLS_SETUP where a certificate is missing.
    """
    pool = HttpsPool(
        client_context(
            settings.ca_file, client_certificate=settings.client_certificate, client_key=settings.client_key
        ),
        pins=frozenset(),
        connect_timeout_s=CONNECT_TIMEOUT_S,
        read_timeout_s=READ_TIMEOUT_S,
    )
    start = int(after) if after else int(settings.since.timestamp() * 1e6)
    _reached(start, now.timestamp(), "this host's")
    last = int((now.timestamp() - settings.settle_s) * 1e6)
    width = int(settings.window_s * 1e6)
    while start < last:
        window = Window(start, min(start + width, last))
        spans, traces, told = _ask(pool, settings, window)
        if told is not None:
            _reached(start, told, "Jaeger's")
            last = min(last, int((told - settings.settle_s) * 1e6))
        if window.end_us > last:
            continue
        if traces >= settings.traces_per_window:
            width = (window.end_us - window.start_us) // 2
            if not width:
                raise TrainingError(
                    "TRAINING_SOURCE", "Jaeger holds more traces of one microsecond than are asked for",
                    traces_per_window=settings.traces_per_window, at_us=start,
                )  # fmt: skip
            continue
        if not spans:
            yield str(window.end_us), None
        for span in spans:
            yield str(window.end_us), span
        start = window.end_us
        if traces < settings.traces_per_window // 4:
            width = min(width * 2, int(settings.window_s * 1e6))


def _reached(start_us: int, now: float, whose: str) -> None:
    if start_us > now * 1e6:
        raise TrainingError(
            "TRAINING_SOURCE", f"traces are to be read from a time that {whose} clock has not reached",
            clock=_rfc3339(int(now * 1e6)), read_until=_rfc3339(start_us),
        )  # fmt: skip


def _ask(pool: HttpsPool, settings: JaegerSettings, window: Window) -> tuple[list[Span], int, float | None]:
    """The spans of a window, of how many traces they are, and what time Jaeger says it is, seconds since 1970."""
    url = f"{settings.url.rstrip('/')}{_question(settings, window)}"
    try:
        with Deadline(DEADLINE_S) as deadline:
            response = pool.urlopen("GET", url, headers={"Accept": "application/json"}, preload_content=False)
            # what is no answer was read by the pool already, within its bound
            data = response.read(MAX_ANSWER_BYTES + 1) if response.status == 200 else response.data
            response.release_conn()
    except (urllib3.exceptions.HTTPError, RegistryError, OSError) as error:
        raise TrainingError("TRAINING_SOURCE", f"Jaeger cannot be read: {error}", url=settings.url) from None
    if deadline.expired:  # the end of the connection was ours, whatever came until then
        raise TrainingError("TRAINING_SOURCE", f"Jaeger did not finish within {DEADLINE_S:g} s", url=settings.url)
    if len(data) > MAX_ANSWER_BYTES:
        raise TrainingError("TRAINING_SOURCE", "Jaeger's answer is larger than allowed", max_bytes=MAX_ANSWER_BYTES)
    if response.status == 404 and settings.api == "v3" and _none_found(_parsed(data)):
        return [], 0, _date(response.headers)
    found = _documents(data)
    if response.status != 200 or not found:
        cause = f"Jaeger answered {response.status}"
        if response.status == 200:
            cause = "what Jaeger answered is not traces, or not all of them"
        raise TrainingError("TRAINING_SOURCE", cause, url=url, answer=data[:200].decode(errors="replace"))
    spans = [span for document in found for span in spans_of(document)]
    return spans, len({span.trace_id for span in spans}), _date(response.headers)


def _date(headers: Mapping[str, str]) -> float | None:
    try:
        return parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _question(settings: JaegerSettings, window: Window) -> str:
    if settings.api == "legacy":  # both ends belong to the window there
        asked: dict[str, Any] = {
            "service": settings.service,
            "start": window.start_us,
            "end": window.end_us - 1,
            "limit": settings.traces_per_window,
        }
        return f"/api/traces?{urlencode(asked)}"
    asked = {
        "query.service_name": settings.service,
        "query.start_time_min": _rfc3339(window.start_us),
        "query.start_time_max": _rfc3339(window.end_us),
        "query.num_traces": settings.traces_per_window,
        "query.search_depth": settings.traces_per_window,  # its name since Jaeger 2
    }
    return f"/api/v3/traces?{urlencode(asked)}"


def _rfc3339(time_us: int) -> str:
    seconds, rest = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"


def _documents(data: bytes) -> Sequence[Mapping[str, Any]]:
    """One document, or a stream of them one a line, as version 3 may answer; nothing where any is half, or an error.

    What is believed to hold no traces is never asked for again, so that nothing else may pass for it.
    """
    parts = [data] if _parsed(data) is not None else [line for line in data.splitlines() if line.strip()]
    found = [_parsed(part) for part in parts]
    return found if all(map(_is_answer, found)) else []


def _is_answer(document: Any) -> bool:
    if not isinstance(document, Mapping) or document.get("error") or document.get("errors"):
        return False
    if "data" in document:  # the legacy API
        return document["data"] is None or isinstance(document["data"], list)
    result = document.get("result", document)
    return isinstance(result, Mapping) and isinstance(result.get("resourceSpans", result is document or []), list)


def _none_found(document: Any) -> bool:
    """Whether a 404 is version 3's own, and not that of a proxy or of another path."""
    error = document.get("error") if isinstance(document, Mapping) else None
    return isinstance(error, Mapping) and str(error.get("message")).lower() in NONE_FOUND


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
