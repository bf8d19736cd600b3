"""Workers that share one listener take connections in turn, and none waits for one that is hung or gone."""

import asyncio
import contextlib
import errno
import gc
import os
import resource
import signal
import socket

import pytest
import uvloop

from appliance.gateway.turns import Acceptor, Turns

AT_ONCE = 8
FOREVER_S = 3600.0


class Held(asyncio.Protocol):
    """A connection that its worker counts until it ends."""

    def __init__(self, of: set) -> None:
        self.of = of

    def connection_made(self, transport) -> None:
        self.of.add(transport)
        self.transport = transport
        transport.write(f"{os.getpid()}\n".encode())

    def connection_lost(self, _) -> None:
        self.of.discard(self.transport)


@contextlib.contextmanager
def listening():
    """A listener and a way to connect to it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener, lambda: asyncio.open_connection(*listener.getsockname())


def worker(listener, turns, number, **options):
    connections: set = set()
    acceptor = Acceptor(
        listener.dup(), turns, number,
        protocol=lambda: Held(connections), tls=None, connections=lambda: len(connections), **options,
    )  # fmt: skip
    return connections, acceptor


async def greeted(connect, count):
    """So many connections at once, each greeted by whoever took it."""
    opened = await asyncio.gather(*(connect() for _ in range(count)))
    for reader, _ in opened:
        assert (await reader.readline()).endswith(b"\n")
    return opened


async def end(opened, *workers):
    """Close everything, and wait for the workers to notice."""
    for _, writer in opened:
        writer.close()
        await writer.wait_closed()
    for connections, acceptor in workers:
        acceptor.close()
        acceptor._listener.close()
        while connections:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.001)


def run(main):
    """On the event loop of the gateway; what hangs is ended."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main, 60))


def test_a_worker_leaves_connections_to_the_one_that_has_fewer():
    async def main():
        with listening() as (listener, connect):
            turns = Turns(2)
            turns.say(1, 2 * AT_ONCE)
            first, one = worker(listener, turns, 0, wait_s=FOREVER_S)
            opened = await greeted(connect, AT_ONCE)
            assert len(first) == AT_ONCE
            second, two = worker(listener, turns, 1, wait_s=FOREVER_S)
            opened += await greeted(connect, AT_ONCE // 2)  # what just begins counts twice for an instant
            assert (len(first), len(second)) == (AT_ONCE, AT_ONCE // 2)
            await end(opened, (first, one), (second, two))

    run(main())


def test_a_worker_that_never_accepts_keeps_no_connection_waiting():
    async def main():
        with listening() as (listener, connect):
            connections, acceptor = worker(listener, Turns(2), 0)  # nobody is number 1
            opened = await greeted(connect, AT_ONCE)
            assert len(connections) == AT_ONCE
            await end(opened, (connections, acceptor))

    run(main())


def test_nobody_waits_for_a_worker_that_drains():
    async def main():
        with listening() as (listener, connect):
            turns = Turns(2)
            first, one = worker(listener, turns, 0, wait_s=FOREVER_S)
            second, two = worker(listener, turns, 1)
            two.close()
            two.count()  # what it has no longer counts
            opened = await greeted(connect, AT_ONCE)
            assert len(first) == AT_ONCE
            await end(opened, (first, one), (second, two))

    run(main())


def test_connections_that_ended_are_forgotten():
    async def main():
        with listening() as (listener, connect):
            turns = Turns(2)
            connections, acceptor = worker(listener, turns, 0)
            opened = await greeted(connect, 2)
            acceptor.count()
            assert not turns.is_turn_of(0)
            for _, writer in opened:
                writer.close()
            while connections:  # noqa: ASYNC110 (nothing tells of it)
                await asyncio.sleep(0.001)
            acceptor.count()
            assert turns.is_turn_of(0)
            await end(opened, (connections, acceptor))

    run(main())


def test_a_worker_without_descriptors_tries_again(monkeypatch, caplog):
    monkeypatch.setattr("appliance.gateway.turns.EXHAUSTED_S", 0.01)

    async def main():
        with listening() as (listener, connect):
            connections, acceptor = worker(listener, Turns(1), 0)
            reader, writer = await connect()
            assert await reader.readline()
            gc.collect()  # closes what earlier tests forgot
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            client = socket.socket()
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            try:
                await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
                while "no connection accepted" not in caplog.text:  # noqa: ASYNC110 (nothing tells of it)
                    await asyncio.sleep(0.001)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await asyncio.get_running_loop().sock_recv(client, 100)
            assert len(connections) == 2
            client.close()
            await end([(reader, writer)], (connections, acceptor))

    run(main())
    assert os.strerror(errno.EMFILE) in caplog.text


def _serve(listener, turns, number) -> int:
    """A worker process that accepts until it is killed; returns its id."""
    if pid := os.fork():
        return pid
    try:

        async def main():
            _, acceptor = worker(listener, turns, number)
            while True:
                acceptor.count()
                await asyncio.sleep(0.01)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    finally:
        os._exit(1)


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_whatever_happens_to_workers_the_last_one_accepts(fate):
    """Each that is killed or stopped has the fewest connections at that moment: it is its turn, and stays so."""
    with listening() as (listener, _):
        turns, held = Turns(3), []
        workers = {_serve(listener, turns, number): number for number in range(3)}
        alive = dict(workers)

        def served_by() -> int:
            one = socket.create_connection(listener.getsockname(), timeout=60)
            held.append(one)
            return int(one.makefile().readline())

        try:
            while alive:
                assert {served_by() for _ in range(AT_ONCE)} <= set(alive)
                lost = min(alive, key=lambda pid: turns._counts[alive[pid]])
                os.kill(lost, fate)
                os.waitpid(lost, os.WUNTRACED)
                del alive[lost]
        finally:
            for one in held:
                one.close()
            for pid in workers:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
