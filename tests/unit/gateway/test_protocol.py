"""A connection whose client does not do its part is closed in time, whatever trickles in; all others are left alone."""

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
    """Waits as long as a test likes."""

    head_s = look_s = 0.3


async def answering(scope, receive, send) -> None:
    """Takes longer to answer than a head may take to come."""
    del scope, receive
    await asyncio.sleep(2 * Hasty.head_s)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def refusing(scope, receive, send) -> None:
    """Answers without a look at the body."""
    del scope, receive
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def reading(scope, receive, send) -> None:
    """Answers when the body is whole."""
    while (await receive()).get("more_body"):
        pass
    await refusing(scope, receive, send)


PART = b"x" * 50_000


async def telling(scope, receive, send) -> None:
    """Tells more than any kernel keeps."""
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(400):
        await send({"type": "http.response.body", "body": PART, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@contextlib.asynccontextmanager
async def served(application=answering):
    config, state = uvicorn.Config(application, log_config=None, lifespan="off"), ServerState()
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


POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("application", "trickle"),
    [(refusing, b"x"), (refusing, b""), (reading, b"")],
    ids=["a refused body trickles in", "a refused body never comes", "a body stops"],
)
def test_a_body_that_does_not_come_ends_the_connection(application, trickle):
    async def main():
        async with served(application) as (reader, writer):
            writer.write(POST + b"x")
            end = time.monotonic() + WAIT_S
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    assert time.monotonic() < end, "it is held for ever"
                    writer.write(trickle)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), 0.05)

    asyncio.run(main())


def test_a_body_that_comes_slowly_is_waited_for():
    async def main():
        async with served(reading) as (reader, writer):
            writer.write(POST)
            for _ in range(20):
                writer.write(b"x" * 50)
                await asyncio.sleep(Hasty.look_s / 5)
            assert (await asyncio.wait_for(reader.readline(), WAIT_S)).startswith(b"HTTP/1.1 401")

    asyncio.run(main())


def test_who_takes_nothing_is_left_and_who_takes_it_slowly_gets_all():
    async def main():
        async with served(telling) as (reader, writer):
            writer.write(ASK)
            got = reads = 0
            while chunk := await asyncio.wait_for(reader.read(1_000_000), WAIT_S):
                got, reads = got + len(chunk), reads + 1
                await asyncio.sleep(Hasty.look_s / 3 if reads < 15 else 0)
            assert got > 400 * len(PART)
        async with served(telling) as (reader, writer):
            writer.write(ASK)
            writer.transport.pause_reading()
            await asyncio.sleep(4 * Hasty.look_s)
            writer.transport.resume_reading()
            got = 0
            with contextlib.suppress(ConnectionError):
                while chunk := await asyncio.wait_for(reader.read(1_000_000), WAIT_S):
                    got += len(chunk)
            assert got < 400 * len(PART)

    asyncio.run(main())
