"""What all workers together say: one answer for the command line, the doctor, the status page and whoever asks."""

from __future__ import annotations

from typing import Any


def condense(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """The workers' reports in one.

    Returns:
        `ready`, `converged` (whether all workers serve the same digests), `egress_refused` (attempts to connect
        elsewhere than configured, over all workers), `routers` (name -> mode, digests over all workers, problem, the
        last known good one, the channel's worst view, the sidecar's channels that it does not follow), `groups` (with
        the worst view of every deployment).
    """
    routers = {name: _router(name, workers) for name in workers[0]["routers"]}
    return {
        "ready": all(worker["ready"] for worker in workers),
        "converged": all(router["converged"] for router in routers.values()),
        "egress_refused": sum(worker["egress"]["refused"] for worker in workers),
        "routers": routers,
        "groups": {name: _group(name, workers) for name in workers[0]["groups"]},
    }


def _router(name: str, workers: list[dict[str, Any]]) -> dict[str, Any]:
    views = [worker["routers"][name] for worker in workers if name in worker["routers"]]
    digests = sorted({view["serving"]["digest"] if view["serving"] else "" for view in views})
    static = [view for view in views if view["mode"] != "ml"]
    channels = [view["channel"] for view in views if view.get("channel")]
    return {
        "mode": static[0]["mode"] if static else "ml",
        "digests": [digest for digest in digests if digest],
        "converged": len(digests) == 1,
        "serving": next((view["serving"] for view in views if view["serving"]), None),
        "last_known_good": next((kept for view in views if (kept := view.get("last_known_good"))), None),
        "channel": max(channels, key=_staleness, default=None),
        "unfollowed": next((view["unfollowed"] for view in views if view.get("unfollowed")), []),
        "problem": next((view["problem"] for view in views if view["problem"]), None),
    }


def _staleness(channel: dict[str, Any]) -> tuple[bool, float]:
    age = channel.get("contact_age_s")
    return bool(channel.get("problem")), float("inf") if age is None else age


def _group(name: str, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """A group as all workers see it: each learns for itself which upstream is out, so the worst view is told.

    `out_on` of a deployment counts the workers that keep it out now, `rest` says why and until when.
    """
    views = [worker["groups"][name] for worker in workers if name in worker["groups"]]
    seen: dict[str, list[dict[str, Any]]] = {}
    for view in views:
        for deployment in view["deployments"]:
            seen.setdefault(deployment["id"], []).append(deployment)
    static = [view for view in views if view["routing"] != "ml"]
    deployments = []
    for each in seen.values():
        out_on = sum(out(deployment) > 0 for deployment in each)
        worst = max(each, key=out)
        deployments.append({**worst, "out_on": out_on, "rest": _rest(worst, out_on, len(workers))})
    return {**(static or views)[0], "deployments": deployments}


def out(deployment: dict[str, Any]) -> int:
    """How far out of service a worker sees a deployment: 0 not at all."""
    health = deployment["health"]
    state = {"open": 2, "half-open": 1}.get(health["state"], 0) if health else 0
    return max(state, 3 if deployment["cooldown"] else 0)


def _rest(deployment: dict[str, Any], out_on: int, workers: int) -> str:
    """Why a deployment gets no requests now, and until when; on how many workers, where not on all."""
    cooling, health = deployment["cooldown"], deployment["health"]
    where = "" if out_on == workers else f" (on {out_on} of {workers} workers)"
    if cooling:
        return f"cooling down after status {cooling['status_code']}, {cooling['left_s']} s left{where}"
    if health and health["state"] != "closed":
        left = health["retry_in_s"]
        again = f"next try in {left:.1f} s" if left > 0 else "tried again with the next request"
        return f"{health['state']}: {health['last_reason']}, {again}{where}"
    return ""
