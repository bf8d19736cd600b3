"""The decider, put together from the configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from appliance.breaker import Breaker
from appliance.gateway.active import Slot
from appliance.gateway.decider import Decider, Plan
from appliance.gateway.decision import DecisionLog
from appliance.gateway.health import UpstreamHealth
from appliance.gateway.litellm_config import LiteLLMConfig
from appliance.gateway.pool import Pool
from appliance.gateway.rollout import Rollout
from appliance.gateway.scoring import ScoreCache, Scorer
from appliance.gateway.shared import Record
from appliance.settings import Group, Settings

NO_PLANS: Mapping[str, Plan] = MappingProxyType({})
ROUND_ROBIN = Group(strategy="round-robin")  # of a group that the configuration does not name


def build_decider(
    settings: Settings, config: LiteLLMConfig, slots: Mapping[str, Slot], decisions: DecisionLog
) -> Decider:
    """A decider for every group of LiteLLM's configuration; starts the encoder's threads."""
    from appliance.routers.round_robin import SmoothWeightedRoundRobin

    routing = settings.routing
    scorer = Scorer(
        pool=Pool(threads=routing.threads, queue_length=routing.queue, name="encoder"),
        breaker=Breaker(
            failures=routing.breaker.failures, open_s=routing.breaker.open_s, probes=routing.breaker.probes
        ),
        cache=ScoreCache(routing.cache_entries),
    )
    health = UpstreamHealth(
        failures=routing.upstreams.failures, open_s=routing.upstreams.open_s, probes=routing.upstreams.probes
    )
    return Decider(
        plans=build_plans(settings, config, slots),
        round_robin=SmoothWeightedRoundRobin(config.weights),
        scorer=scorer,
        health=health,
        deadline_s=routing.deadline_ms / 1000,
        decisions=decisions,
    )


def build_plans(
    settings: Settings, config: LiteLLMConfig, slots: Mapping[str, Slot], *, known: Mapping[str, Plan] = NO_PLANS
) -> dict[str, Plan]:
    """How every group is routed; a plan that is known keeps its candidate's progress and takes the new weights."""
    groups = settings.routing.groups
    return {
        name: replace(known[name], weights=config.weights[name])
        if name in known
        else _plan(groups.get(name, ROUND_ROBIN), config.weights[name], slots, _rollout_file(settings, name))
        for name in config.groups
    }


def _rollout_file(settings: Settings, group: str) -> Path:
    """Where the workers share a candidate's progress; a group's name may hold what a file's may not."""
    return settings.state_dir / "rollouts" / f"{hashlib.sha256(group.encode()).hexdigest()[:16]}.json"


def _plan(group: Group, weights: Mapping[str, int], slots: Mapping[str, Slot], shared: Path) -> Plan:
    candidate = group.candidate
    return Plan(
        slot=slots[group.router] if group.router is not None else None,
        rollout=Rollout(candidate, slots[candidate.router], Record(shared)) if candidate is not None else None,
        weights=weights,
        costs=group.costs,
        cost_weight=group.cost_weight,
        last_resort=group.last_resort,
    )
