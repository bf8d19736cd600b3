"""Why a request went where it went: the prompts of the training data that lay nearest, with what each model scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.gateway.active import Slot
from appliance.gateway.decision import Decision
from appliance.gateway.scoring import ScoreCache

SHOWN = 10


def neighbours(decision: Decision, slots: Mapping[str, Slot], cache: ScoreCache) -> list[dict[str, Any]] | None:
    """The nearest neighbours of a decision's prompt, nearest first.

    Returns:
        Row of the training data, cosine, and each label's outcome; None where the router has no neighbours, was
        replaced since, or the prompt is no longer in the cache (its text is never kept).
    """
    if decision.router is None or decision.prompt_digest is None:
        return None
    serving = slots[decision.router].current
    known = cache.get(decision.router, decision.prompt_digest)
    if serving is None or known is None or not (known.router_digest == decision.router_digest == serving.digest):
        return None
    strategy: Any = serving.router.strategy
    if not hasattr(strategy, "neighbours"):
        return None
    labels = list(serving.router.metadata.labels)
    return [
        {
            "row": row,
            "cosine": round(cosine, 6),
            "outcomes": {n: round(float(v), 6) for n, v in zip(labels, strategy.outcomes[row], strict=True)},
        }
        for row, cosine in strategy.neighbours(known.embedding)[:SHOWN]
    ]
