"""A connection whose client is to act, and does not, is closed.

uvicorn waits for ever: for the head of a request, for the rest of a body that it has answered already, for somebody to
take what was sent. Whoever holds enough connections needs no key to keep everybody else out.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_ACKNOWLEDGED = struct.Struct("=120xQ")  # linux/tcp.h: tcp_info.tcpi_bytes_acked


class Protocol(H11Protocol):
    """One connection.

    Attributes:
        head_s: seconds for the head of a request, from the connection or from the head's first byte.
        look_s: seconds between two looks at the connection; it is closed where they find that it stands still.
    """

    head_s: ClassVar[float] = 30.0
    look_s: ClassVar[float] = 30.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: asyncio.TimerHandle | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._stood: object = None
        self._received = 0  # bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It stands; TLS is through."""
        super().connection_made(transport)
        self._watch()
        self._next_look = self.loop.call_later(self.look_s, self._look)

    def data_received(self, data: bytes) -> None:
        """What the client sent: a piece of a head, the last of it, or what follows."""
        self._received += len(data)
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended."""
        self._forget()
        if self._next_look is not None:
            self._next_look.cancel()
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

    def _look(self) -> None:
        stands = self._standing()
        if stands is not None and stands == self._stood:
            self.transport.abort()
            return
        self._stood = stands
        self._next_look = self.loop.call_later(self.look_s, self._look)

    def _standing(self) -> object:
        """What stays as it is while the client does not act, although it is its turn; None where it is not."""
        if unsent(self.transport):
            return "takes", _acknowledged(self.transport)
        if self.conn.their_state is not h11.SEND_BODY:
            return None
        if self.cycle.response_complete:  # refused unread: what still comes of it is dropped, but not for ever
            return "rest", id(self.cycle)
        return "sends", self._received

    def _unsupported_upgrade_warning(self) -> None:
        """Answered as if it had not been asked for; uvicorn's advice to install a package helps nobody here."""


def unsent(transport: Any) -> bool:
    """Whether the other side has not yet got everything: its kernel has not said so (tcp(7), SIOCOUTQ)."""
    descriptor = transport.get_extra_info("socket").fileno()
    waiting = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4) if descriptor >= 0 else b""
    return any(waiting)


def _acknowledged(transport: Any) -> int:
    """Bytes that the other side's kernel has got so far."""
    told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
    return int(_ACKNOWLEDGED.unpack(told)[0])
