"""Between LiteLLM's callback and the decider: from LiteLLM's dictionaries to deployments and back to exactly one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from appliance.gateway import context, faults, prompt, telemetry
from appliance.gateway.decider import Decider
from appliance.gateway.decision import Decision, Deployment
from appliance.gateway.health import blame
from appliance.gateway.scoring import Request

log = logging.getLogger("appliance.routing")


class RoutingCallback:
    """Chooses one deployment for every attempt of every request.

    Args:
        decider: chooses.
        groups: group -> all its deployments, for exclusion reasons.
        model_list: every deployment as LiteLLM knows it, for when it lets a whole group rest.
    """

    def __init__(
        self,
        decider: Decider,
        groups: Mapping[str, Sequence[Deployment]],
        model_list: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self.groups = groups  # exchanged whole when the configuration changes
        self._decider, self._model_list = decider, model_list

    async def filter(
        self, group: str, healthy: list[Any], messages: list[Any] | None, kwargs: dict[str, Any], span: Any
    ) -> list[Any]:
        """One deployment out of the healthy ones; all of them where even that goes wrong; none the key may not use."""
        request = context.current.get() or context.RequestContext()
        if request.principal is not None and not request.principal.may_use(group):
            return []  # a fallback named in the request must not lead around the key's list
        try:
            decision, chosen = await self._choose(request, group, healthy, messages, kwargs)
            request.decisions.append(decision)
            telemetry.annotate(decision, span)
            return chosen
        except Exception:
            log.exception("routing callback failed")
            return healthy

    async def _choose(
        self,
        request: context.RequestContext,
        group: str,
        healthy: list[Any],
        messages: list[Any] | None,
        kwargs: dict[str, Any],
    ) -> tuple[Decision, list[Any]]:
        by_id = {deployment["model_info"]["id"]: deployment for deployment in healthy} or self._resting(group)
        # asked again for the same request: what was chosen before has failed it
        skipped = request.tried(group) | _skipped_by_litellm(kwargs)
        if not by_id.keys() - skipped:
            skipped = set()
        candidates = [
            Deployment(id_, deployment["litellm_params"]["model"])
            for id_, deployment in by_id.items()
            if id_ not in skipped
        ]
        excluded = {d.id: "not_admitted" for d in self.groups.get(group, ()) if d.id not in by_id}
        excluded.update(dict.fromkeys(skipped & by_id.keys(), "failed_for_this_request"))
        asked = Request(
            request_id=request.id,
            call_id=str(kwargs.get("litellm_call_id", "")),
            prompt=lambda: prompt.of_request(messages, kwargs),
            characters=prompt.characters(messages, kwargs),
            sticky=request.sticky or request.id,
            cost_weight=request.cost_weight,
            key=request.principal.name if request.principal is not None else "",
        )
        decision = await self._decider.decide(group, candidates, asked, excluded=excluded)
        return decision, [by_id[decision.selected]] if decision.selected is not None else healthy

    def succeeded(self, kwargs: Mapping[str, Any]) -> None:
        """A deployment answered."""
        id_ = _deployment_of(kwargs)
        if id_ is not None:
            self._decider.health.succeeded(id_)

    def failed(self, kwargs: Mapping[str, Any]) -> None:
        """A deployment failed an attempt; LiteLLM goes on to another where there is one."""
        id_, error = _deployment_of(kwargs), kwargs.get("exception")
        what = blame(error) if isinstance(error, BaseException) else None
        if id_ is not None and what is not None:
            self._decider.health.failed(id_, what)

    def gave_up(self, error: BaseException) -> None:
        """The request failed for good; what its client is told is settled here, in the request's own context."""
        request = context.current.get()
        if request is None:
            return
        request.fault = faults.judge(error, asked=bool(request.decisions))
        if request.fault is not None:
            faults.record(error, request.fault, request_id=request.id)

    def _resting(self, group: str) -> dict[str, Any]:
        """Whom to ask where LiteLLM lets the whole group rest: its last resort, else any; refusing all helps nobody."""
        plan = self._decider.plans.get(group)
        last_resort = plan.last_resort if plan is not None else None
        return {
            d["model_info"]["id"]: d
            for d in self._model_list()
            if d.get("model_name") == group
            and not d["model_info"].get("blocked")
            and (last_resort is None or d["model_info"]["id"] == last_resort)
        }


def _skipped_by_litellm(kwargs: Mapping[str, Any]) -> set[str]:
    """Deployments that LiteLLM would drop after us for this request."""
    found: set[str] = set()
    for key in ("_excluded_deployment_ids", "_retry_skipped_deployment_ids"):
        value = kwargs.get(key)
        if isinstance(value, list | tuple | set | frozenset):
            found.update(str(id_) for id_ in value)
    return found


def _deployment_of(kwargs: Mapping[str, Any]) -> str | None:
    info = (kwargs.get("litellm_params") or {}).get("model_info") or {}
    id_ = info.get("id")
    return id_ if isinstance(id_, str) else None
