"""The collector runs between two events, never inside `ContextVar.set`, which CPython 3.11 does not survive."""

import asyncio
import gc
import subprocess
import sys
import weakref

import pytest

from appliance.gateway import garbage, server
from appliance.settings import Drain, Listen

# What LiteLLM's streams do when they are left to the collector: `CustomStreamWrapper.__del__` sets variables of
# whatever context the collector finds itself in.
ABANDONED = """
import contextvars
from appliance.gateway import garbage

others = [contextvars.ContextVar(f"other {number}") for number in range(14)]
trace = contextvars.ContextVar("trace")
ended = 0

class Stream:
    def __init__(self):
        self.itself = self

    def __del__(self):
        global ended
        ended += 1
        trace.set(object())

def request():
    for _ in range(200):
        Stream()
        for each in others:
            each.set(object())

with garbage.by_hand():
    for _ in range(300):
        contextvars.copy_context().run(request)
        garbage.collect_if_due()
print(ended)
"""


class Cycle:
    """Freed by the collector alone."""

    def __init__(self) -> None:
        self.itself = self


def left(count):
    """Weak references to so many objects that only the collector frees."""
    return [weakref.ref(Cycle()) for _ in range(count)]


@pytest.fixture
def _untouched():
    before = gc.isenabled(), gc.get_threshold()
    yield
    assert (gc.isenabled(), gc.get_threshold()) == before


@pytest.mark.usefixtures("_untouched")
def test_nothing_is_collected_by_itself_and_everything_when_it_is_time():
    with garbage.by_hand():
        gc.collect()
        few = left(100)
        assert garbage.collect_if_due() is None
        many = left(2 * garbage.COLLECT_AFTER[0])
        assert all(each() is not None for each in (*few, *many))
        assert garbage.collect_if_due() is not None
        assert all(each() is None for each in (*few, *many))


@pytest.mark.usefixtures("_untouched")
def test_the_older_generations_have_their_turn():
    with garbage.by_hand():
        gc.set_threshold(500, *garbage.COLLECT_AFTER[1:])
        gc.collect()
        seen = []
        while 2 not in seen and len(seen) < 1000:
            left(1000)
            seen.append(garbage.collect_if_due())
    assert seen.count(0) > seen.count(1) > seen.count(2) == 1


def test_what_requests_leave_behind_ends_no_process():
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done
    assert int(done.stdout) > 50_000


@pytest.mark.usefixtures("_untouched")
def test_the_server_collects_by_hand_while_it_serves(monkeypatch):
    seen = []

    async def application(scope, receive, send):
        """Starts, asks for the end, ends."""
        assert scope["type"] == "lifespan"
        await receive()
        seen.append(gc.isenabled())
        collected = asyncio.Event()
        weakref.finalize(Cycle(), collected.set)
        left(2 * garbage.COLLECT_AFTER[0])
        await send({"type": "lifespan.startup.complete"})
        await collected.wait()
        serving.should_exit = True
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    monkeypatch.setattr(server, "FRESH_S", 0.0)
    drain = Drain(readiness_s=0, streams_s=1)
    config = server.configuration(application, Listen(host="127.0.0.1", port=1), drain)
    config.lifespan = "on"
    serving = server.Server(config, drain, loop_factory=asyncio.new_event_loop)
    serving.run(sockets=[])
    assert seen == [False]
