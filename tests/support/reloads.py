"""Routers exchanged at a fixed pace under a gateway with clients: for a test of seconds and a benchmark of minutes."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tests.support.gateway import Gateway
from tests.support.routing import Zone, place


class Traffic:
    """Requests in a loop on connections of their own; remembers every answer that was not 200."""

    def __init__(self, running: Gateway, threads: int = 2) -> None:
        self._running, self._stop = running, threading.Event()
        self.answers = 0
        self.failures: list[tuple[Any, str]] = []
        self._threads = [threading.Thread(target=self._loop, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _loop(self, n: int) -> None:
        with self._running.new_client() as client:
            for k in itertools.count():
                if self._stop.is_set():
                    return
                body = {"model": "chat", "messages": [{"role": "user", "content": f"easy {n} {k}"}]}
                try:
                    response = client.post("/v1/chat/completions", json=body)
                    if response.status_code != 200:
                        self.failures.append((response.status_code, response.text[:300]))
                except httpx.HTTPError as error:
                    self.failures.append((type(error).__name__, str(error)))
                self.answers += 1


@dataclass
class Reloads:
    """What came of it.

    Attributes:
        count: reloads asked for.
        seconds: how long that took.
        answers, failures: of the clients meanwhile.
        swaps: times each worker took another router over.
        settled_s: from the last reload until every worker served the last router.
    """

    count: int
    seconds: float
    answers: int = 0
    failures: list[tuple[Any, str]] = field(default_factory=list)
    swaps: list[int] = field(default_factory=list)
    settled_s: float = 0.0


def reload_under_load(running: Gateway, here: Zone, *, count: int, per_minute: float = 200) -> Reloads:
    """Replace the router's files and ask for a reload at a fixed pace, whatever the gateway makes of it.

    Args:
        running: a gateway that follows `here`'s router `default`.
        here: signs and holds the routers.
        count: reloads.
        per_minute: their pace; a machine that is too slow for it goes as fast as it can.
    """
    routers = [here.artifact(version=f"9.{n}.0", swapped=bool(n % 2)) for n in range(4)]
    before = [worker["routers"]["default"]["swaps"] for worker in running.status()["workers"]]
    done = Reloads(0, 0.0)
    with Traffic(running) as traffic, running.new_client() as operator:
        start = time.monotonic()
        for made in itertools.islice(itertools.cycle(routers), count):
            time.sleep(max(0.0, start + done.count * 60 / per_minute - time.monotonic()))
            place(made, here.router_directory)
            operator.post("/appliance/reload").raise_for_status()
            done.count += 1
            last = made
        done.seconds = time.monotonic() - start

        def settled() -> bool:
            found = running.status()
            return found["converged"] and found["routers"]["default"]["digests"] == [last.digest]

        running.wait_until(settled, what="all workers serve the last router")
        done.settled_s = time.monotonic() - start - done.seconds
    after = [worker["routers"]["default"]["swaps"] for worker in running.status()["workers"]]
    done.swaps = [now - then for now, then in zip(after, before, strict=True)]
    done.answers, done.failures = traffic.answers, traffic.failures
    return done
