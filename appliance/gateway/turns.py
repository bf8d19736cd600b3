"""New connections to the worker that has the fewest, where several share one listener.

The kernel wakes every worker for a connection, and the first one takes it: of four that come at once, one worker took
all four in every second try. A client that keeps its connections then has one worker to itself and leaves the others
idle. So a worker that has more than another one waits a moment before it accepts, and then accepts whatever is still
there. Nobody holds the turn, and nobody has to hand it on: a worker that is hung or gone costs a new connection that
moment and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import ssl
from collections.abc import Callable
from typing import Any

log = logging.getLogger("appliance.server")
WAIT_S = 0.003  # an idle worker takes a connection in a tenth of that
EXHAUSTED_S = 1.0  # no descriptor left: as long as asyncio itself waits
CLOSED = 2**31 - 1  # "connections" of a worker that accepts no more


class Turns:
    """How many connections each worker has, in memory that forked workers share; make it before the fork.

    Args:
        workers: of this gateway.
    """

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, 4 * workers)  # zeros
        self._counts = memoryview(self._memory).cast("i")

    def say(self, number: int, connections: int) -> None:
        """What a worker has now; it alone writes there."""
        self._counts[number] = connections

    def is_turn_of(self, number: int) -> bool:
        """Whether nobody has fewer."""
        return self._counts[number] <= min(self._counts)


class Acceptor:
    """Accepts for one worker; stands where uvicorn keeps its servers.

    Args:
        listener: shared by all workers.
        turns: of all of them.
        number: of this worker.
        protocol: makes what handles a connection.
        tls: context, None for plain HTTP.
        connections: how many this worker has, those in the TLS handshake aside.
        wait_s: how long a worker that has more than another one leaves a connection to it.
    """

    def __init__(
        self,
        listener: socket.socket,
        turns: Turns,
        number: int,
        *,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        connections: Callable[[], int],
        wait_s: float = WAIT_S,
    ) -> None:
        self._listener, self._turns, self._number = listener, turns, number
        self._protocol, self._tls, self._connections = protocol, tls, connections
        self._wait_s = wait_s
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._waited = self._closed = False
        listener.setblocking(False)
        self.count()
        self._listen()

    def count(self) -> None:
        """Tell the others how many this worker has; call now and then, connections end without a word."""
        if not self._closed:
            self._turns.say(self._number, self._connections() + len(self._beginning))

    def close(self) -> None:
        """Accept no more; connections that stand are not touched."""
        if not self._closed:
            self._closed = True
            self._turns.say(self._number, CLOSED)
            self._loop.remove_reader(self._listener.fileno())

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._readable)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(seconds, self._listen)

    def _readable(self) -> None:
        self.count()
        if not self._waited and not self._turns.is_turn_of(self._number):
            self._waited = True
            self._pause(self._wait_s)
            return
        self._waited = False
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was quicker, or the client has gone
        except OSError as error:
            log.warning("no connection accepted: %s", error.strerror)
            self._pause(EXHAUSTED_S)
            return
        task = self._loop.create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        self.count()

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        options: dict[str, Any] = {"ssl": self._tls} if self._tls is not None else {}
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection, **options)
        except (
            OSError
        ) as error:  # so are a handshake that failed and one that took too long; no business of the server's
            connection.close()
            log.debug("connection not begun: %s", error)
