"""The gateway, its routers and breakers, its model servers, its registry."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from appliance.errors import ApplianceError
from appliance.operations.doctor.finding import Finding, critical, fine, unknown, warning
from appliance.operations.doctor.snapshot import Snapshot
from appliance.registry.sidecar import NOTHING_TOLD, QUIET_AFTER

REGISTRY_WARNING = QUIET_AFTER
REGISTRY_CRITICAL = timedelta(days=1)
# nothing newer was refused: nobody answered, which `followed` judges by its age
OUT_OF_REACH = frozenset(
    {
        "REGISTRY_UNREACHABLE",
        "REGISTRY_TIMEOUT",
        "REGISTRY_INTERRUPTED",
        "REGISTRY_BUSY",
        "REGISTRY_DEADLINE",
        "REGISTRY_BREAKER_OPEN",
    }
)
CHANNEL_WARNING = timedelta(days=14)
CLOCKS_DIFFER = timedelta(minutes=5)


def gateway(snapshot: Snapshot) -> Iterator[Finding]:
    """Does it answer, is it ready?"""
    name = "gateway"
    status = snapshot.gateway
    if isinstance(status, ApplianceError):
        yield critical(name, "OPERATION_GATEWAY_DOWN", status.cause, remedy=status.remedy, refusal=status.code)
    elif not status["ready"]:
        waiting = [worker["worker"] for worker in status["workers"] if not worker["ready"]]
        yield warning(name, "OPERATION_GATEWAY_NOT_READY", f"workers {waiting} are not ready", workers=waiting)
    else:
        version = status["workers"][0]["version"]
        yield fine(name, f"version {version} serves with {len(status['workers'])} worker(s)", version=version)


def routers(snapshot: Snapshot) -> Iterator[Finding]:
    """Do the routers serve, everywhere the same one?"""
    name = "routers"
    status = snapshot.gateway
    if isinstance(status, ApplianceError):
        return
    for router, view in status["routers"].items():
        problem = view.get("problem") or {}
        evidence: dict[str, Any] = {"router": router, "refusal": problem.get("code"), "cause": problem.get("cause")}
        if not view["serving"]:
            text = f"router {router} serves nothing: requests are routed by weight"
            yield critical(name, "OPERATION_ROUTER_STATIC", text, remedy=problem.get("remedy"), **evidence)
        elif problem and problem.get("code") not in OUT_OF_REACH:
            text = f"router {router} goes on with {view['serving']['artifact']}: the newer one was refused"
            yield warning(name, "OPERATION_ROUTER_REFUSED", text, remedy=problem.get("remedy"), **evidence)
        elif not view["converged"]:
            text = f"the workers serve different versions of router {router}"
            yield warning(name, "OPERATION_ROUTER_DIFFERS", text, digests=view["digests"])
        else:
            yield fine(name, f"router {router} serves {view['serving']['artifact']}", digests=view["digests"])


def breaker(snapshot: Snapshot) -> Iterator[Finding]:
    """Is the ML path open for requests?"""
    name = "breaker"
    if isinstance(snapshot.gateway, ApplianceError):
        return
    for worker in snapshot.gateway["workers"]:
        view = worker["ml_path"]["breaker"]
        label = f"worker {worker['worker']}: the ML path's breaker is {view['state']}"
        if view["state"] == "closed":
            yield fine(name, label, opened=view["opened_count"])
        else:
            yield warning(
                name, "OPERATION_BREAKER_OPEN", label, reason=view["last_reason"], retry_in_s=view["retry_in_s"]
            )


def deployments(snapshot: Snapshot) -> Iterator[Finding]:
    """Does every group have a model server that lives?"""
    name = "deployments"
    if isinstance(snapshot.gateway, ApplianceError):
        return
    for group, view in snapshot.gateway["groups"].items():
        members = view["deployments"]
        out = [member["id"] for member in members if member["out_on"]]
        evidence: dict[str, Any] = {"ids": out, "why": [f"{m['id']}: {m['rest']}" for m in members if m["out_on"]]}
        if out and len(out) == len(members):
            yield critical(name, "OPERATION_COOLDOWN", f"no deployment of {group} is in use", **evidence)
        elif out:
            text = f"{len(out)} of {len(members)} deployments of {group} are left out"
            yield warning(name, "OPERATION_COOLDOWN", text, **evidence)
        else:
            yield fine(name, f"all {len(members)} deployments of {group} are in use")


def registry(snapshot: Snapshot) -> Iterator[Finding]:
    """When did the registry last answer, and do its pointers end?"""
    name = "registry"
    if isinstance(snapshot.channels, ApplianceError):
        yield unknown(name, snapshot.channels)
        return
    for channel in snapshot.channels:
        age = None if channel.contact is None else snapshot.at - channel.contact
        evidence: dict[str, Any] = {
            "channel": channel.name,
            "version": channel.version,
            "epoch": channel.epoch,
            "contact": channel.contact,
        }
        if age is None or age > REGISTRY_CRITICAL:
            since = "was never reached" if age is None else f"last answered {_hours(age)} ago"
            yield critical(name, "OPERATION_REGISTRY_AGE", f"the registry of {channel.name} {since}", **evidence)
        elif age > REGISTRY_WARNING:
            text = f"the registry of {channel.name} last answered {_hours(age)} ago"
            yield warning(name, "OPERATION_REGISTRY_AGE", text, **evidence)
        elif age < -CLOCKS_DIFFER:
            text = f"the registry of {channel.name} last answered {_hours(-age)} ahead of the clock: who knows when"
            yield warning(name, "OPERATION_REGISTRY_AGE", text, **evidence)
        else:
            yield fine(name, f"channel {channel.name} stands at version {channel.version}", **evidence)
        if channel.expires is not None and channel.expires - snapshot.time < CHANNEL_WARNING:
            text = f"the pointer of channel {channel.name} ends at {channel.expires:%Y-%m-%d %H:%M}"
            yield warning(name, "OPERATION_CHANNEL_EXPIRES", text, channel=channel.name, expires=channel.expires)


def followed(snapshot: Snapshot) -> Iterator[Finding]:
    """When did the registry last answer a gateway that follows a channel, itself or through a sidecar elsewhere?"""
    name = "registry"
    if isinstance(snapshot.gateway, ApplianceError):
        return
    here = () if isinstance(snapshot.channels, ApplianceError) else [channel.name for channel in snapshot.channels]
    for worker in snapshot.gateway["workers"]:
        for router, view in worker.get("routers", {}).items():
            channel = view.get("channel")
            if not channel or (channel.get("heard_by") == "sidecar" and channel["name"] in here):  # `registry` told it
                continue
            seconds = channel.get("contact_age_s")
            age = None if seconds is None else timedelta(seconds=float(seconds))
            evidence: dict[str, Any] = {"worker": worker["worker"], "router": router, "problem": channel.get("problem")}
            since = "was never reached" if age is None else f"last answered {_hours(age)} ago"
            if age is None and channel.get("problem") == NOTHING_TOLD:
                since = "answers its sidecar, or does not: that is not known"
            text = f"the registry of router {router} {since}"
            if age is None or age > REGISTRY_CRITICAL:
                yield critical(name, "OPERATION_REGISTRY_AGE", text, **evidence)
            elif age > REGISTRY_WARNING:
                yield warning(name, "OPERATION_REGISTRY_AGE", text, **evidence)
            else:
                yield fine(name, f"router {router} follows channel {channel.get('name')}", **evidence)


def _hours(age: timedelta) -> str:
    hours = age.total_seconds() / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
