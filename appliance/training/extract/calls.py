"""One call to a model, as a trace or a spend log tells of it; and how it is read from a span's attributes.

Names: OpenTelemetry's `gen_ai.*` as of 2025 and the older ones before them, LiteLLM's `litellm.*`, and the gateway's
own `router.*` and `llm.routing.*`. The first name of a list that is there counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
MESSAGES = ("gen_ai.input.messages", "gen_ai.prompt", "llm.input_messages", "input.value")
COST = ("litellm.cost.total", "gen_ai.cost.total_cost", "gen_ai.usage.cost", "llm.cost.total")
FIRST_TOKEN_S = ("gen_ai.response.time_to_first_chunk", "gen_ai.server.time_to_first_token")
JUDGE = ("judge.score", "gen_ai.evaluation.score.value", "gen_ai.evaluation.score")
FEEDBACK = ("feedback.score", "user.feedback.score", "gen_ai.user.feedback")
PROPENSITY = ("router.propensity",)
RETRIES = ("router.retries", "litellm.retries", "http.request.resend_count")
TASK = ("router.task", "task")
REQUEST_ID = ("router.request_id",)


@dataclass(frozen=True)
class Call:
    """What is known of one call.

    Attributes:
        call_id: LiteLLM's call id; joins traces and spend logs.
        source: `trace` or `spend`.
        lineage: where it was read: file and line, table and key, trace and span id.
        model: deployment or model that answered.
        prompt: cleaned text of the human's last turn, or the empty string.
        started: seconds since 1970.
        latency_ms, first_token_ms, cost_usd, judge, feedback, propensity: None where unknown.
        failed: whether the call ended in an error.
        retries: attempts beyond the first.
        task: task name, or the empty string.
    """

    call_id: str
    source: str
    lineage: str
    model: str = ""
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

    def merged(self, other: Call) -> Call:
        """Both accounts of one call: what this one does not know is taken from the other."""
        mine, theirs = asdict(self), asdict(other)
        for name in (
            "model",
            "prompt",
            "latency_ms",
            "first_token_ms",
            "cost_usd",
            "judge",
            "feedback",
            "propensity",
            "task",
        ):
            if mine[name] in (None, ""):
                mine[name] = theirs[name]
        mine["started"] = self.started or other.started
        mine["failed"] = self.failed or other.failed
        mine["retries"] = max(self.retries, other.retries)
        mine["lineage"] = f"{self.lineage} + {other.lineage}"
        return Call(**mine)


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
    if not speaks:
        return None
    first_token_s = number(first(values, FIRST_TOKEN_S))
    return Call(
        call_id=str(first(values, CALL_ID) or f"trace:{span.trace_id}"),
        source="trace",
        lineage=f"{lineage}#{span.trace_id}/{span.span_id}",
        model=str(first(values, MODEL) or ""),
        prompt=prompt_of(first(values, MESSAGES), values),
        started=span.start_ns / 1e9,
        latency_ms=max(0.0, (span.end_ns - span.start_ns) / 1e6) if span.end_ns else None,
        first_token_ms=None if first_token_s is None else first_token_s * 1e3,
        cost_usd=number(first(values, COST)),
        judge=number(first(values, JUDGE)),
        feedback=number(first(values, FEEDBACK)),
        propensity=number(first(values, PROPENSITY)),
        failed=span.failed or "error.type" in values,
        retries=int(number(first(values, RETRIES)) or 0),
        task=str(first(values, TASK) or ""),
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
    """Messages spread over `gen_ai.prompt.<n>.role` and `.content` (OpenLLMetry and older LiteLLM)."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        prefix, _, rest = name.rpartition("gen_ai.prompt.")
        index, _, key = rest.partition(".")
        if not prefix and index.isdecimal() and key in ("role", "content") and len(index) < 6:
            found.setdefault(int(index), {})[key] = value
    return [found[index] for index in sorted(found)]


def first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first name that has one."""
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if abs(result) < 1e15 else None
