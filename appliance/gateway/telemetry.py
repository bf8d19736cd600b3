"""A decision on LiteLLM's request span, under the names of the design (v1 and v2 of its OpenTelemetry integration)."""

from __future__ import annotations

from typing import Any

from appliance.gateway.decision import Decision


def attributes(decision: Decision) -> dict[str, str | int | float | bool]:
    """The span attributes of a decision; never the prompt."""
    selected = decision.selected or ""
    values: dict[str, str | int | float | bool] = {
        "llm.routing.selected_model": selected,
        "llm.routing.latency_ms": decision.latency_ms,
        "llm.routing.strategy": decision.strategy,
        "router.strategy": decision.strategy,
        "router.model_selected": selected,
        "router.candidates_evaluated": len(decision.candidates),
        "router.decision_outcome": decision.outcome,
        "router.decision_reason": decision.reason,
        "router.latency_ms": decision.latency_ms,
        "router.fallback_triggered": decision.outcome in {"fallback", "timeout", "error"},
        "router.request_id": decision.request_id,
        "router.call_id": decision.call_id,  # joins the spend log
        "router.propensity": decision.propensity,  # what an off-policy estimate rests on
    }
    if decision.score is not None:
        values["router.score"] = decision.score
    if decision.router_digest is not None:
        values["router.strategy_version"] = decision.router_digest
    return values


def annotate(decision: Decision, parent_span: Any) -> None:
    """Put the attributes on the span that LiteLLM is recording, where it records one.

    Args:
        decision: what was decided.
        parent_span: LiteLLM v1's proxy request span, or None.
    """
    from opentelemetry import trace

    spans = [span for span in (parent_span, trace.get_current_span()) if span is not None and span.is_recording()]
    if spans:
        values = attributes(decision)
        for span in dict.fromkeys(spans):
            span.set_attributes(values)
