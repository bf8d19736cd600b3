"""Between LiteLLM's callback and the decider: from LiteLLM's dictionaries to deployments and back to exactly one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        self._woken: set[str] = set()  # chosen while LiteLLM let them rest

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
        well = _by_id(healthy)
        # asked again for the same request: what was chosen before has failed it
        skipped = request.tried(group) | _skipped_by_litellm(kwargs)
        by_id = self._left(group, well, skipped)
        candidates = [Deployment(id_, deployment["litellm_params"]["model"]) for id_, deployment in by_id.items()]
        excluded = {
            d.id: "failed_for_this_request" if d.id in skipped else "not_admitted"
            for d in self.groups.get(group, ())
            if d.id not in by_id
        }
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
        if decision.selected is None:
            return decision, healthy
        if decision.selected not in well:
            self._woken.add(decision.selected)
        return decision, [by_id[decision.selected]]

    def succeeded(self, kwargs: Mapping[str, Any]) -> str | None:
        """A deployment answered; its id where it was asked although LiteLLM let it rest, which is over now."""
        id_ = _deployment_of(kwargs)
        if id_ is None:
            return None
        self._decider.health.succeeded(id_)
        if id_ not in self._woken:
            return None
        self._woken.discard(id_)
        return id_

    def failed(self, kwargs: Mapping[str, Any]) -> None:
        """A deployment failed an attempt; LiteLLM goes on to another where there is one."""
        id_, error = _deployment_of(kwargs), kwargs.get("exception")
        what = blame(error) if isinstance(error, BaseException) else None
        if id_ is not None and what is not None:
            self._decider.health.failed(id_, what)
            self._woken.discard(id_)

    def gave_up(self, error: BaseException) -> None:
        """LiteLLM gives the request up: what is told of it, and whether everything has been tried, is settled here.

        LiteLLM stops where its retries are used up, and at once where it lets the whole group rest: a model server that
        is back and still rests would then not be asked in the moment in which the other one dies.
        """
        request = context.current.get()
        if request is None:
            return
        request.error, request.fault = error, faults.judge(error, asked=bool(request.decisions))
        request.again = request.fault is not None and bool(request.decisions) and self._worth(request, request.fault)

    def _worth(self, request: context.RequestContext, fault: faults.Fault) -> bool:
        """Whether the request may still be answered: somebody of its group has not been asked, or only hung up."""
        group = request.decisions[0].group
        members = self._members(group)
        if members.keys() - request.tried(group):
            return fault is not faults.SILENT or len(request.decisions) == 1  # silence costs a client its patience
        # a connection that was kept from before the model server's restart says nothing of the model server
        return fault.blame == "no answer" and len(request.decisions) <= len(members)

    def _left(self, group: str, well: dict[str, Any], skipped: set[str]) -> dict[str, Any]:
        """Whom to choose from: who is well, else who rests; among both first who has not failed this request."""
        left = {id_: deployment for id_, deployment in well.items() if id_ not in skipped}
        if left:
            return left
        members = self._members(group)
        left = {id_: deployment for id_, deployment in members.items() if id_ not in skipped}
        plan = self._decider.plans.get(group)
        if plan is not None and plan.last_resort in left:
            return {plan.last_resort: left[plan.last_resort]}
        return left or well or members

    def _members(self, group: str) -> dict[str, Any]:
        """All of a group that the operator has not blocked, resting or not."""
        return _by_id(
            d for d in self._model_list() if d.get("model_name") == group and not d["model_info"].get("blocked")
        )


def _by_id(deployments: Iterable[Any]) -> dict[str, Any]:
    return {deployment["model_info"]["id"]: deployment for deployment in deployments}


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
