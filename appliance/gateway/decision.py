"""What was decided for a request, and why: one record, kept in memory, never with the prompt's text."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MAX_REMEMBERED = 2000  # decisions a process

Outcome = Literal["success", "fallback", "timeout", "error", "no_candidates"]

# Reasons: the closed list of words in `router.decision_reason`.
BEST_SCORE = "best_score"
ONLY_CANDIDATE = "only_candidate"
CONFIGURED = "configured_round_robin"
NO_PROMPT = "no_prompt"
NO_ROUTER = "no_router"
QUEUE_FULL = "overload_shed"
DEADLINE = "deadline"
BREAKER_OPEN = "breaker_open"
ROUTER_FAILED = "router_error"
NO_LABEL = "no_label_for_candidates"
NONE_HEALTHY = "no_healthy_deployment"
LAST_RESORT = "last_resort"
NOT_THE_ROUTERS_FAULT = frozenset({NO_PROMPT, QUEUE_FULL, BREAKER_OPEN})


@dataclass(frozen=True)
class Deployment:
    """One deployment as routing sees it.

    Attributes:
        id: `model_info.id`, unique.
        model: `litellm_params.model`, what a router's labels name.
    """

    id: str
    model: str


@dataclass(frozen=True)
class Decision:
    """A routing decision.

    Attributes:
        request_id: ours, as in the response header `x-appliance-request-id`.
        call_id: LiteLLM's `x-litellm-call-id`.
        at: RFC 3339, UTC.
        group: requested model group.
        selected: chosen deployment id, None where there was no candidate.
        strategy: `ml:<family>` or `round-robin`.
        outcome: `success` by the strategy the group asks for; `fallback`, `timeout`, `error` by round-robin instead.
        reason: one of the words above.
        score: the chosen deployment's score, where a router scored.
        scores: label -> score, as it was decided on.
        labels: candidate id -> the label whose score counted for it.
        cost_weight: how much cost counted against quality.
        costs: candidate id -> its cost as a share of the dearest of the group.
        candidates: ids that could be chosen.
        excluded: id -> why it could not be chosen by the router, or at all.
        turns: where several were best, id -> what it had gained in weighted round-robin; the richest was chosen.
        propensity: probability with which this policy picks the chosen one (for off-policy evaluation).
        router, router_digest: name and digest of the router that decided.
        prompt_digest: SHA-256 of the cleaned prompt.
        latency_ms: time spent deciding.
        key: name of the key the request came with.
    """

    request_id: str
    call_id: str
    at: str
    group: str
    selected: str | None
    strategy: str
    outcome: Outcome
    reason: str
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cost_weight: float = 0.0
    costs: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[str, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    turns: Mapping[str, int] = field(default_factory=dict)
    propensity: float = 1.0
    router: str | None = None
    router_digest: str | None = None
    prompt_digest: str | None = None
    latency_ms: float = 0.0
    key: str = ""

    @property
    def by_model(self) -> bool:
        """Whether a routing model chose."""
        return self.strategy.startswith("ml:")

    def concerns(self, request_id: str) -> bool:
        """Whether it was made for that request, by our id or LiteLLM's."""
        return request_id in {self.request_id, self.call_id}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def weigh(scores: Mapping[str, float], costs: Mapping[str, float], weight: float) -> tuple[str, ...]:
    """The best deployments, several where they are equal: score minus `weight` times the share of the dearest's cost.

    Args:
        scores: deployment id -> score; at least one.
        costs: deployment id -> cost as a share of the dearest.
        weight: 0 to 1.
    """
    utility = {id_: score - weight * costs.get(id_, 0.0) for id_, score in scores.items()}
    top = max(utility.values())
    return tuple(id_ for id_, value in utility.items() if value == top)


class DecisionLog:
    """The last decisions of this process, and counts since the start.

    Args:
        observer: told of every decision.
        capacity: how many are remembered.
    """

    def __init__(self, observer: Callable[[Decision], None] | None = None, capacity: int = MAX_REMEMBERED) -> None:
        self._ring: deque[Decision] = deque(maxlen=capacity)
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
        self._observer = observer

    def add(self, decision: Decision) -> None:
        """Remember a decision."""
        key = (decision.group, decision.outcome, decision.reason)
        with self._lock:
            self._ring.append(decision)
            self._counts[key] = self._counts.get(key, 0) + 1
        if self._observer is not None:
            self._observer(decision)

    def recent(self, limit: int = 100) -> list[Decision]:
        """The newest decisions, newest first."""
        with self._lock:
            return list(self._ring)[: -limit - 1 : -1]

    def counts(self) -> list[dict[str, Any]]:
        """Decisions since the start by group, outcome and reason."""
        with self._lock:
            return [
                {"group": group, "outcome": outcome, "reason": reason, "count": count}
                for (group, outcome, reason), count in sorted(self._counts.items())
            ]
