"""What the gateway serves: one answer for all its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import FileError, GatewayError
from appliance.files import locked
from appliance.gateway import control
from appliance.settings import Settings


def collect(settings: Settings) -> dict[str, Any]:
    """Ask every worker and condense.

    Returns:
        `workers` (each in full), `routers` (name -> mode, digests over all workers, problem), `groups` (with the
        worst view of every deployment), `converged` (whether all workers serve the same digests),
        `egress_refused` (attempts to connect elsewhere than configured, over all workers).

    Raises:
        GatewayError: GATEWAY_NOT_RUNNING, GATEWAY_BOOTING.
    """
    run_dir = settings.state_dir / "run"
    try:
        workers = control.ask_all(run_dir, "status")
    except GatewayError:
        if _is_held(run_dir / "lock"):
            raise GatewayError("GATEWAY_BOOTING", "the gateway has started and does not answer yet") from None
        raise
    return {"workers": workers, **condense(workers)}


def _is_held(lock: Path) -> bool:
    """Whether a gateway holds its state directory."""
    if not lock.exists():
        return False
    try:
        with locked(lock, wait=False):
            return False
    except FileError as error:
        return error.code == "FILE_LOCKED"


def condense(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """What all workers together say of routers and groups."""
    routers: dict[str, Any] = {}
    for name in workers[0]["routers"]:
        views = [worker["routers"][name] for worker in workers if name in worker["routers"]]
        digests = sorted({view["serving"]["digest"] if view["serving"] else "" for view in views})
        static = [view for view in views if view["mode"] != "ml"]
        routers[name] = {
            "mode": static[0]["mode"] if static else "ml",
            "digests": [digest for digest in digests if digest],
            "converged": len(digests) == 1,
            "serving": next((view["serving"] for view in views if view["serving"]), None),
            "problem": next((view["problem"] for view in views if view["problem"]), None),
        }
    return {
        "ready": all(worker["ready"] for worker in workers),
        "converged": all(router["converged"] for router in routers.values()),
        "egress_refused": sum(worker["egress"]["refused"] for worker in workers),
        "routers": routers,
        "groups": {name: _group(name, workers) for name in workers[0]["groups"]},
    }


def _group(name: str, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """A group as all workers see it: each learns for itself which upstream is out, so the worst view is told.

    `out_on` of a deployment counts the workers that keep it out now.
    """
    views = [worker["groups"][name] for worker in workers if name in worker["groups"]]
    seen: dict[str, list[dict[str, Any]]] = {}
    for view in views:
        for deployment in view["deployments"]:
            seen.setdefault(deployment["id"], []).append(deployment)
    static = [view for view in views if view["routing"] != "ml"]
    return {
        **(static or views)[0],
        "deployments": [
            {**_worst(each), "out_on": sum(_out(deployment) > 0 for deployment in each)} for each in seen.values()
        ],
    }


def _worst(views: list[dict[str, Any]]) -> dict[str, Any]:
    return max(views, key=_out)


def _out(deployment: dict[str, Any]) -> int:
    """How far out of service a worker sees a deployment: 0 not at all."""
    health = deployment["health"]
    state = {"open": 2, "half-open": 1}.get(health["state"], 0) if health else 0
    return max(state, 3 if deployment["cooldown"] else 0)
