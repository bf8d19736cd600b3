"""The gateway beside plain LiteLLM (simple-shuffle) on the same configuration, in one run: ratios, not absolutes.

    python -m benchmarks.gateway                     test encoder that takes as long as a sentence does
    python -m benchmarks.gateway --trust DIR --encoder DIR --router DIR      a real one

Boots take turns between the two, and so do many short phases: what else the machine does hits both alike, and every
figure comes with the interval that the rounds give (`paired`). Processor time is measured beside wall time, because
other work hardly touches it. Latencies and decisions are those at the fixed rate, timeouts included. Raw numbers go to
benchmarks/results/ (not in git). Prompts are all different, so that no cache helps. Five to six minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.gateway_load import Client, Load
from benchmarks.paired import Phase, added, figure, of_ours, ratio
from tests.support.gateway import gateway
from tests.support.ports import free_port
from tests.support.routing import zone
from tests.support.trust import make_authority

PLAIN = """
import os, sys
import uvicorn
app, workers = "litellm.proxy.proxy_server:app", int(sys.argv[2])
if workers == 1:
    from litellm.proxy.proxy_server import app
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), workers=workers, log_level="warning", access_log=False)
"""
UPSTREAM = (
    "from benchmarks.gateway_load import serve_upstream; import asyncio, sys;"
    "asyncio.run(serve_upstream(int(sys.argv[1])))"
)
KEY = "sk-benchmark-0123456789abcdefghijklmnop"
Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Server:
    """A running server under test.

    Attributes:
        url: of it.
        pid: of its first process.
        client: counts its prompts on from phase to phase, so that none is ever repeated.
        boot_s: seconds from start to ready.
        boot_cpu_s: processor seconds until then.
        decisions: the records of its last so many decisions, made by the router or not; none of plain LiteLLM.
    """

    url: str
    pid: int
    client: Client
    boot_s: float
    boot_cpu_s: float
    decisions: Callable[[int], list[dict[str, Any]]]

    def under(self, load: Callable[[], Awaitable[Load]]) -> Phase:
        """One load, with the processor time that a request of it took."""
        before = cpu_s(self.pid)
        done = asyncio.run(_await(load))
        spent_ms = (cpu_s(self.pid) - before) * 1000
        return {**done.as_dict(), "cpu_ms_per_request": round(spent_ms / max(1, len(done.latencies_ms)), 2)}


async def _await(load: Callable[[], Awaitable[Load]]) -> Load:
    return await load()


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and its children so far, all their threads."""
    ticks, children = 0, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (str(pid), *children):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def process(*command: str, environment: dict[str, str] | None = None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is stopped at the end of the block."""
    with open(log, "ab") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()


def wait_ready(url: str) -> None:
    """Until a path answers 200."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        time.sleep(0.02)
    raise TimeoutError(url)


@contextlib.contextmanager
def plain_server(home: Path, entries: Entries, words: int, workers: int) -> Iterator[Server]:
    """LiteLLM by itself on the deployments."""
    port, config = free_port(), home / "plain.yaml"
    document = {"model_list": entries, "router_settings": {"num_retries": 2, "routing_strategy": "simple-shuffle"}}
    config.write_text(yaml.safe_dump(document))
    environment = {
        "CONFIG_FILE_PATH": str(config), "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR",
    }  # fmt: skip
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    command = (sys.executable, "-c", PLAIN, str(port), str(workers))
    with process(*command, environment=environment, log=home / "plain.log") as running:
        wait_ready(f"{url}/health/readiness")
        boot = time.monotonic() - started
        yield Server(url, running.pid, Client(url, KEY, words), boot, cpu_s(running.pid), lambda _: [])


@contextlib.contextmanager
def our_server(home: Path, entries: Entries, words: int, sections: dict[str, Any]) -> Iterator[Server]:
    """The appliance on the same deployments."""
    started = time.monotonic()
    with gateway(home / "gateway", entries, tls=False, wait=False, **sections) as running:
        wait_ready(f"{running.url}/health/readiness")
        boot, cpu = time.monotonic() - started, cpu_s(running.process.pid)

        def decisions(limit: int) -> list[dict[str, Any]]:
            got: list[dict[str, Any]] = running.client.get("/appliance/decisions", params={"limit": limit}).json()[
                "decisions"
            ]
            return got

        yield Server(running.url, running.process.pid, Client(running.url, running.key, words), boot, cpu, decisions)


def deployments(ports: list[int], labels: list[str]) -> Entries:
    """Two deployments of one group, under the names that the router's labels stand for."""
    return [
        {
            "model_name": "chat",
            "litellm_params": {
                "model": label if "/" in label else f"openai/{label}",
                "api_base": f"http://127.0.0.1:{port}/v1",
                "api_key": "none",
            },
            "model_info": {"id": label},
        }
        for port, label in zip(ports, labels, strict=True)
    ]


def ml_sections(home: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The sections of appliance.yaml that turn routing models on, and the two names that the router chooses from."""
    if arguments.router:
        trust, encoder, router = arguments.trust, arguments.encoder, arguments.router
        labels = list(yaml.safe_load((Path(router) / "router.yaml").read_text())["labels"].values())[:2]
    else:
        labels = ["m0", "m1"]
        here = zone(home / "zone", make_authority(home / "ca"), labels={"a": "m0", "b": "m1"}, work=1)
        here.put()
        trust, encoder, router = here.directory / "trust", here.directory / "encoder", here.router_directory
    return {
        "listen": {"workers": arguments.workers},
        "trust": {"store": str(trust)},
        "routing": {
            "encoders": [str(encoder)],
            "routers": {"default": {"directory": str(router), "required": True}},
            "groups": {"chat": {"strategy": "ml", "router": "default"}},
        },
    }, labels


def run(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every phase; returns the document of the result file."""
    ml, labels = ml_sections(home, arguments)
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as held:
        for port in ports:
            held.enter_context(process(sys.executable, "-c", UPSTREAM, str(port), log=home / "upstream.log"))
        entries = deployments(ports, labels)
        starts: dict[str, Callable[[], contextlib.AbstractContextManager[Server]]] = {
            "plain": partial(plain_server, home, entries, arguments.words, arguments.workers),
            "appliance": partial(our_server, home, entries, arguments.words, ml),
        }
        boots: dict[str, list[Server]] = {name: [] for name in starts}
        for _ in range(arguments.boots - 1):
            for name, start in starts.items():
                with start() as server:
                    boots[name].append(server)
        for name, start in starts.items():
            boots[name].append(held.enter_context(start()))
        servers = {name: started[-1] for name, started in boots.items()}
        measured = _phases(servers, arguments)
        capacity = statistics.median(plain["per_second"] for _, plain in measured["throughput"])
        ours = servers["appliance"]
        overload = ours.under(partial(ours.client.opened, min(arguments.seconds, 5), 2 * capacity))
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()
        },
        "boots": {
            name: {
                "boot_s": [round(server.boot_s, 2) for server in started],
                "boot_cpu_s": [round(server.boot_cpu_s, 2) for server in started],
            }
            for name, started in boots.items()
        },
        **measured,
        "overload": overload,
        "figures": _figures(boots, measured, overload),
    }  # fmt: skip


def _phases(servers: dict[str, Server], arguments: argparse.Namespace) -> dict[str, list[tuple[Phase, Phase]]]:
    """Every round of each load: (ours, plain). Who begins changes from round to round."""
    measured: dict[str, list[tuple[Phase, Phase]]] = {"throughput": [], "steady": []}
    for server in servers.values():
        asyncio.run(server.client.closed(2, 4))  # warm
    for number in range(arguments.rounds):
        turn = ["appliance", "plain"] if number % 2 else ["plain", "appliance"]
        for kind, rounds in measured.items():
            phases = {}
            for name in turn:
                server = servers[name]
                load = (
                    partial(server.client.closed, arguments.seconds, arguments.clients)
                    if kind == "throughput"
                    else partial(server.client.opened, arguments.seconds, arguments.rate)
                )
                phases[name] = server.under(load)
                made = server.decisions(min(1000, phases[name]["requests"]))
                phases[name]["decision_ms"] = [decision["latency_ms"] for decision in made]
            rounds.append((phases["appliance"], phases["plain"]))
    return measured


def _figures(
    boots: dict[str, list[Server]], measured: dict[str, list[tuple[Phase, Phase]]], overload: Phase
) -> dict[str, Any]:
    def boot(name: str, attribute: str) -> float:
        return statistics.median(getattr(server, attribute) for server in boots[name])

    throughput, steady = measured["throughput"], measured["steady"]
    ours = [phase for phase, _ in (*throughput, *steady)]
    by_model = sum(count for phase in ours for how, count in phase["routing"].items() if how.startswith("ml:"))
    return {
        "boot": round(boot("appliance", "boot_s") / boot("plain", "boot_s"), 3),
        "boot_cpu": round(boot("appliance", "boot_cpu_s") / boot("plain", "boot_cpu_s"), 3),
        "throughput": figure(throughput, ratio("per_second")).as_dict(),
        "cpu_per_request": figure(throughput, ratio("cpu_ms_per_request")).as_dict(),
        "p50_added_ms": figure(steady, added(0.5)).as_dict(),
        "p99_added_ms": figure(steady, added(0.99)).as_dict(),
        "decision_p50_ms": figure(steady, of_ours("decision_ms", 0.5)).as_dict(),
        "decision_p99_ms": figure(steady, of_ours("decision_ms", 0.99)).as_dict(),
        "decided_by_model": round(by_model / sum(phase["requests"] for phase in ours), 3),
        "errors": sum(phase["errors"] for phase in ours),
        "plain_per_second": round(statistics.median(plain["per_second"] for _, plain in throughput), 1),
        "overload_errors": overload["errors"],
        "overload_routing": overload["routing"],
    }


def main() -> None:
    """Measure, write the result file, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trust", "encoder", "router"):
        parser.add_argument(f"--{name}", type=lambda text: str(Path(text).absolute()))
    parser.add_argument("--seconds", type=float, default=4, help="of one phase")
    parser.add_argument("--rounds", type=int, default=14, help="of each phase, taking turns")
    parser.add_argument("--boots", type=int, default=3, help="starts of each server, taking turns; the median counts")
    parser.add_argument("--rate", type=float, default=50, help="arrivals a second of the steady load")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of either server")
    parser.add_argument("--clients", type=int, default=4, help="that keep the server busy for throughput")
    parser.add_argument("--words", type=int, default=12, help="words of a prompt")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result["figures"], indent=2))
    if not result["figures"]["decided_by_model"]:
        raise SystemExit("no decision was made by the router: nothing was measured")


if __name__ == "__main__":
    main()
