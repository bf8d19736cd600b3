"""Streaming clients in turn, each with its own connection: for a test of seconds and a benchmark of two thousand."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import httpx

from tests.support.gateway import Gateway

BODY = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "easy the stream"}]}


def stream_in_turn(running: Gateway, count: int, *, words: int, at_once: int = 16) -> list[Any]:
    """What did not come whole: statuses, errors, last lines; empty where every client got its stream to the end.

    Args:
        running: a gateway with a group `chat`.
        count: clients.
        words: of each answer.
        at_once: clients at the same time.
    """

    def one(_: int) -> Any:
        try:
            with running.new_client() as client, client.stream("POST", "/v1/chat/completions", json=BODY) as response:
                lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        except httpx.HTTPError as error:
            return repr(error)
        whole = response.status_code == 200 and len(lines) > words and lines[-1] == "data: [DONE]"
        return None if whole else (response.status_code, lines[-2:])

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return [fault for fault in pool.map(one, range(count)) if fault is not None]
