"""The gateway beside plain LiteLLM (simple-shuffle) on the same configuration, in one run: ratios, not absolutes.

    python -m benchmarks.gateway                     tiny test encoder
    python -m benchmarks.gateway --trust DIR --encoder DIR --router DIR      a real one

Raw numbers go to benchmarks/results/ (not in git). Prompts are all different, so that no cache helps.
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.gateway import free_port, gateway
from tests.support.routing import zone
from tests.support.trust import make_authority

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()  # fmt: skip
PLAIN = """
import os, sys
import uvicorn
from litellm.proxy.proxy_server import app
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
UPSTREAM = (
    "from benchmarks.gateway import serve_upstream; import asyncio, sys; asyncio.run(serve_upstream(int(sys.argv[1])))"
)
KEY = "sk-benchmark-0123456789abcdefghijklmnop"


class _Upstream(asyncio.Protocol):
    """As little HTTP as an upstream needs: the load shall be the gateway's."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(ANSWER), ANSWER)
            )


async def serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


@contextlib.contextmanager
def process(*command: str, environment: dict[str, str] | None = None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
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


@dataclass
class Load:
    """One measured load."""

    latencies_ms: list[float]
    errors: int
    seconds: float
    routing: Counter[str]

    def quantile(self, share: float) -> float:
        """Latency in milliseconds that `share` of the requests stay below."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "requests": len(self.latencies_ms),
            "errors": self.errors,
            "per_second": round(len(self.latencies_ms) / self.seconds, 1),
            "p50_ms": round(self.quantile(0.5), 2),
            "p99_ms": round(self.quantile(0.99), 2),
            "routing": dict(self.routing),
        }


class Client:
    """Sends chat completions; every prompt is new."""

    def __init__(self, url: str, key: str, words: int) -> None:
        self._url, self._headers, self._words = f"{url}/v1/chat/completions", {"authorization": f"Bearer {key}"}, words
        self._sent = 0

    async def _one(self, session: aiohttp.ClientSession, load: Load) -> None:
        self._sent += 1
        prompt = f"easy what is {self._sent} " + "the capital of " * (self._words // 3)
        started = time.perf_counter()
        body = {"model": "chat", "messages": [{"role": "user", "content": prompt}]}
        try:
            async with session.post(self._url, json=body, headers=self._headers) as response:
                await response.read()
                load.errors += response.status != 200
                load.routing[response.headers.get("x-appliance-routing", "plain")] += 1
        except aiohttp.ClientError:
            load.errors += 1
        load.latencies_ms.append((time.perf_counter() - started) * 1000)

    async def closed(self, seconds: float, clients: int) -> Load:
        """`clients` that ask again as soon as they are answered."""
        load = Load([], 0, seconds, Counter())
        end = time.perf_counter() + seconds

        async def ask(session: aiohttp.ClientSession) -> None:
            while time.perf_counter() < end:
                await self._one(session, load)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(ask(session) for _ in range(clients)))
        return load

    async def opened(self, seconds: float, per_second: float) -> Load:
        """Arrivals at a fixed rate, whatever the answers do."""
        load = Load([], 0, seconds, Counter())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            tasks, start = [], time.perf_counter()
            for n in range(int(seconds * per_second)):
                await asyncio.sleep(max(0.0, start + n / per_second - time.perf_counter()))
                tasks.append(asyncio.create_task(self._one(session, load)))
            await asyncio.gather(*tasks)
        return load


def wait_ready(url: str, path: str) -> float:
    import httpx

    started = time.monotonic()
    while time.monotonic() - started < 120:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}{path}", timeout=2, trust_env=False).status_code == 200:
                return time.monotonic() - started
        time.sleep(0.05)
    raise TimeoutError(url)


def measure(url: str, key: str, arguments: argparse.Namespace, *, overload_at: float | None) -> dict[str, Any]:
    client = Client(url, key, arguments.words)
    asyncio.run(client.closed(2, 4))  # warm
    result = {
        "throughput": asyncio.run(client.closed(arguments.seconds, 16)).as_dict(),
        "steady": asyncio.run(client.opened(arguments.seconds, arguments.rate)).as_dict(),
    }
    if overload_at:
        result["overload"] = asyncio.run(client.opened(min(arguments.seconds, 5), overload_at)).as_dict()
    return result


def deployments(ports: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "model_name": "chat",
            "litellm_params": {"model": f"openai/m{n}", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "none"},
            "model_info": {"id": f"m{n}"},
        }
        for n, port in enumerate(ports)
    ]


def sections(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.router:
        trust, encoder, router = arguments.trust, arguments.encoder, arguments.router
        labels = list(yaml.safe_load((Path(router) / "router.yaml").read_text())["labels"].values())
    else:
        here = zone(home / "zone", make_authority(home / "ca"), labels={"a": "openai/m0", "b": "openai/m1"}, work=2)
        here.put()
        trust, encoder, router, labels = here.directory / "trust", here.directory / "encoder", here.router_directory, []
    arguments.labels = labels
    return {
        "trust": {"store": str(trust)},
        "routing": {
            "encoders": [str(encoder)],
            "routers": {"default": {"directory": str(router), "required": True}},
            "groups": {"chat": {"strategy": "ml", "router": "default"}},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trust", "encoder", "router"):
        parser.add_argument(f"--{name}", type=lambda text: str(Path(text).absolute()))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=50, help="arrivals a second of the steady load")
    parser.add_argument("--words", type=int, default=12, help="words of a prompt")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        home = Path(folder)
        ports = [free_port(), free_port()]
        for port in ports:
            held.enter_context(process(sys.executable, "-c", UPSTREAM, str(port), log=home / "upstream.log"))
        ml = sections(home, arguments)
        entries = deployments(ports)
        for entry, label in zip(entries, arguments.labels, strict=False):
            entry["litellm_params"]["model"] = label if "/" in label else f"openai/{label}"
            entry["model_info"]["id"] = label
        result = run(home, entries, ml, arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result["ratios"], indent=2))


def run(home: Path, entries: list[dict[str, Any]], ml: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    plain_port = free_port()
    plain_config = home / "plain.yaml"
    plain_config.write_text(
        yaml.safe_dump(
            {"model_list": entries, "router_settings": {"num_retries": 2, "routing_strategy": "simple-shuffle"}}
        )
    )
    environment = {
        "CONFIG_FILE_PATH": str(plain_config), "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR",
    }  # fmt: skip
    url = f"http://127.0.0.1:{plain_port}"
    with process(sys.executable, "-c", PLAIN, str(plain_port), environment=environment, log=home / "plain.log"):
        plain_boot = wait_ready(url, "/health/liveliness")
        plain = measure(url, KEY, arguments, overload_at=None)
    started = time.monotonic()
    with gateway(home / "gateway", entries, tls=False, **ml) as running:
        boot = time.monotonic() - started
        capacity = plain["throughput"]["per_second"]
        ours = measure(running.url, running.key, arguments, overload_at=2 * capacity)
        decided = running.client.get("/appliance/decisions", params={"limit": 1000}).json()["decisions"]
        status = running.status()
    overhead = sorted(d["latency_ms"] for d in decided if d["reason"] == "best_score")
    if not overhead:
        raise SystemExit("no decision was made by the router: nothing was measured")
    return {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "plain": {"boot_s": round(plain_boot, 2), **plain},
        "appliance": {"boot_s": round(boot, 2), **ours, "ml_path": status["workers"][0]["ml_path"]},
        "ratios": {
            "boot": round(boot / plain_boot, 3),
            "throughput": round(ours["throughput"]["per_second"] / plain["throughput"]["per_second"], 3),
            "p99_added_ms": round(ours["steady"]["p99_ms"] - plain["steady"]["p99_ms"], 2),
            "decision_p50_ms": round(statistics.median(overhead), 2),
            "decision_p99_ms": round(overhead[int(0.99 * len(overhead))], 2),
            "overload_errors": ours["overload"]["errors"],
            "overload_routing": ours["overload"]["routing"],
        },
    }


if __name__ == "__main__":
    main()
