"""One call to a model, as a trace or a spend log tells of it; and how it is read from a span's attributes.

Names: OpenTelemetry's `gen_ai.*` as of 2025 and the older ones before them, LiteLLM's `litellm.*`, and the gateway's
own `router.*` and `llm.routing.*`. The first name of a list that is there counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.routers.prompt import prompt_text

CALL_ID = ("litellm.call_id", "litellm_call_id", "metadata.litellm_call_id", "router.call_id")
MODEL = (
    "llm.routing.selected_model",
    "router.model_selected",
    "litellm.provider.model",
    "gen_ai.response.model",
    "gen_ai.request.model",
    "llm.model_name",
)
MESSAGES = ("gen_ai.input.messages", "gen_ai.prompt", "llm.input_messages", "gen_ai.event.content", "input.value")
# messages spread over numbered keys: OpenLLMetry and older LiteLLM, OpenInference
NUMBERED = re.compile(r"(?:gen_ai\.prompt|llm\.input_messages)\.(\d{1,5})\.(?:message\.)?(role|content)")
COST = ("litellm.cost.total", "gen_ai.cost.total_cost", "gen_ai.usage.cost", "llm.cost.total")
FIRST_TOKEN_S = ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")
JUDGE = ("judge.score", "gen_ai.evaluation.score.value", "gen_ai.evaluation.score")
FEEDBACK = ("feedback.score", "user.feedback.score", "gen_ai.user.feedback")
PROPENSITY = ("router.propensity",)
RETRIES = ("router.retries", "litellm.retries", "http.request.resend_count")
TASK = ("router.task", "task")
RESPONSE_ID = ("gen_ai.response.id",)
ERROR = ("error.type",)
NAMED_ALONE = "trace:"  # begins the id of a call that is known by its trace alone
BETWEEN = " + "  # what stands between the places of a lineage
MOST_ORIGINS = 32  # places that a lineage names; whoever sends one call id for ever fills no disk with it
LONGEST_NAME = 512  # characters of an id or a name; what is longer is none

FILLED = ("prompt", "first_token_ms", "cost_usd", "judge", "feedback", "task")
UNNAMED = 99  # rank of a call that names no model
OF_A_VERDICT = 50  # added to the rank of a model that a judge's span names: it may be the judge's own


@dataclass(frozen=True)
class Call:
    """What is known of one call.

    Attributes:
        call_id: LiteLLM's call id; joins traces and spend logs.
        source: `trace` or `spend`.
        lineage: where it was read: file and line, table and key, trace and span id.
        model: deployment or model that answered.
        model_rank: how it is known, the lower the better: 0 is the spend log's deployment, then the order of `MODEL`.
        model_at: when it was chosen, seconds since 1970; of several choices (a failover) the last one answered.
        prompt: cleaned text of the human's last turn, or the empty string.
        started: seconds since 1970.
        latency_ms, first_token_ms, cost_usd, judge, feedback, propensity: None where unknown.
        failed: whether the call ended in an error.
        retries: attempts beyond the first.
        task: task name, or the empty string.
        judged: whether a judge or a user speaks here; what else such a span says of the call counts last.
    """

    call_id: str
    source: str
    lineage: str
    model: str = ""
    model_rank: int = UNNAMED
    model_at: float = 0.0
    prompt: str = ""
    started: float = 0.0
    latency_ms: float | None = None
    first_token_ms: float | None = None
    cost_usd: float | None = None
    judge: float | None = None
    feedback: float | None = None
    propensity: float | None = None
    failed: bool = False
    retries: int = 0
    task: str = ""
    judged: bool = False

    def origins(self) -> Iterator[str]:
        """What it was read from: a span's own ids, which stay whatever file it stands in, or a spend log's place."""
        for place in self.lineage.split(BETWEEN):
            ids = place.rpartition("#")[2]
            yield ids if self.source == "trace" and ids != "/" else place

    def merged(self, other: Call) -> Call:
        """Both accounts of one call, in whatever order they came: a judge's own words about the call count last."""
        swapped = self.source == other.source and self.judged and not other.judged
        main, rest = (other, self) if swapped else (self, other)
        known = {name: _either(getattr(main, name), getattr(rest, name)) for name in FILLED}
        namer = min(main, rest, key=lambda call: (call.model_rank, -call.model_at))
        decided = [call for call in (main, rest) if call.propensity is not None]
        latencies = [call.latency_ms for call in (main, rest) if call.latency_ms is not None]
        return Call(
            call_id=self.call_id,
            source=self.source,
            lineage=BETWEEN.join([*self.lineage.split(BETWEEN), *other.lineage.split(BETWEEN)][:MOST_ORIGINS]),
            model=namer.model,
            model_rank=namer.model_rank,
            model_at=namer.model_at,
            started=min((call.started for call in (main, rest) if call.started), default=0.0),
            latency_ms=max(latencies, default=None),  # the request as its user saw it, not one attempt within
            propensity=max(decided, key=lambda call: call.model_at).propensity if decided else None,
            failed=_failed(main, rest),
            retries=max(main.retries, rest.retries),
            judged=main.judged and rest.judged,
            **known,
        )


def _either(value: Any, other: Any) -> Any:
    return other if value in (None, "") else value


def _failed(main: Call, rest: Call) -> bool:
    """A failed attempt that another one answered after it is no failed call."""
    if max(main.model_rank, rest.model_rank) < OF_A_VERDICT:
        return max(main, rest, key=lambda call: call.model_at).failed
    return main.failed or rest.failed


@dataclass(frozen=True)
class Span:
    """A span of any format, as far as it matters here.

    Attributes:
        trace_id, span_id: hex.
        start_ns, end_ns: nanoseconds since 1970.
        attributes: plain values.
        failed: status code ERROR.
    """

    trace_id: str
    span_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    failed: bool = False


def call_of(span: Span, lineage: str) -> Call | None:
    """The call that a span tells of, or None where it tells of none.

    Several spans of one call (the proxy's request and the route to the model) each give their part; they join by
    call id, and by trace id where the span carries none.
    """
    values = span.attributes
    speaks = any(name.startswith(("gen_ai.", "llm.", "router.")) for name in values)
    call_id = name_of(first(values, CALL_ID))
    if not call_id or call_id.startswith(NAMED_ALONE):
        call_id = f"{NAMED_ALONE}{span.trace_id}" if speaks and span.trace_id else ""
    if not call_id:
        return None
    judge, feedback = number(first(values, JUDGE)), number(first(values, FEEDBACK))
    first_token_s = number(first(values, FIRST_TOKEN_S))
    model = next((name for name in MODEL if name_of(values.get(name))), None)
    prompt = prompt_of(first(values, MESSAGES), values)
    judged = judge is not None or feedback is not None
    verdict = judged and not prompt  # about the call; one that carries the prompt too is the call itself, rated
    started = span.start_ns / 1e9
    known_times = 0 < span.start_ns <= span.end_ns  # else a clock was set, or nobody told one: that is no latency
    return Call(
        call_id=call_id,
        source="trace",
        lineage=f"{lineage}#{span.trace_id}/{span.span_id}",
        model=name_of(values[model]) if model else "",
        model_rank=UNNAMED if model is None else 1 + MODEL.index(model) + (OF_A_VERDICT if judged else 0),
        model_at=started if model else 0.0,
        prompt=prompt,
        started=0.0 if verdict else started,
        latency_ms=(span.end_ns - span.start_ns) / 1e6 if known_times and not verdict else None,
        first_token_ms=None if first_token_s is None or first_token_s < 0 else first_token_s * 1e3,
        cost_usd=None if verdict else number(first(values, COST)),
        judge=judge,
        feedback=feedback,
        propensity=number(first(values, PROPENSITY)),
        failed=not verdict and (span.failed or first(values, ERROR) is not None),
        retries=counted(first(values, RETRIES)),
        task=name_of(first(values, TASK)),
        judged=judged,
    )


def prompt_of(value: Any, values: Mapping[str, Any] | None = None) -> str:
    """The human's last turn out of messages in any of their shapes: a list, a JSON string, indexed keys, plain text."""
    if value is None and values is not None:
        value = _indexed(values)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return prompt_text([{"role": "user", "content": value}])
    if isinstance(value, Mapping):
        value = value.get("messages", [value])
    if isinstance(value, str | int | float):
        return prompt_text([{"role": "user", "content": str(value)}])
    if not isinstance(value, Sequence):
        return ""
    return prompt_text([_message(item) for item in value if isinstance(item, Mapping)])


def _message(item: Mapping[str, Any]) -> dict[str, Any]:
    """A message in the chat shape; OpenTelemetry's carries `parts` with `content`, ours `content` with `text`."""
    if "content" in item or "parts" not in item:
        return dict(item)
    parts = item["parts"] if isinstance(item["parts"], Sequence) else []
    texts = [
        {"type": "text", "text": part.get("content") or part.get("text")}
        for part in parts
        if isinstance(part, Mapping) and part.get("type", "text") == "text"
    ]
    return {"role": item.get("role"), "content": texts}


def _indexed(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages spread over numbered keys, one for the role and one for the content of each."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        if numbered := NUMBERED.fullmatch(name):
            found.setdefault(int(numbered[1]), {})[numbered[2]] = value
    return [found[index] for index in sorted(found)]


def first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first name that has one."""
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if abs(result) < 1e15 else None


def counted(value: Any) -> int:
    """A count that is not below zero; 0 where there is none."""
    return max(0, int(number(value) or 0))


def name_of(value: Any) -> str:
    """An id or a name, or the empty string for what is none: no text, or longer than any name.

    Half a surrogate pair is legal in JSON and no character: nothing could store it.
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= LONGEST_NAME else ""
