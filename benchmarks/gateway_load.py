"""Load for `benchmarks.gateway`: an upstream that costs next to nothing, and clients that never repeat a prompt."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiohttp

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()  # fmt: skip


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
    """Answer chat completions until killed."""
    server = await asyncio.get_running_loop().create_server(_Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


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
            "latencies_ms": [round(latency, 2) for latency in self.latencies_ms],
        }


class Client:
    """Sends chat completions; every prompt is new.

    Args:
        url, key: of the server.
        words: of a prompt.
    """

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
        start = time.perf_counter()

        async def ask(session: aiohttp.ClientSession) -> None:
            while time.perf_counter() < start + seconds:
                await self._one(session, load)

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(ask(session) for _ in range(clients)))
        load.seconds = time.perf_counter() - start
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
        load.seconds = time.perf_counter() - start
        return load
