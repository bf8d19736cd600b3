"""Which deployment answers: the router's best among the candidates, or weighted round-robin at once.

Nothing here knows LiteLLM. `decide` never raises: whatever goes wrong on the way to an ML decision ends in round-robin
with the reason in the record.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.breaker import Breaker
from appliance.gateway import decision as why
from appliance.gateway.active import Serving, Slot, utc_now
from appliance.gateway.decision import Decision, DecisionLog, Deployment, Outcome
from appliance.gateway.pool import DeadlineExceeded, Overloaded, Pool
from appliance.routers.round_robin import SmoothWeightedRoundRobin

log = logging.getLogger("appliance.routing")


@dataclass(frozen=True)
class Scored:
    """A prompt's scores by one router.

    Attributes:
        router_digest: the router that scored.
        prompt_digest: SHA-256 of the cleaned prompt.
        embedding: shape (1, d), of the router's encoder.
        scores: shape (labels,).
    """

    router_digest: str
    encoder_digest: str
    prompt_digest: str
    embedding: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """How a group is routed.

    Attributes:
        slot: where its router serves from; None for round-robin.
    """

    slot: Slot | None


@dataclass(frozen=True)
class Request:
    """What is known of a request when it is routed; `prompt` is called at most once, on a worker thread if long."""

    request_id: str
    call_id: str
    prompt: Callable[[], str]


class ScoreCache:
    """Least recently used scores by content digest; touched on the event loop only."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._items: OrderedDict[str, Scored] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, digest: str) -> Scored | None:
        """The scores remembered for a prompt, of whichever router."""
        item = self._items.get(digest)
        if item is not None:
            self._items.move_to_end(digest)
        return item

    def put(self, digest: str, item: Scored) -> None:
        """Remember scores."""
        if self._entries:
            self._items[digest] = item
            self._items.move_to_end(digest)
            if len(self._items) > self._entries:
                self._items.popitem(last=False)


class _Static(Exception):  # noqa: N818 (carries a verdict to one place)
    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


class Decider:
    """Decides for every group of the gateway.

    Args:
        plans: group -> plan; a group without one is routed by round-robin.
        round_robin: the static choice, with the operator's weights.
        pool: worker threads for encoder and router.
        breaker: around the ML path.
        deadline_s: hard limit of an ML decision.
        cache_entries: prompts whose scores are remembered.
        decisions: where records go.
        clock: seconds, for measuring.
    """

    def __init__(
        self,
        *,
        plans: Mapping[str, Plan],
        round_robin: SmoothWeightedRoundRobin,
        weights: Mapping[str, Mapping[str, int]],
        pool: Pool,
        breaker: Breaker,
        deadline_s: float,
        cache_entries: int,
        decisions: DecisionLog,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plans, self.decisions, self.breaker, self.pool = plans, decisions, breaker, pool
        self.cache = ScoreCache(cache_entries)
        self._round_robin, self._weights = round_robin, weights
        self._deadline_s, self._clock = deadline_s, clock

    async def decide(
        self, group: str, candidates: Sequence[Deployment], request: Request, *, excluded: Mapping[str, str]
    ) -> Decision:
        """Choose one of `candidates` and record why. Never raises.

        Args:
            group: requested model group.
            candidates: the deployments LiteLLM would admit now (of the group, healthy, allowed).
            request: ids and the prompt.
            excluded: id -> reason, for deployments of the group that LiteLLM does not admit now.
        """
        started = self._clock()
        ids = tuple(candidate.id for candidate in candidates)
        outcome: Outcome = "success"
        reason = why.CONFIGURED
        serving: Serving | None = None
        scored: Scored | None = None
        best: Sequence[str] = ids
        not_scored: dict[str, str] = dict(excluded)
        plan = self.plans.get(group)
        if not ids:
            outcome, reason = "no_candidates", why.NONE_HEALTHY
        elif len(ids) == 1:
            reason = why.ONLY_CANDIDATE
        elif plan is not None and plan.slot is not None:
            try:
                serving = plan.slot.current
                if serving is None:
                    raise _Static("fallback", why.NO_ROUTER)
                scored = await self._score(serving, request, started)
                best, unknown = _best(serving, scored, candidates)
                not_scored.update(unknown)
                reason = why.BEST_SCORE
            except _Static as static:
                outcome, reason, serving, best = static.outcome, static.reason, None, ids
            except Exception as error:  # routing never costs a request
                log.warning("routing failed", extra={"error": type(error).__name__}, exc_info=error)
                outcome, reason, serving, best = "error", why.ROUTER_FAILED, None, ids
        selected = self._round_robin.choose(group, best) if best else None
        scores = {} if scored is None or serving is None else _named(serving, scored)
        record = Decision(
            request_id=request.request_id,
            call_id=request.call_id,
            at=utc_now(),
            group=group,
            selected=selected,
            strategy=f"ml:{serving.router.metadata.strategy}" if serving else "round-robin",
            outcome=outcome,
            reason=reason,
            score=_score_of(serving, scores, candidates, selected),
            scores=scores,
            candidates=ids,
            excluded=not_scored,
            propensity=self._propensity(group, best, selected),
            router=serving.name if serving else None,
            router_digest=serving.digest if serving else None,
            prompt_digest=scored.prompt_digest if scored else None,
            latency_ms=round((self._clock() - started) * 1000, 3),
        )
        self.decisions.add(record)
        return record

    async def _score(self, serving: Serving, request: Request, started: float) -> Scored:
        text = request.prompt()
        if not text:
            raise _Static("fallback", why.NO_PROMPT)
        digest = hashlib.sha256(text.encode()).hexdigest()
        known = self.cache.get(digest)
        if known is not None and known.router_digest == serving.digest:
            self.cache.hits += 1
            return known
        self.cache.misses += 1
        if not self.breaker.allow():
            raise _Static("fallback", why.BREAKER_OPEN)
        embedding = known.embedding if known is not None and known.encoder_digest == serving.encoder.digest else None
        try:
            scored = await self.pool.run(
                lambda: score(serving, text, digest, embedding),
                deadline_s=self._deadline_s - (self._clock() - started),
            )
        except Overloaded:
            self.breaker.unused()
            raise _Static("fallback", why.QUEUE_FULL) from None
        except DeadlineExceeded:
            self.breaker.failure(why.DEADLINE)
            raise _Static("timeout", why.DEADLINE) from None
        except Exception as error:
            self.breaker.failure(f"{why.ROUTER_FAILED}: {type(error).__name__}")
            raise
        except BaseException:  # the client went away
            self.breaker.unused()
            raise
        self.breaker.success()
        self.cache.put(digest, scored)
        return scored

    def _propensity(self, group: str, best: Sequence[str], selected: str | None) -> float:
        if selected is None or len(best) == 1:
            return 1.0
        weights = self._weights.get(group, {})
        effective = {id_: weights.get(id_, 1) for id_ in best}
        whole = sum(effective.values())
        return round(effective[selected] / whole, 6) if whole else round(1 / len(best), 6)


def score(serving: Serving, text: str, digest: str, embedding: NDArray[np.float32] | None = None) -> Scored:
    """Encode and score one prompt: what a worker thread does.

    Args:
        serving: router and encoder.
        text: cleaned prompt.
        digest: SHA-256 of `text`.
        embedding: shape (1, d), where the encoder's vector is known already.
    """
    from appliance.routers.strategies import Prompts

    prompts = serving.encoder.prompts([text]) if embedding is None else Prompts((text,), embedding)
    scores = serving.router.scores(prompts)[0]
    return Scored(serving.digest, serving.encoder.digest, digest, prompts.embeddings, scores)


def _best(serving: Serving, scored: Scored, candidates: Sequence[Deployment]) -> tuple[list[str], dict[str, str]]:
    """The candidates of the best-scored model (several where it has replicas), and those no label names."""
    by_name = _score_by_target(serving, scored)
    points: dict[str, float] = {}
    unknown: dict[str, str] = {}
    for candidate in candidates:
        value = by_name.get(candidate.id, by_name.get(candidate.model))
        if value is None:
            unknown[candidate.id] = "no label of the router names it"
        else:
            points[candidate.id] = value
    if not points:
        raise _Static("fallback", why.NO_LABEL)
    top = max(points.values())
    return [id_ for id_, value in points.items() if value == top], unknown


def _score_by_target(serving: Serving, scored: Scored) -> dict[str, float]:
    targets = serving.router.metadata.labels
    return {targets[label]: float(value) for label, value in zip(targets, scored.scores, strict=True)}


def _named(serving: Serving, scored: Scored) -> dict[str, float]:
    return {
        label: round(float(value), 6)
        for label, value in zip(serving.router.metadata.labels, scored.scores, strict=True)
    }


def _score_of(
    serving: Serving | None, scores: Mapping[str, float], candidates: Sequence[Deployment], selected: str | None
) -> float | None:
    if serving is None or selected is None:
        return None
    targets = {target: scores[label] for label, target in serving.router.metadata.labels.items() if label in scores}
    chosen = next(candidate for candidate in candidates if candidate.id == selected)
    return targets.get(chosen.id, targets.get(chosen.model))
