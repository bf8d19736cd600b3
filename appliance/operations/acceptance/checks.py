"""The checks of the acceptance: each makes its situation, looks, and says what it saw."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.artifact import SIGNATURE_NAME
from appliance.errors import ApplianceError
from appliance.operations.acceptance.bench import LOST, Answer, Bench
from appliance.operations.acceptance.traffic import PROMPTS
from appliance.operations.doctor.snapshot import Drift, Snapshot
from appliance.registry.settings import Credentials, S3Settings

LATENCY_GOAL_MS = 50.0  # the mission's bound for the 99th percentile of the decision
MODEL_SHARE = 0.9  # of the decisions under that load; a router that is always late would be quick, too
LOAD_S = 6.0
EXPORT_LIMIT_S = 60.0  # spans leave the gateway in batches, every few seconds
TELEMETRY = (
    "appliance_decisions_total",
    "appliance_selected_total",
    "appliance_decision_latency_ms",
    "appliance_router_serving",
)
SPAN = (  # the design's names
    "llm.routing.selected_model",
    "llm.routing.latency_ms",
    "llm.routing.strategy",
    "router.strategy",
    "router.score",
    "router.model_selected",
    "router.candidates_evaluated",
    "router.decision_outcome",
    "router.decision_reason",
    "router.latency_ms",
    "router.strategy_version",
    "router.fallback_triggered",
)
RECORD = (
    "request_id",
    "at",
    "group",
    "selected",
    "strategy",
    "outcome",
    "reason",
    "candidates",
    "excluded",
    "propensity",
    "prompt_digest",
    "latency_ms",
)


@dataclass(frozen=True)
class Result:
    """What a check saw.

    Attributes:
        name: of the requirement.
        requirement: what must hold.
        passed: whether it does.
        evidence: the values that show it.
    """

    name: str
    requirement: str
    passed: bool
    evidence: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return vars(self)


def hot_reload(bench: Bench) -> Result:
    """Take the router away and bring it back under load: each time it is verified, loaded, warmed up and swapped in."""
    signature = bench.router / SIGNATURE_NAME
    good = signature.read_bytes()
    before, rounds, answered = _swaps(bench), 3, True
    try:
        with bench.load() as answers:
            for _ in range(rounds):
                signature.unlink()
                answered &= bench.until(lambda: bench.status()["routers"]["acceptance"]["mode"] != "ml")
                signature.write_bytes(good)
                bench.report("/appliance/reload", "POST")
                answered &= bench.until(lambda: bench.status()["routers"]["acceptance"]["mode"] == "ml")
                time.sleep(LOAD_S / 5)
    finally:
        signature.write_bytes(good)  # the next check begins with a sound router, whatever happened here
    view = bench.status()["routers"]["acceptance"]
    failed, swaps = _failed(answers), _swaps(bench) - before
    return Result(
        "hot reload under load",
        "no request fails while a router is loaded and swapped in; all workers serve one digest afterwards",
        answered and not failed and swaps >= rounds and view["converged"],
        {"requests": len(answers), "failed": failed, "swaps": swaps, "digests": view["digests"]},
    )


def fallback(bench: Bench) -> Result:
    """Corrupt a file of the router, then repair it."""
    victim = max(bench.router.iterdir(), key=lambda path: (path.name != "router.yaml", path.stat().st_size))
    good = victim.read_bytes()
    with contextlib.ExitStack() as stack:
        answers = stack.enter_context(bench.load())
        stack.callback(victim.write_bytes, good)
        victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        noticed = bench.until(lambda: bench.status()["routers"]["acceptance"]["mode"] != "ml")
        problem = bench.status()["routers"]["acceptance"]["problem"] or {}
        bench.until(lambda: any(_by_weight(answer) for answer in answers))
        victim.write_bytes(good)
        recovered = bench.until(lambda: bench.status()["routers"]["acceptance"]["mode"] == "ml")
        time.sleep(1)
    by_weight = sum(map(_by_weight, answers))
    failed = _failed(answers)
    evidence = {
        "requests": len(answers), "failed": failed, "by_weight": by_weight, "refused_with": problem.get("code"),
        "file": victim.name, "recovered": recovered,
    }  # fmt: skip
    passed = noticed and recovered and not failed and by_weight > 0
    return Result("fallback", "a corrupted router is refused with a code; requests go on by weight", passed, evidence)


def latency(bench: Bench) -> Result:
    """The decision's time under a steady load."""
    bench.report("/appliance/decisions?limit=1")
    with bench.load(clients=2, pause_s=0.05) as answers:
        time.sleep(LOAD_S)
    decisions = json.loads(bench.report("/appliance/decisions?limit=1000")[1])["decisions"][: len(answers)]
    times = sorted(float(decision["latency_ms"]) for decision in decisions)
    by_model = sum(answer.by_model for answer in answers)
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))]
    return Result(
        "latency budget",
        f"99 of 100 routing decisions take less than {LATENCY_GOAL_MS:.0f} ms; {MODEL_SHARE:.0%} are the model's",
        p99 < LATENCY_GOAL_MS and not _failed(answers) and by_model >= MODEL_SHARE * len(answers) > 0,
        {
            "decisions": len(times), "by_model": by_model, "p50_ms": round(p50, 3), "p99_ms": round(p99, 3),
            "goal_ms": LATENCY_GOAL_MS,
            "deadline_ms": bench.chosen.routing.deadline_ms, "failed": _failed(answers),
        },
    )  # fmt: skip


def observability(bench: Bench) -> Result:
    """Is every decision told to those who look, those who count and those who trace; and the prompt to nobody?"""
    prompt = "acceptance marker 7fd1: which model answers this?"
    answer = bench.ask(prompt)
    metrics = bench.report("/appliance/metrics")[1]
    decisions = json.loads(bench.report("/appliance/decisions?limit=5")[1])["decisions"]
    record = decisions[0]
    lacking = [name for name in TELEMETRY if not re.search(rf"^{name}(_bucket)?\{{", metrics, re.MULTILINE)]
    lacking += [key for key in RECORD if key not in record]
    if record["selected"] != answer.deployment or not answer.by_model:
        lacking.append("a record of the request")
    same = ("router.request_id", record["request_id"])
    bench.until(lambda: bool(bench.collector.with_value(*same)), limit_s=EXPORT_LIMIT_S)
    span = bench.collector.with_value(*same)
    lacking += [name for name in SPAN if name not in span]
    everywhere = metrics + json.dumps(decisions) + (bench.directory / "gateway.log").read_text("utf-8", "replace")
    leaked = "7fd1" in everywhere
    return Result(
        "observability",
        "metrics, a decision record and a trace for every request; no prompt text in records, metrics or logs",
        not lacking and not leaked,
        {
            "lacking": lacking, "prompt_found": leaked, "last_reason": record["reason"],
            "trace": {name: span[name] for name in SPAN if name in span},
        },
    )  # fmt: skip


def isolation(bench: Bench, snapshot: Snapshot) -> Result:
    """Are the doors closed, as they are configured here: kernel locks, egress guard, and nothing reachable outside?"""
    running = snapshot.gateway.get("workers", []) if isinstance(snapshot.gateway, Mapping) else []
    locks = [worker.get("lockdown", {}) for worker in [*bench.status()["workers"], *running]]
    open_doors = [
        f"{name}: {each.get(name)}"
        for each in locks
        for name, sound in (("self_test", "refused"), ("landlock", None), ("seccomp", None))
        if (each.get(name) != sound if sound else each.get(name, "off") == "off")
    ]
    escaped = [attempt.target for attempt in snapshot.egress if attempt.escaped]
    evidence = {
        "lockdown": locks[0], "gateways": "the second, and the one that serves" if running else "the second",
        "open": open_doors, "tried": {a.target: a.outcome for a in snapshot.egress}, "escaped": escaped,
    }  # fmt: skip
    return Result(
        "network isolation", "the gateway reaches configured addresses alone", not open_doors and not escaped, evidence
    )


def ca_pinning(installed: Mapping[str, S3Settings]) -> Result:
    """A registry with a certificate of a foreign CA must be refused, one of the internal CA accepted.

    Args:
        installed: the registries that are configured here, whose settings must refuse the foreign one as well.
    """
    from appliance.operations.acceptance.foreign import two_registries

    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, two_registries(Path(name)) as servers:
        for kind, (port, ca_file) in servers.items():
            chosen = S3Settings(
                home="s3", endpoint=f"127.0.0.1:{port}", bucket="routers", ca_file=ca_file,
                credentials_file=Path(name) / "unused", attempts=1, connect_timeout_s=20, read_timeout_s=20,
            )  # fmt: skip
            outcomes[kind] = _shown(chosen)
        stranger = f"127.0.0.1:{servers['foreign'][0]}"
        for what, settings in installed.items():
            patient = {"endpoint": stranger, "attempts": 1, "connect_timeout_s": 20, "read_timeout_s": 20}
            outcomes[what] = _shown(settings.model_copy(update=patient))
    # the stand-in is no S3 server: whatever it answers after the handshake shows that the handshake was accepted
    internal = outcomes["internal"] not in {"REGISTRY_CERTIFICATE", "REGISTRY_TLS", "REGISTRY_UNREACHABLE"}
    refused = all(code == "REGISTRY_CERTIFICATE" for what, code in outcomes.items() if what != "internal")
    return Result(
        "internal CA pinning",
        "a registry of another CA is refused before a request is sent, by each configured registry's settings",
        internal and refused,
        outcomes,
    )


def _shown(chosen: S3Settings) -> str:
    """What becomes of a request with these settings."""
    from appliance.registry.s3 import S3Store

    try:
        S3Store(chosen, Credentials(access_key="acceptance", secret_key="acceptance")).get("x", max_bytes=10)  # noqa: S106
    except ApplianceError as error:
        return error.code
    return "accepted"


def degraded(bench: Bench) -> Result:
    """Stop one model server after the other; ask a group whose registry was never there."""
    outcomes: dict[str, Any] = {}
    failed = 0
    for name, each in list(bench.upstreams.items()):
        each.stop()
        try:
            answers = [bench.ask(prompt) for prompt in PROMPTS]
        finally:
            each.start()
        failed += _failed(answers)
        outcomes[name] = {"answered": sum(answer.status == 200 for answer in answers), "of": len(answers)}
        time.sleep(2.5)  # its cooldown
    lost = [bench.ask(prompt, LOST) for prompt in PROMPTS]
    by_weight = sum(map(_by_weight, lost))
    return Result(
        "degraded mode",
        "with one model server gone, the others answer every request; without a registry, all are answered by weight",
        not failed and by_weight == len(lost) and len(bench.upstreams) > 1,
        {"without": outcomes, "without a registry": {"by_weight": by_weight, "of": len(lost)}},
    )


def dependencies(snapshot: Snapshot, payload: Path) -> Result:
    """Installed files against the signed manifest, installed versions against the SBOM and the signed requirements."""
    drift = snapshot.drift
    requirement = "every installed file and version is what was signed, and the SBOM names it"
    if not isinstance(drift, Drift):
        said = drift.code if isinstance(drift, ApplianceError) else "no release is installed below the prefix"
        return Result("dependency integrity", requirement, False, {"drift": said})
    wanted = _requirements(payload)
    present = _installed(payload.parent / "env")
    installed = {name: present.get(name) for name in wanted}
    differing = {name: [wanted[name], installed[name]] for name in wanted if wanted[name] != installed[name]}
    named = _sbom(payload)
    unnamed = sorted(f"{name} {version}" for name, version in wanted.items() if version not in named.get(name, ()))
    clean = not (drift.changed or drift.missing or drift.foreign or drift.signature_problem)
    evidence = {
        "release": drift.release, "signer": drift.signer, "files": drift.compared, "changed": list(drift.changed),
        "missing": list(drift.missing), "foreign": list(drift.foreign), "distributions": len(wanted),
        "differing": differing, "sbom_components": len(named),
        "not_in_sbom": unnamed if named else "no SBOM is carried",
    }  # fmt: skip
    return Result("dependency integrity", requirement, clean and not differing and not unnamed, evidence)


BENCH_CHECKS: tuple[Callable[[Bench], Result], ...] = (
    hot_reload,
    fallback,
    latency,
    observability,
    degraded,
)


def _failed(answers: list[Answer]) -> int:
    return sum(answer.status != 200 for answer in answers)


def _by_weight(answer: Answer) -> bool:
    return answer.status == 200 and not answer.by_model


def _swaps(bench: Bench) -> int:
    return sum(int(worker["routers"]["acceptance"]["swaps"]) for worker in bench.status()["workers"])


def _requirements(payload: Path) -> dict[str, str]:
    lines = (payload / "requirements.txt").read_text("utf-8").splitlines() if payload.is_dir() else []
    pairs = (line.split(" ", 1)[0].partition("==") for line in lines if "==" in line)
    return {_normal(name): version.rstrip("\\").strip() for name, _, version in pairs}


def _sbom(payload: Path) -> dict[str, set[str]]:
    """Versions by name, of every component that a carried SBOM names, the release itself included."""
    found: dict[str, set[str]] = {}
    for path in payload.rglob("*.cdx.json"):
        document = json.loads(path.read_text("utf-8"))
        itself = document.get("metadata", {}).get("component")
        for each in [*([itself] if itself else []), *document.get("components", [])]:
            found.setdefault(_normal(each["name"]), set()).add(each.get("version", ""))
    return found


def _installed(environment: Path) -> dict[str, str]:
    site = [str(path) for path in environment.glob("lib/python*/site-packages")]
    return {_normal(each.name): each.version for each in importlib.metadata.distributions(path=site)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
