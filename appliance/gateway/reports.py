"""What a gateway tells of itself: over the control socket for one worker, over HTTP for all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from appliance.gateway import calendar, control, metrics
from appliance.gateway.active import utc_now
from appliance.gateway.application import Report
from appliance.gateway.condense import condense
from appliance.gateway.decision import DecisionLog
from appliance.settings import Settings

Query = Mapping[str, list[str]]
MAX_LIMIT = 1000


class Teller(Protocol):
    """A worker, as far as it tells of itself."""

    number: int
    decisions: DecisionLog

    @property
    def run_dir(self) -> Path:
        """Where the control sockets lie."""

    @property
    def settings(self) -> Settings:
        """As they are now."""

    @property
    def slots(self) -> Mapping[str, object]:
        """The groups that a router serves."""

    def ready(self) -> bool:
        """Whether it takes requests."""

    def status(self) -> dict[str, Any]:
        """What it serves, and how it is."""

    def why(self, request_id: str) -> dict[str, Any] | None:
        """A remembered decision, explained."""

    def sample(self) -> metrics.Sample:
        """Its metrics."""

    def reload(self) -> None:
        """Look for newer routers now."""


def verbs(worker: Teller) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
    """What the control socket of one worker answers."""

    async def status(_: Mapping[str, Any]) -> Any:
        return worker.status()

    async def decisions(request: Mapping[str, Any]) -> Any:
        return [decision.as_dict() for decision in worker.decisions.recent(int(request.get("limit", 100)))]

    async def why(request: Mapping[str, Any]) -> Any:
        return await asyncio.to_thread(worker.why, str(request["request_id"]))

    async def sample(_: Mapping[str, Any]) -> Any:
        return worker.sample()

    async def reload(_: Mapping[str, Any]) -> Any:
        worker.reload()
        return {"worker": worker.number, "reloading": sorted(worker.slots)}

    return {"status": status, "decisions": decisions, "why": why, "metrics": sample, "reload": reload}


def reports(worker: Teller) -> dict[str, Report]:  # noqa: C901 (one small function a path)
    """The paths below `/appliance/`; whichever worker is asked answers for all."""

    async def live(_: Query) -> tuple[int, Any]:
        return 200, {"status": "live"}

    async def ready(_: Query) -> tuple[int, Any]:
        return (200, {"status": "ready"}) if worker.ready() else (503, {"status": "draining"})

    async def status(_: Query) -> tuple[int, Any]:
        workers = await _all(worker, "status")
        return 200, {"at": utc_now(), **condense(workers), "workers": workers}

    async def decisions(query: Query) -> tuple[int, Any]:
        limit = query.get("limit", ["100"])[-1]
        if not limit.isdecimal() or not 0 < int(limit) <= MAX_LIMIT:
            return 400, _error("limit", f"limit is a number from 1 to {MAX_LIMIT}")
        answers = await _all(worker, "decisions", limit=int(limit))
        merged = sorted((d for answer in answers for d in answer), key=lambda d: str(d["at"]), reverse=True)
        return 200, {"decisions": merged[: int(limit)]}

    async def why(query: Query) -> tuple[int, Any]:
        request_id = query.get("request_id", [""])[-1]
        if not request_id:
            return 400, _error("request_id", "name the request: ?request_id=...")
        found = next((answer for answer in await _all(worker, "why", request_id=request_id) if answer), None)
        return (200, found) if found else (404, _error("request_id", "no worker remembers that request"))

    async def overview(_: Query) -> tuple[int, Any]:
        return 200, await asyncio.to_thread(calendar.overview, worker.settings, datetime.now(UTC))

    async def prometheus(_: Query) -> tuple[int, Any]:
        return 200, metrics.render(await _all(worker, "metrics"))

    async def reload(_: Query) -> tuple[int, Any]:
        return 202, {"workers": await _all(worker, "reload")}

    return {
        "/appliance/live": Report(live, open=True),
        "/appliance/ready": Report(ready, open=True),
        "/appliance/status": Report(status),
        "/appliance/decisions": Report(decisions),
        "/appliance/overview": Report(overview),
        "/appliance/why": Report(why),
        "/appliance/metrics": Report(prometheus),
        "/appliance/reload": Report(reload, method="POST"),
    }


async def _all(worker: Teller, verb: str, **arguments: Any) -> list[Any]:
    """What every worker answers; this one needs no socket for it, so that on a crowded machine it answers at least."""
    mine = json.loads(json.dumps(await verbs(worker)[verb]({"verb": verb, **arguments}), default=str))
    own = control.socket_of(worker.run_dir, worker.number)
    return [mine, *await asyncio.to_thread(control.ask_others, worker.run_dir, own, verb, **arguments)]


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "appliance", "param": None, "code": code}}
