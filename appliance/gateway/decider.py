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
from appliance.gateway.rollout import Rollout
from appliance.gateway.scoring import Request, Scored, Scorer, Static
from appliance.routers.round_robin import SmoothWeightedRoundRobin

log = logging.getLogger("appliance.routing")


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
        selected = self._round_robin.choose(group, draft.best) if draft.best else None
        if selected is not None:
            self.health.chosen(selected)
        latency_ms = round((self._clock() - started) * 1000, 3)
        record = _record(group, plan, draft, request, selected=selected, latency_ms=latency_ms)
        self.decisions.add(record)
        if plan.rollout is not None and draft.scored is not None and plan.rollout.observes():
            self._shadow(plan.rollout, draft, request)
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
            rollout.report(ok=draft.outcome == "success" or draft.reason in why.NOT_THE_ROUTERS_FAULT)

    def _shadow(self, rollout: Rollout, draft: _Draft, request: Request) -> None:
        serving = rollout.slot.current
        if serving is None or self.scorer.pool.waiting:
            return  # shadows never make a request wait

        async def look() -> None:
            try:
                scored = await self.scorer.score(serving, request, deadline_s=1.0)
                best, _ = choose(scored, draft.pool, Plan(), None)
                rollout.report(ok=True, agreed=bool(set(best) & set(draft.best)))
            except Static as static:
                if static.reason not in why.NOT_THE_ROUTERS_FAULT:
                    rollout.report(ok=False)
            except Exception:  # noqa: BLE001 (a shadow's failure is a number)
                rollout.report(ok=False)

        task = asyncio.get_running_loop().create_task(look())
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)


def _record(
    group: str, plan: Plan, draft: _Draft, request: Request, *, selected: str | None, latency_ms: float
) -> Decision:
    serving, scored = draft.serving, draft.scored
    score = None
    if scored is not None and selected is not None:
        score = _score_of(scored, next(c for c in draft.pool if c.id == selected))
    return Decision(
        request_id=request.request_id,
        call_id=request.call_id,
        at=utc_now(),
        group=group,
        selected=selected,
        strategy=f"ml:{serving.router.metadata.strategy}" if serving else "round-robin",
        outcome=draft.outcome,
        reason=draft.reason,
        score=None if score is None else round(score, 6),
        scores={label: round(value, 6) for label, value in scored.by_label.items()} if scored else {},
        candidates=tuple(candidate.id for candidate in draft.pool),
        excluded=draft.excluded,
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

    Utility is score minus `cost_weight` times the cost as a share of the dearest.

    Raises:
        Static: where no label of the router names any of them.
    """
    weight = plan.cost_weight if cost_weight is None else cost_weight
    dearest = max(plan.costs.values(), default=0.0)
    utility: dict[str, float] = {}
    unknown: dict[str, str] = {}
    for candidate in pool:
        value = _score_of(scored, candidate)
        if value is None:
            unknown[candidate.id] = "no_label"
            continue
        utility[candidate.id] = value - (weight * plan.costs.get(candidate.id, 0.0) / dearest if dearest else 0.0)
    if not utility:
        raise Static("fallback", why.NO_LABEL)
    top = max(utility.values())
    return tuple(id_ for id_, value in utility.items() if value == top), unknown


def _score_of(scored: Scored, candidate: Deployment) -> float | None:
    value = scored.by_target.get(candidate.id)
    return scored.by_target.get(candidate.model) if value is None else value


def _propensity(weights: Mapping[str, int], best: Sequence[str], selected: str | None) -> float:
    """The share of requests like this one that go where this one went."""
    if selected is None or len(best) == 1:
        return 1.0
    effective = {id_: weights.get(id_, 1) for id_ in best}
    whole = sum(effective.values())
    return round(effective[selected] / whole, 6) if whole else round(1 / len(best), 6)
