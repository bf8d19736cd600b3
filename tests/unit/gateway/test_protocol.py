"""A connection without a request's head is closed in time, whatever trickles in; one with a request is left alone."""

import asyncio
import contextlib
import time

import pytest
import uvicorn
from uvicorn.server import ServerState

from appliance.gateway.protocol import Protocol

WAIT_S = 30.0  # after which something hangs
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Hasty(Protocol):
    """Waits for a head as long as a test likes."""

    head_s = 0.3


async def answering(scope, receive, send) -> None:
    """Takes longer to answer than a head may take to come."""
    del scope, receive
    await asyncio.sleep(2 * Hasty.head_s)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def served():
    config, state = uvicorn.Config(answering, log_config=None, lifespan="off"), ServerState()
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hasty(config=config, server_state=state, app_state={}), "127.0.0.1")
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nx: "])
def test_a_connection_that_brings_no_whole_head_is_closed_in_time(first):
    async def main():
        async with served() as (reader, writer):
            writer.write(first)
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < begun + WAIT_S and not reader.at_eof():
                    if first:
                        writer.write(b"x")
                    with contextlib.suppress(TimeoutError):
                        assert await asyncio.wait_for(reader.read(1), 0.05) == b""
            assert Hasty.head_s <= time.monotonic() - begun < WAIT_S

    asyncio.run(main())


def test_a_connection_with_a_request_has_its_time_and_so_has_its_next():
    async def main():
        async with served() as (reader, writer):
            for _ in range(2):
                writer.write(ASK)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
                assert head.startswith(b"HTTP/1.1 204")
            writer.write(ASK[:5])
            assert await asyncio.wait_for(reader.read(), WAIT_S) == b"", "the next head is waited for no longer"

    asyncio.run(main())
