"""Mixed traffic: new and kept connections, whole answers and streams, short and long prompts, and the reports."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.operations.acceptance.upstream import SLOW

GROUP = "acceptance"
PROMPTS = (  # different lengths and kinds
    "What is the capital of Norway?", "Prove that there are infinitely many primes.", "Translate 'hello' to French.",
    "Write a function that merges two sorted lists.", "Summarise the causes of the First World War.",
    "Which is heavier, a kilogram of feathers or of iron?", "Explain the proof of Fermat's little theorem.",
    "List three fruits.", "Debug: IndexError: list index out of range", "How do I boil an egg?",
)  # fmt: skip
PATIENCE_S = 180.0  # a client's; a gateway that boots on a busy machine takes its time
REMEMBERED = 20  # failures that are told in full
LOOKS = ("/v1/models", "/appliance/status", "/appliance/decisions?limit=20", "/appliance/metrics")


@dataclass
class Traffic:
    """Clients of one gateway.

    Args:
        port: of its listener.
        key: its master key.
        ca: file with the CAs that clients trust; read anew for every connection.
        rate_per_s: requests a second of all clients together; a client that waits for an answer asks later.

    Attributes:
        counts: kind of request -> how many were answered.
        failures: what went wrong: kind, seconds since the beginning, what was seen.
        failed: how many went wrong.
        longest_s: the longest wait for an answer.
    """

    port: int
    key: str
    ca: Path
    rate_per_s: float
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[tuple[str, float, str]] = field(default_factory=list)
    failed: int = 0
    longest_s: float = 0.0

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Traffic while the block runs."""
        self._begun, self._stop = time.monotonic(), threading.Event()
        kinds = (self._fresh, self._kept, self._streamed, self._long, self._slow, self._looking)
        interval_s = len(kinds) / self.rate_per_s
        threads = [threading.Thread(target=self._client, args=(kind, interval_s), daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)

    def _client(self, kind: Callable[[http.client.HTTPSConnection, int], None], interval_s: float) -> None:
        """One client: `kept` and `looking` keep their connection as long as the gateway does, the others never."""
        name, turn = kind.__name__.strip("_"), 0
        keeps = name in {"kept", "looking"}
        connection: http.client.HTTPSConnection | None = None
        while not self._stop.is_set():
            turn += 1
            begun = time.monotonic()
            try:
                connection = connection or self._connect()
                kind(connection, turn)
                self.counts[name] += 1
            except (OSError, http.client.HTTPException, _WrongAnswerError) as error:
                self._fail(name, error)
                keep = False
            else:
                keep = keeps and connection.sock is not None  # http.client closes where the gateway asks for it
            waited_s = time.monotonic() - begun
            self.longest_s = max(self.longest_s, waited_s)
            if connection is not None and not keep:
                connection.close()
                connection = None
            self._stop.wait(max(0.0, interval_s - waited_s))
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.ca))
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE_S, context=context)

    def _fail(self, kind: str, error: Exception) -> None:
        self.failed += 1
        if len(self.failures) < REMEMBERED:
            said = f"{type(error).__name__}: {error}"[:300]
            self.failures.append((kind, round(time.monotonic() - self._begun, 1), said))

    def _fresh(self, connection: http.client.HTTPSConnection, turn: int) -> None:
        self._chat(connection, f"{PROMPTS[turn % len(PROMPTS)]} ({turn})")

    def _kept(self, connection: http.client.HTTPSConnection, turn: int) -> None:
        self._fresh(connection, turn)

    def _long(self, connection: http.client.HTTPSConnection, turn: int) -> None:
        self._chat(connection, f"{turn}: " + " ".join(PROMPTS) * 20)

    def _streamed(self, connection: http.client.HTTPSConnection, turn: int) -> None:
        self._chat(connection, f"{PROMPTS[turn % len(PROMPTS)]} ({turn})", stream=True)

    def _slow(self, connection: http.client.HTTPSConnection, turn: int) -> None:
        """A stream that takes a second: reloads, upgrades and certificates come in its midst."""
        self._chat(connection, f"{SLOW} ({turn})", stream=True)

    def _looking(self, connection: http.client.HTTPSConnection, turn: int) -> None:
        connection.request("GET", LOOKS[turn % len(LOOKS)], headers=self._headers)
        answer = connection.getresponse()
        _expect(answer.status, answer.read())

    @property
    def _headers(self) -> dict[str, str]:
        return {"content-type": "application/json", "authorization": f"Bearer {self.key}"}

    def _chat(self, connection: http.client.HTTPSConnection, prompt: str, *, stream: bool = False) -> None:
        message = {"role": "user", "content": prompt}
        body: dict[str, Any] = {"model": GROUP, "messages": [message], "stream": stream}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers)
        answer = connection.getresponse()
        data = answer.read()
        _expect(answer.status, data)
        model = answer.getheader("x-appliance-deployment", "")
        text = _streamed_text(data) if stream else json.loads(data)["choices"][0]["message"]["content"]
        if text != model or not model:
            raise _WrongAnswerError(f"{model!r} was chosen and {text!r} answered")


class _WrongAnswerError(Exception):
    """An answer that is not what was asked for."""


def _expect(status: int, data: bytes) -> None:
    if status != 200:
        raise _WrongAnswerError(f"status {status}: {data[:200]!r}")


def _streamed_text(data: bytes) -> str:
    """The text of a stream that came to its end."""
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")]
    if not lines or lines[-1].strip() != b"[DONE]":
        raise _WrongAnswerError(f"a stream broke off after {len(lines)} parts")
    parts = [json.loads(line) for line in lines[:-1]]
    return "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
