"""The operator's verbs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from appliance.cli.output import Json, hang, refusals, show
from appliance.cli.serve import Config, default_config
from appliance.registry.sidecar import NOTHING_TOLD

FEW = 4  # workers with a line of their own


def status(config: Config = default_config, as_json: Json = False) -> None:
    """What the gateway serves, on one screen."""
    from appliance import settings
    from appliance.operations.status import collect

    with refusals(as_json):
        report = collect(settings.load(config))
        show(report, as_json, lambda out: _print_status(out, report))


def _print_status(out: Console, report: dict[str, Any]) -> None:
    """The gateway, who routes, who answers, what is wrong; workers one by one only where they are few or not well."""
    workers = report["workers"]
    state = "ready" if report["ready"] else "not ready"
    running = workers[0].get("release") or workers[0]["version"]
    out.print(f"gateway {running} (LiteLLM {workers[0]['litellm']}): {state}, {len(workers)} worker(s)")
    for name, router in report["routers"].items():
        _print_router(out, name, router)
    for name, group in report["groups"].items():
        out.print(f"group {name}: {group['routing']}" + (f" by {group['router']}" if group["router"] else ""))
        for deployment in group["deployments"]:
            out.print(f"  {deployment['id']:22} {deployment['model']:32} weight {deployment['weight']}")
            if deployment["rest"]:
                hang(out, "    ", deployment["rest"])
        if tried := group["candidate"]:
            said = f"{tried['stage']}, {tried['decisions']} decisions, {tried['failures']} failed"
            out.print(f"  candidate {tried['router']}: {said}, agreement {tried['agreement']}")
    for worker in workers:
        if live := worker.get("live"):
            out.print(_live(worker["worker"], live))
    locks = workers[0]["lockdown"]
    guard = f"(self-test {locks['self_test']}, landlock {locks['landlock']}, seccomp {locks['seccomp']})"
    hang(out, "connections to unknown destinations: ", f"{report['egress_refused']} {guard}")
    _print_workers(out, workers)


def _print_router(out: Console, name: str, router: dict[str, Any]) -> None:
    label, serving, kept = f"router {name}: ", router["serving"], router["last_known_good"]
    if serving:
        spread = "" if router["converged"] else "; workers differ!"
        said = f"{serving['artifact']} ({serving['strategy']}) {serving['digest'][:12]} from {serving['origin']}"
        hang(out, label, f"{said}, signed by {serving['signed_by']} {_ago(serving['signed_at'])}{spread}")
    else:
        hang(out, label, "none; weighted round-robin serves")
    if kept and (serving is None or kept["digest"] != serving["digest"]):
        signed = f"signed by {kept['signed_by']} {_ago(kept['signed_at'])}"
        hang(out, "  last known good: ", f"{kept['artifact']} {kept['digest'][:12]}, {signed}")
    if channel := router["channel"]:
        hang(out, "  ", f"channel {channel['name']}: epoch {channel.get('epoch', 0)}; {_heard(channel)}")
    for channel in router["unfollowed"]:
        hang(out, "  ", f"comes from a folder, not from the sidecar's channel {channel['name']}; {_heard(channel)}")
    if problem := router["problem"]:
        hang(out, "  refused ", f"{problem['code']}: {problem['cause']}")
        hang(out, "  next: ", problem["remedy"])


def _heard(channel: dict[str, Any]) -> str:
    """When the registry last answered, whoever asked it, and why not since."""
    age, problem = channel.get("contact_age_s"), channel.get("problem")
    if age is not None:
        by = " the sidecar" if channel.get("heard_by") == "sidecar" else ""
        said = f"the registry answered{by} {_span(age)} ago"
    elif problem == NOTHING_TOLD:
        said = "whether the registry answers is not known"
    else:
        said = "the registry was never reached"
    return said + (f"; now {problem}" if problem else "")


def _print_workers(out: Console, workers: list[dict[str, Any]]) -> None:
    well = [worker for worker in workers if worker["ready"] and worker["ml_path"]["breaker"]["state"] == "closed"]
    told = workers if len(workers) <= FEW else [worker for worker in workers if worker not in well]
    for worker in told:
        total, by_model = _decided(worker)
        state = "" if worker["ready"] else "not ready, "
        hang(
            out,
            f"worker {worker['worker']}: ",
            f"{state}pid {worker['pid']}, {total} decisions, {by_model} by a router, "
            f"breaker {worker['ml_path']['breaker']['state']}, {worker['ml_path']['mean_service_ms']} ms a prompt",
        )
    if len(told) < len(workers):
        total, by_model = (sum(each) for each in zip(*map(_decided, well), strict=True))
        hang(out, f"{len(well)} workers well: ", f"{total} decisions, {by_model} by a router, breakers closed")


def _decided(worker: dict[str, Any]) -> tuple[int, int]:
    """Decisions since the start, and those of a router."""
    counts = worker["decisions"]
    return sum(each["count"] for each in counts), sum(c["count"] for c in counts if c["reason"] == "best_score")


def _ago(signed_at: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(signed_at)).total_seconds()
    return f"{_span(max(seconds, 0))} ago"


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _live(worker: int, live: dict[str, Any]) -> str:
    """Which revision of the live configuration runs, and what keeps the next one out."""
    said = f"live configuration of worker {worker}: revision {live['revision']} from {live['source']}"
    if live["contact_age_s"] is not None:
        said += f", last heard {live['contact_age_s']:.0f} s ago"
    for refused in live["refused"]:
        said += f"\n  refused {refused.get('table')} {refused.get('key')}: {refused.get('cause')}"
    if problem := live["problem"]:
        said += f"\n  {problem['code']}: {problem['cause']}\n  next: {problem['remedy']}"
    return said
