"""A connection that does not bring the head of a request in time is closed.

uvicorn waits for it for ever, and whoever holds enough connections needs no key to keep everybody else out.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """One connection.

    Attributes:
        head_s: seconds for the head of a request, from the connection or from the head's first byte.
    """

    head_s: ClassVar[float] = 30.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It stands; TLS is through."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """What the client sent: a piece of a head, the last of it, or what follows."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None:  # nothing that trickles in makes it longer
            self._late = self.loop.call_later(self.head_s, self.transport.abort)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
