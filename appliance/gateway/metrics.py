"""Prometheus metrics, added up over all workers by whichever of them is asked.

Each worker keeps plain numbers; `sample` gives them as a document that travels over the control socket, `render` adds
the documents of all workers and writes the text format (version 0.0.4).
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.gateway.decision import Decision

LATENCY_MS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 100, 250)
HELP = {
    "appliance_decisions_total": ("counter", "Routing decisions."),
    "appliance_selected_total": ("counter", "Decisions by chosen deployment."),
    "appliance_decision_latency_ms": ("histogram", "Time spent deciding, milliseconds."),
    "appliance_requests_total": ("counter", "HTTP requests at the edge by status class."),
    "appliance_requests_running": ("gauge", "Requests being answered now."),
    "appliance_router_serving": ("gauge", "1 for the router digest a worker serves, 0 for static routing."),
    "appliance_registry_contact_age_seconds": (
        "gauge",
        "Since the registry of a router's channel last answered; +Inf where it never did, as far as is known.",
    ),
    "appliance_breaker_open": ("gauge", "1 while the breaker of the ML path is not closed."),
    "appliance_deployment_out": ("gauge", "Workers that leave a deployment out now: it failed or cannot be reached."),
    "appliance_queue_waiting": ("gauge", "Prompts that wait for the encoder."),
    "appliance_egress_refused_total": ("counter", "Outbound connections refused by the egress guard."),
    "appliance_live_revision": ("gauge", "Revision of the live configuration that a worker has applied."),
    "appliance_live_refused_rows": ("gauge", "Rows of the live configuration that a worker refuses."),
    "appliance_live_contact_age_seconds": ("gauge", "Since the live configuration's source last answered."),
}
Sample = dict[str, Any]
Key = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and one histogram of this worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Key], float] = {}
        self._latency: dict[Key, list[float]] = {}  # buckets, then the sum
        self.running = 0

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        group = ("group", decision.group)
        why = (group, ("outcome", decision.outcome), ("reason", decision.reason), ("strategy", decision.strategy))
        with self._lock:
            self._add("appliance_decisions_total", why)
            self._add("appliance_selected_total", (group, ("deployment", decision.selected or "")))
            buckets = self._latency.setdefault((group,), [0.0] * (len(LATENCY_MS) + 2))
            buckets[bisect.bisect_left(LATENCY_MS, decision.latency_ms)] += 1
            buckets[-1] += decision.latency_ms

    def answered(self, status: int) -> None:
        """Count an HTTP answer."""
        with self._lock:
            self._add("appliance_requests_total", (("status", f"{status // 100}xx"),))

    def sample(self, gauges: Mapping[str, Iterable[tuple[Mapping[str, str], float]]]) -> Sample:
        """This worker's numbers; `gauges` are read now: name -> (labels, value)."""
        with self._lock:
            counters = [[name, dict(key), value] for (name, key), value in self._counters.items()]
            latency = [[dict(key), list(values)] for key, values in self._latency.items()]
        counters.append(["appliance_requests_running", {}, self.running])
        counters += [[name, dict(labels), value] for name, rows in gauges.items() for labels, value in rows]
        return {"values": counters, "latency": latency}

    def _add(self, name: str, key: Key) -> None:
        self._counters[name, key] = self._counters.get((name, key), 0) + 1


def render(samples: Iterable[Sample]) -> str:
    """The text format over all workers' samples."""
    values: dict[str, dict[Key, float]] = {name: {} for name in HELP}
    latency: dict[Key, list[float]] = {}
    for sample in samples:
        for name, labels, value in sample["values"]:
            key = tuple(sorted(labels.items()))
            values[name][key] = values[name].get(key, 0) + value
        for labels, buckets in sample["latency"]:
            key = tuple(sorted(labels.items()))
            known = latency.setdefault(key, [0.0] * len(buckets))
            latency[key] = [a + b for a, b in zip(known, buckets, strict=True)]
    lines: list[str] = []
    for name, (kind, text) in HELP.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        if kind == "histogram":
            lines += _histogram(name, latency)
        else:
            lines += [f"{name}{_labels(key)} {_number(value)}" for key, value in sorted(values[name].items())]
    return "\n".join(lines) + "\n"


def _histogram(name: str, rows: Mapping[Key, list[float]]) -> list[str]:
    lines = []
    for key, buckets in sorted(rows.items()):
        seen = 0.0
        for bound, count in zip((*LATENCY_MS, float("inf")), buckets[:-1], strict=True):
            seen += count
            lines.append(f"{name}_bucket{_labels((*key, ('le', _number(bound))))} {_number(seen)}")
        lines += [f"{name}_sum{_labels(key)} {buckets[-1]:.3f}", f"{name}_count{_labels(key)} {_number(seen)}"]
    return lines


def _labels(key: Key) -> str:
    if not key:
        return ""
    escaped = ((n, v.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")) for n, v in key)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
