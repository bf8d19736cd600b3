"""Why a request went where it went: the prompts of the training data that lay nearest, with what each model scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.gateway.active import Slot
from appliance.gateway.decision import Decision
from appliance.gateway.scoring import ScoreCache

SHOWN = 10


def explained(decision: Decision, slots: Mapping[str, Slot], cache: ScoreCache) -> dict[str, Any]:
    """A decision with the nearest neighbours of its prompt.

    Returns:
        The record; `neighbours`, nearest first: row of the training data, cosine, and each label's outcome; and
        `no_neighbours`, the reason where there are none to show.
    """
    found = _neighbours(decision, slots, cache)
    shown = {"neighbours": None, "no_neighbours": found} if isinstance(found, str) else {"neighbours": found}
    return {**decision.as_dict(), **shown}


def _neighbours(decision: Decision, slots: Mapping[str, Slot], cache: ScoreCache) -> list[dict[str, Any]] | str:
    if decision.router is None or decision.prompt_digest is None:
        return "no router decided"
    slot = slots.get(decision.router)
    serving = slot.current if slot is not None else None
    if serving is None or serving.digest != decision.router_digest:
        return "the router that decided was replaced since"
    known = cache.get(decision.router, decision.prompt_digest)
    if known is None or known.router_digest != serving.digest:
        return "the prompt's vector is no longer remembered"
    strategy = _remembering(serving.router.strategy)
    if strategy is None:
        return f"{serving.router.metadata.strategy} remembers no prompts"
    labels = list(serving.router.metadata.labels)
    return [
        {
            "row": row,
            "cosine": round(cosine, 6),
            "outcomes": {n: round(float(v), 6) for n, v in zip(labels, strategy.outcomes[row], strict=True)},
        }
        for row, cosine in strategy.neighbours(known.embedding)[:SHOWN]
    ]


def _remembering(strategy: Any) -> Any | None:
    """The strategy, or its first member, that keeps the prompts it was fitted on."""
    if hasattr(strategy, "neighbours"):
        return strategy
    members = (_remembering(member) for _, member in getattr(strategy, "members", ()))
    return next((member for member in members if member is not None), None)
