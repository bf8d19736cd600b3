"""A model server's answer counts when it came to its end in time: half of one is not whole, and none drips for ever."""

import asyncio
import json
from itertools import pairwise

import httpx
import pytest

from appliance.gateway import streams

CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}, "finish_reason": null}]}\n\n'
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Parts(httpx.AsyncByteStream):
    """What a model server sends, with a pause before each part."""

    def __init__(self, parts: list[bytes], pause_s: float = 0) -> None:
        self.parts, self.pause_s, self.closed = parts, pause_s, False

    async def __aiter__(self):
        for part in self.parts:
            await asyncio.sleep(self.pause_s)
            yield part

    async def aclose(self) -> None:
        self.closed = True


async def ask(parts: Parts, *, path="/v1/chat/completions", body=None, limit_s=60.0, status=200, **headers):
    """The parts that came before the end or an error; the error; the request as it was sent."""
    request = httpx.Request(
        "POST", f"http://127.0.0.1{path}", content=json.dumps({"stream": True} if body is None else body),
        extensions={"timeout": {"read": limit_s}},
    )  # fmt: skip

    async def handle(_, request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers, stream=parts, request=request)

    response = await streams.whole(handle)(None, request)
    came: list[bytes] = []
    error = None
    try:
        async for part in response.stream:
            came.append(part)  # noqa: PERF401 (what came before an error counts)
    except httpx.HTTPError as failure:
        error = failure
    await response.aclose()
    assert parts.closed
    return came, error, request


def asked(*arguments, **options):
    return asyncio.run(ask(*arguments, **options))


@pytest.mark.parametrize(
    "parts",
    [
        [b"<html>log in</html>"],
        [b"null"],
        [b'{"choices": [], "object": "chat.completion"}'],
        [],
        [CHUNK % b"half"],
        [CHUNK % rb"[DONE] \"finish_reason\": \"stop\""],
    ],
)
def test_a_stream_that_stops_without_an_end_breaks(parts):
    came, error, _ = asked(Parts(parts))
    assert came == parts, "what came is not held back"
    assert isinstance(error, httpx.RemoteProtocolError)


@pytest.mark.parametrize("parts", [[CHUNK % b"a", LAST, DONE], [CHUNK % b"a", LAST], [CHUNK % b"a", DONE]])
def test_a_stream_that_says_that_it_ends_is_whole(parts):
    assert asked(Parts(parts))[:2] == (parts, None)


def test_an_end_is_found_wherever_it_is_cut_in_two():
    text = CHUNK % b"a" + LAST
    for cut in range(1, len(text)):
        parts = [text[start:end] for start, end in pairwise((0, cut, len(text)))]
        assert asked(Parts(parts))[1] is None


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/v1/responses"},  # ends by an event, which LiteLLM asks for
        {"path": "/v1/models/x:streamGenerateContent"},
        {"body": {"messages": [{"content": '"stream": true'}]}},
        {"status": 500},
        {"content-encoding": "gzip"},
    ],
)
def test_what_is_no_stream_of_completions_passes_as_it_is(options):
    assert asked(Parts([b"x"]), **options)[:2] == ([b"x"], None)


def test_a_stream_is_not_compressed():
    assert asked(Parts([DONE]))[2].headers["accept-encoding"] == "identity"


def test_an_answer_that_drips_is_late_and_a_stream_is_not():
    dripping = [b" "] * 50
    came, error, _ = asked(Parts(dripping, pause_s=0.02), body={"stream": False}, limit_s=0.1)
    assert len(came) < len(dripping)
    assert isinstance(error, httpx.ReadTimeout)
    parts = [*([CHUNK % b"a"] * 10), DONE]
    assert asked(Parts(parts, pause_s=0.02), limit_s=0.1)[:2] == (parts, None)


def test_whoever_takes_the_parts_slowly_is_told_that_they_are_late_and_not_cancelled():
    async def takes() -> None:
        async for _ in streams.InTime(Parts([b" "] * 5, pause_s=0.02), 0.05):
            await asyncio.sleep(0.1)

    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(takes())
