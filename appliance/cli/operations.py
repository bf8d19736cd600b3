"""The operator's verbs."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from appliance.cli.output import Json, refusals, show
from appliance.cli.serve import Config, default_config


def status(config: Config = default_config, as_json: Json = False) -> None:
    """What the gateway serves, on one screen."""
    from appliance import settings
    from appliance.operations.status import collect

    with refusals(as_json):
        report = collect(settings.load(config))
        show(report, as_json, lambda out: _print_status(out, report))


def _print_status(out: Console, report: dict[str, Any]) -> None:
    workers = report["workers"]
    state = "ready" if report["ready"] else "not ready"
    running = workers[0].get("release") or workers[0]["version"]
    out.print(f"gateway {running} (LiteLLM {workers[0]['litellm']}): {state}, {len(workers)} worker(s)")
    for name, group in report["groups"].items():
        out.print(f"group {name}: {group['routing']}" + (f" by {group['router']}" if group["router"] else ""))
        for deployment in group["deployments"]:
            name_and_model = f"  {deployment['id']:24} {deployment['model']:32}"
            out.print(
                f"{name_and_model} weight {deployment['weight']}{_resting(deployment, len(workers))}", markup=False
            )
        if group["candidate"]:
            tried = group["candidate"]
            out.print(
                f"  candidate {tried['router']}: {tried['stage']}, {tried['decisions']} decisions, "
                f"{tried['failures']} failed, agreement {tried['agreement']}",
                markup=False,
            )
    for name, router in report["routers"].items():
        serving = router["serving"]
        if serving:
            spread = "" if router["converged"] else "  workers differ!"
            out.print(
                f"router {name}: {serving['artifact']} ({serving['strategy']}) {serving['digest'][:12]} "
                f"from {serving['origin']}, signed by {serving['signed_by']}{spread}",
                markup=False,
            )
        else:
            out.print(f"router {name}: none; weighted round-robin serves", markup=False)
        if router["problem"]:
            problem = router["problem"]
            out.print(f"  refused {problem['code']}: {problem['cause']}\n  next: {problem['remedy']}", markup=False)
    for worker in workers:
        if live := worker.get("live"):
            out.print(_live(worker["worker"], live), markup=False)
    locks = workers[0]["lockdown"]
    out.print(
        f"connections to unknown destinations: {report['egress_refused']} "
        f"(self-test {locks['self_test']}, landlock {locks['landlock']}, seccomp {locks['seccomp']})"
    )
    for worker in workers:
        total = sum(item["count"] for item in worker["decisions"])
        by_model = sum(item["count"] for item in worker["decisions"] if item["reason"] == "best_score")
        breaker = worker["ml_path"]["breaker"]
        out.print(
            f"worker {worker['worker']}: pid {worker['pid']}, {total} decisions, {by_model} by a router, "
            f"breaker {breaker['state']}, {worker['ml_path']['mean_service_ms']} ms a prompt",
            markup=False,
        )


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


def _resting(deployment: dict[str, Any], workers: int) -> str:
    """Why a deployment gets no requests now, and until when; on how many workers, where not on all."""
    cooling, health = deployment["cooldown"], deployment["health"]
    where = "" if deployment["out_on"] == workers else f" (on {deployment['out_on']} of {workers} workers)"
    if cooling:
        return f"  cooling down after status {cooling['status_code']}, {cooling['left_s']} s left{where}"
    if health and health["state"] != "closed":
        return f"  {health['state']}: {health['last_reason']}, next try in {health['retry_in_s']} s{where}"
    return ""
