"""What a model server's answer must be to count as one: brought to its end, and in the time that it has.

Where a stream ends without saying so, LiteLLM writes `"finish_reason": "stop"` beneath whatever came: half an answer
looks whole, and a login page with status 200 is an empty answer of a server that seems well. A stream in OpenAI's
form ends with a `finish_reason` and `data: [DONE]`; one that has brought neither is a broken connection, so that
another server is asked where nothing has left yet, and its client is told where something has.

LiteLLM's `timeout` is one between two reads: an answer that drips byte by byte would never be late.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import orjson

Handle = Callable[[Any, httpx.Request], Awaitable[httpx.Response]]
COMPLETIONS = "/completions"
APIS = (COMPLETIONS, "/embeddings", "/responses", "/messages", "/rerank")  # whose bodies say whether they want a stream
_END = re.compile(rb'data:\s*\[DONE\]|"finish_reason"\s*:\s*"')
_OVERLAP = 64  # bytes of a part looked at once more with the next; longer than what is looked for


def whole(handle: Handle) -> Handle:
    """LiteLLM's way of asking a model server, held to the end of a stream and to the time of an answer.

    Args:
        handle: a transport's `handle_async_request`.
    """

    async def handles(transport: Any, request: httpx.Request) -> httpx.Response:
        streamed = _wants_stream(request)
        if streamed:
            request.headers["accept-encoding"] = "identity"  # nothing is won by it, and it holds parts back
        response = await handle(transport, request)
        parts, limit_s = response.stream, request.extensions.get("timeout", {}).get("read")
        assert isinstance(parts, httpx.AsyncByteStream)  # noqa: S101 (the transport is asynchronous)
        if streamed is False and limit_s is not None:
            response.stream = InTime(parts, limit_s)
        elif streamed and request.url.path.endswith(COMPLETIONS) and _is_readable(response):
            response.stream = ToItsEnd(parts)
        return response

    return handles


class _Parts(httpx.AsyncByteStream):
    def __init__(self, parts: httpx.AsyncByteStream) -> None:
        self._parts = parts

    async def aclose(self) -> None:
        """Let the connection go."""
        await self._parts.aclose()


class ToItsEnd(_Parts):
    """The parts of a stream as they come, and an error where they stop before its end.

    Args:
        parts: of a model server's answer.
    """

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Part by part.

        Raises:
            httpx.RemoteProtocolError: it stopped without an end.
        """
        ended, before = False, b""
        async for part in self._parts:
            if not ended:
                seen = before + part
                ended, before = _END.search(seen) is not None, seen[-_OVERLAP:]
            yield part
        if not ended:
            raise httpx.RemoteProtocolError("the stream stopped without an end")


class InTime(_Parts):
    """The parts of an answer that is no stream: its last one comes in time, or it is late.

    Args:
        parts: of a model server's answer.
        limit_s: seconds from the head to the end.
    """

    def __init__(self, parts: httpx.AsyncByteStream, limit_s: float) -> None:
        super().__init__(parts)
        self._limit_s = limit_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Part by part.

        Raises:
            httpx.ReadTimeout: it is not whole in time.
        """
        parts, until = aiter(self._parts), asyncio.get_running_loop().time() + self._limit_s
        while True:
            try:
                async with asyncio.timeout_at(until):  # around the wait alone: who takes the parts is not cancelled
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise httpx.ReadTimeout("the answer was not whole in time") from None
            yield part


def _is_readable(response: httpx.Response) -> bool:
    return response.status_code == httpx.codes.OK and "content-encoding" not in response.headers


def _wants_stream(request: httpx.Request) -> bool | None:
    """Whether it asks for a stream; None where it is not in the form of a served API."""
    if not request.url.path.endswith(APIS):
        return None
    try:
        content = request.content
    except httpx.RequestNotRead:  # a file on its way
        return None
    if b'"stream"' not in content:
        return False
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return isinstance(document, dict) and document.get("stream") is True
