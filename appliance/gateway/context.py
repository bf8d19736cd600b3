"""What belongs to one HTTP request, handed from the ASGI edge to the routing callback and back."""

from __future__ import annotations

import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field

from appliance.gateway.access import Principal
from appliance.gateway.decision import Decision
from appliance.gateway.faults import Fault


@dataclass
class RequestContext:
    """One HTTP request. The object is shared by every task that works on it.

    Attributes:
        id: ours; clients cannot choose it.
        principal: whose key it came with, None where nothing was authenticated.
        sticky: what the caller is known by for shares of traffic; empty where it does not say.
        cost_weight: what the caller wants of cost and quality, None for the group's own.
        decisions: in order; more than one where LiteLLM retried or fell back.
        fault: why it failed behind the edge, None while it did not.
        error: what LiteLLM made of it.
        again: whether it should be put to LiteLLM once more, because not everything has been tried.
    """

    principal: Principal | None = None
    sticky: str = ""
    cost_weight: float | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    decisions: list[Decision] = field(default_factory=list)
    fault: Fault | None = None
    error: BaseException | None = None
    again: bool = False

    def tried(self, group: str) -> set[str]:
        """Deployments of a group that this request was sent to before; being asked again means that they failed."""
        return {d.selected for d in self.decisions if d.group == group and d.selected is not None}


current: ContextVar[RequestContext | None] = ContextVar("appliance_request", default=None)
