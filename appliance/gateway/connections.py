"""Connections to a model server that were kept from before its restart: when one of them breaks, none is used again.

A machine that lost its power, or a firewall that forgot, closes nothing: every connection that was kept breaks by the
request that is sent on it, one request each. LiteLLM asks again after the first, and would meet the next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

Send = Callable[..., Awaitable[Any]]


def forgetting(send: Send) -> Send:
    """LiteLLM's way of sending a request, which closes what is kept to a server that has hung up on one of them.

    Args:
        send: a method of LiteLLM's transport; `client_session` and `request` among its named arguments.
    """

    async def forgets(transport: Any, *, client_session: aiohttp.ClientSession, request: Any, **others: Any) -> Any:
        try:
            return await send(transport, client_session=client_session, request=request, **others)
        except aiohttp.ClientConnectorError:  # it never stood
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            close_idle(client_session.connector, request.url.host, request.url.port or _port(request.url.scheme))
            raise

    return forgets


def close_idle(connector: Any, host: str, port: int) -> int:
    """Close what is kept to one server and not in use; how many there were.

    Args:
        connector: aiohttp's, of the pinned version: it has no public way to this.
        host, port: of the server.
    """
    kept = connector._conns if connector is not None else {}  # noqa: SLF001
    closed = 0
    for key in [key for key in kept if (key.host, key.port) == (host, port)]:
        for protocol, _ in kept.pop(key):
            protocol.close()
            closed += 1
    return closed


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
