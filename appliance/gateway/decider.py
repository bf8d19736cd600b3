"""Which deployment answers: the router's best among the candidates, or weighted round-robin at once.

Nothing here knows LiteLLM. `decide` never raises: whatever goes wrong on the way to an ML decision ends in round-robin
with the reason in the record.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.gateway import decision as why
from appliance.gateway.active import Serving, Slot, utc_now
from appliance.gateway.decision import Decision, DecisionLog, Deployment, Outcome
from appliance.gateway.health import UpstreamHealth
from appliance.gateway.pool import Overloaded
from appliance.gateway.rollout import Rollout
from appliance.gateway.scoring import Request, Scored, Scorer, Static
from appliance.routers.round_robin import SmoothWeightedRoundRobin

log = logging.getLogger("appliance.routing")
SHADOW_LIMIT_S = 1.0  # after which a router in shadow is not waited for; it is late long before


@dataclass(frozen=True)
class Plan:
    """How a group is routed.

    Attributes:
        slot: where its router serves from; None for round-robin.
        rollout: a candidate that tries itself.
        weights: deployment id -> weight, as round-robin knows them.
        costs: deployment id -> cost, any one unit.
        cost_weight: from 0 (quality alone) to 1 (a full step of cost outweighs a full step of score).
        last_resort: deployment that answers only where no other can.
    """

    slot: Slot | None = None
    rollout: Rollout | None = None
    weights: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    cost_weight: float = 0.0
    last_resort: str | None = None


@dataclass
class _Draft:
    """A decision in the making."""

    pool: Sequence[Deployment]
    excluded: dict[str, str]
    outcome: Outcome = "success"
    reason: str = why.CONFIGURED
    serving: Serving | None = None
    scored: Scored | None = None
    best: Sequence[str] = ()
    tried: bool = False  # whether the candidate decided, or would have


class Decider:
    """Decides for every group of the gateway.

    Args:
        plans: group -> plan; a group without one is routed by round-robin.
        round_robin: the static choice, with the operator's weights.
        scorer: scores prompts in time or not at all.
        health: of the upstreams.
        deadline_s: hard limit of an ML decision.
        decisions: where records go.
        clock: seconds, for measuring.
    """

    def __init__(
        self,
        *,
        plans: Mapping[str, Plan],
        round_robin: SmoothWeightedRoundRobin,
        scorer: Scorer,
        health: UpstreamHealth,
        deadline_s: float,
        decisions: DecisionLog,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plans, self.scorer, self.health, self.decisions = plans, scorer, health, decisions
        self._round_robin, self._deadline_s, self._clock = round_robin, deadline_s, clock
        self._shadows: set[asyncio.Task[None]] = set()

    def configure(
        self, plans: Mapping[str, Plan], weights: Mapping[str, Mapping[str, int]], *, deadline_s: float
    ) -> None:
        """Decide by other plans from the next request on; turns of deployments that stay are kept."""
        self._round_robin.configure(weights)
        self.plans, self._deadline_s = plans, deadline_s

    async def decide(
        self, group: str, candidates: Sequence[Deployment], request: Request, *, excluded: Mapping[str, str]
    ) -> Decision:
        """Choose one of `candidates` and record why. Never raises.

        Args:
            group: requested model group.
            candidates: the deployments LiteLLM would admit now (of the group, healthy, allowed).
            request: ids, prompt, wishes.
            excluded: id -> reason, for deployments of the group that are no candidates now.
        """
        started = self._clock()
        plan = self.plans.get(group, Plan())
        draft = self._draft(plan, candidates, excluded)
        draft.best = tuple(candidate.id for candidate in draft.pool)
        if not draft.best:
            draft.outcome, draft.reason = "no_candidates", why.NONE_HEALTHY
        elif len(draft.best) == 1:
            draft.reason = why.LAST_RESORT if draft.best[0] == plan.last_resort else why.ONLY_CANDIDATE
        elif plan.slot is not None:
            await self._by_model(plan, plan.slot, draft, request, started)
        selected, turns = self._round_robin.turn(group, draft.best) if draft.best else (None, {})
        if selected is not None:
            self.health.chosen(selected)
        latency_ms = round((self._clock() - started) * 1000, 3)
        record = _record(group, plan, draft, request, selected=selected, turns=turns, latency_ms=latency_ms)
        self.decisions.add(record)
        if plan.rollout is not None and draft.scored is not None and not draft.tried and plan.rollout.observes():
            self._shadow(plan, plan.rollout, draft, request)
        return record

    def _draft(self, plan: Plan, candidates: Sequence[Deployment], excluded: Mapping[str, str]) -> _Draft:
        """Hold back what is unreachable and the last resort, but never everything."""
        reasons = dict(excluded)
        admitted = self.health.admitted(candidate.id for candidate in candidates)
        pool = [c for c in candidates if c.id in admitted and c.id != plan.last_resort]
        pool = pool or [c for c in candidates if c.id == plan.last_resort] or list(candidates)
        kept = {c.id for c in pool}
        for candidate in candidates:
            if candidate.id not in kept:
                reasons[candidate.id] = "last_resort" if candidate.id == plan.last_resort else "unreachable"
        return _Draft(pool, reasons)

    async def _by_model(self, plan: Plan, slot: Slot, draft: _Draft, request: Request, started: float) -> None:
        rollout = plan.rollout if plan.rollout is not None and plan.rollout.decides(request.sticky) else None
        draft.tried = rollout is not None
        serving = rollout.slot.current if rollout is not None else slot.current
        try:
            if serving is None:
                raise Static("fallback", why.NO_ROUTER)
            scored = await self.scorer.score(serving, request, deadline_s=self._deadline_s - (self._clock() - started))
            best, unknown = choose(scored, draft.pool, plan, request.cost_weight)
            draft.excluded.update(unknown)
            draft.serving, draft.scored, draft.best, draft.reason = serving, scored, best, why.BEST_SCORE
        except Static as static:
            draft.outcome, draft.reason = static.outcome, static.reason
        except Exception as error:  # routing never costs a request
            log.warning("routing failed", extra={"error": type(error).__name__}, exc_info=error)
            draft.outcome, draft.reason = "error", why.ROUTER_FAILED
        if rollout is not None:
            rollout.decided(ok=draft.outcome == "success" or draft.reason in why.NOT_THE_ROUTERS_FAULT)

    def _shadow(self, plan: Plan, rollout: Rollout, draft: _Draft, request: Request) -> None:
        serving = rollout.slot.current
        if serving is None or self.scorer.pool.waiting:
            return  # shadows never make a request wait

        async def look() -> None:
            try:
                scored, took_s = await self.scorer.observe(serving, request, deadline_s=SHADOW_LIMIT_S)
                best, _ = choose(scored, draft.pool, plan, request.cost_weight)
                rollout.observed(ok=took_s <= self._deadline_s, agreed=bool(set(best) & set(draft.best)))
            except Overloaded:
                return  # no matter of the router's
            except Exception:  # noqa: BLE001 (a shadow's failure is a number)
                rollout.observed(ok=False)

        task = asyncio.get_running_loop().create_task(look())
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)


def _record(
    group: str,
    plan: Plan,
    draft: _Draft,
    request: Request,
    *,
    selected: str | None,
    turns: Mapping[str, int],
    latency_ms: float,
) -> Decision:
    serving, scored = draft.serving, draft.scored
    labels = _labels(scored, draft.pool) if scored is not None else {}
    return Decision(
        request_id=request.request_id,
        call_id=request.call_id,
        at=utc_now(),
        group=group,
        selected=selected,
        strategy=f"ml:{serving.router.metadata.strategy}" if serving else "round-robin",
        outcome=draft.outcome,
        reason=draft.reason,
        score=scored.by_label[labels[selected]] if scored is not None and selected in labels else None,
        scores=scored.by_label if scored is not None else {},
        labels=labels,
        cost_weight=_cost_weight(plan, request.cost_weight) if scored is not None else 0.0,
        costs=_cost_shares(plan, draft.pool) if scored is not None else {},
        candidates=tuple(candidate.id for candidate in draft.pool),
        excluded=draft.excluded,
        turns=turns if len(draft.best) > 1 else {},
        propensity=_propensity(plan.weights, draft.best, selected),
        router=serving.name if serving else None,
        router_digest=serving.digest if serving else None,
        prompt_digest=scored.prompt_digest if scored else None,
        latency_ms=latency_ms,
        key=request.key,
    )


def choose(
    scored: Scored, pool: Sequence[Deployment], plan: Plan, cost_weight: float | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The best deployments of a pool (several where a model has replicas), and why others could not be weighed.

    Raises:
        Static: where no label of the router names any of them.
    """
    labels = _labels(scored, pool)
    if not labels:
        raise Static("fallback", why.NO_LABEL)
    scores = {id_: scored.by_label[label] for id_, label in labels.items()}
    best = why.weigh(scores, _cost_shares(plan, pool), _cost_weight(plan, cost_weight))
    return best, {candidate.id: "no_label" for candidate in pool if candidate.id not in labels}


def _labels(scored: Scored, pool: Sequence[Deployment]) -> dict[str, str]:
    """Candidate id -> the label that stands for it, by its id or else by its model."""
    found = {candidate.id: scored.label_of(candidate.id, candidate.model) for candidate in pool}
    return {id_: label for id_, label in found.items() if label is not None}


def _cost_shares(plan: Plan, pool: Sequence[Deployment]) -> dict[str, float]:
    """Candidate id -> its cost as a share of the dearest of the group."""
    dearest = max(plan.costs.values(), default=0.0)
    return {c.id: plan.costs[c.id] / dearest for c in pool if c.id in plan.costs} if dearest else {}


def _cost_weight(plan: Plan, asked: float | None) -> float:
    return plan.cost_weight if asked is None else asked


def _propensity(weights: Mapping[str, int], best: Sequence[str], selected: str | None) -> float:
    """The share of requests like this one that go where this one went."""
    if selected is None or len(best) == 1:
        return 1.0
    effective = {id_: weights.get(id_, 1) for id_ in best}
    whole = sum(effective.values())
    return round(effective[selected] / whole, 6) if whole else round(1 / len(best), 6)
