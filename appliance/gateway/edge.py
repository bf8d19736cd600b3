"""What a request must be before LiteLLM sees it: a served path, a bounded JSON object, a group that its key reaches."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any

import orjson

from appliance.gateway import amount, fields
from appliance.gateway.access import Principal

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WITH_BODY = re.compile(
    r"/(?:v1/)?(?:chat/completions|completions|embeddings|responses|messages|messages/count_tokens|rerank)"
)
WITHOUT_BODY = re.compile(r"/(?:v1/)?models(?:(?:/(?!\.)[A-Za-z0-9._:@+-]{1,256}){1,4})?")
HEALTH = re.compile(r"/health/(?:liveliness|liveness|readiness)")


# what LiteLLM may know of the connection; its own `x-litellm-...`, an organisation or a forwarded key are steering, too
HEADERS = frozenset({b"accept", b"user-agent", b"traceparent", b"tracestate", b"authorization"})
# what a client may not know of the model server: its address, and its own headers, which LiteLLM repeats
INTERNAL = (b"x-litellm-model-api-base", b"llm_provider-")

MAX_DIGITS = 18  # of a length


class Refused(Exception):  # noqa: N818 (an answer)
    """The request is answered here.

    Attributes:
        status: of HTTP.
        code: OpenAI's where it has one for the case, else one of the catalogue.
        param: the field it is about.
    """

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def is_as_written(scope: Scope) -> bool:
    """Whether the path was sent as it is: encoded, it passes whoever in front of us goes by paths.

    A model's name is what it may need to encode: `/v1/models/meta%2Fllama`.
    """
    written = bytes(scope.get("raw_path") or b"").partition(b"models/")[0]
    return b"%" not in written


def models(path: str, principal: Principal) -> dict[str, Any]:
    """The model list (or one entry of it) of an application's key: its groups and nothing else.

    Raises:
        Refused: 404.
    """
    groups = sorted(principal.groups or ())
    entries = [{"id": group, "object": "model", "created": 0, "owned_by": "appliance"} for group in groups]
    asked = path.partition("models/")[2]
    if not asked:
        return {"object": "list", "data": entries}
    if asked not in groups:
        raise Refused(404, "model_not_found", "no such model for this key")
    return entries[groups.index(asked)]


def has_two_lengths(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request tells its length in both ways, so that whoever stands in front may have read another one.

    Such a connection must not be used again (RFC 9112, section 6.1).
    """
    return {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}


async def read_body(receive: Receive, limit: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 where it is longer than `limit` bytes; at once where the headers say so.
    """
    if any(name == b"content-length" and (len(value) > MAX_DIGITS or int(value) > limit) for name, value in headers):
        raise _too_large(limit)
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> Refused:
    return Refused(413, "too_large", f"the body is longer than {limit} bytes")


def replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then what the connection says of its end; a body that nobody has read is dropped."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def forwarded(headers: Iterable[tuple[bytes, bytes]], body: bytes | None) -> list[tuple[bytes, bytes]]:
    """The headers that LiteLLM gets, with the body's true length and type.

    LiteLLM goes by the content type: the same bytes, called a form, would carry other fields than those checked here.
    """
    kept = [(name, value) for name, value in headers if name in HEADERS]
    if body is None:
        return kept
    return [*kept, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]


def answered(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of LiteLLM's answer that leave."""
    return [(name, value) for name, value in headers if not name.startswith(INTERNAL)]


def wishes(headers: Any, document: Any, principal: Principal) -> tuple[str, float | None]:
    """What a request says of itself: the sticky text, and how much cost counts."""
    given = {name: value for name, value in headers if name in {b"x-appliance-cost-weight", b"x-appliance-session"}}
    user = document.get("user")
    session = given.get(b"x-appliance-session", b"").decode("latin-1") or (user if isinstance(user, str) else "")
    try:
        weight = float(given[b"x-appliance-cost-weight"])
    except (KeyError, ValueError):
        return f"{principal.name}/{session}" if session else "", None
    return f"{principal.name}/{session}" if session else "", weight if 0 <= weight <= 1 else None


def checked(body: bytes, principal: Principal, path: str, admitted: Collection[str] = ()) -> dict[str, Any]:
    """The parsed body, refused before anybody acts on it where it says what its API does not have.

    Args:
        body: as it came.
        principal: whose key it came with.
        path: of `WITH_BODY`.
        admitted: further fields that the operator's model servers take, with any value.

    Raises:
        Refused: 400, 413 where it holds too much, or 403 where the key does not reach the model group.
    """
    document = _parsed(body)
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "invalid_request_error", "model must name a model group", param="model")
    if not principal.may_use(model):
        raise Refused(403, "model_not_allowed", "this key does not reach that model group", param="model")
    if fields.too_deep(document):
        raise Refused(400, "invalid_request_error", f"the body is nested more than {fields.MAX_DEPTH} levels deep")
    api = path.removeprefix("/v1").lstrip("/")
    allowed = fields.APIS[api]
    for name, value in document.items():
        kind = allowed.get(name, fields.ANYTHING if name in admitted else None)
        if kind is None:
            raise Refused(400, "GATEWAY_FIELD", f"{name[:64]!r} is no field of /{api} here", param=name[:64])
        if value is not None and not kind.holds(value):
            raise Refused(400, "GATEWAY_FIELD_TYPE", f"{name} must be {kind.says}", param=name)
    needed = fields.NEEDED.get(api)
    if needed is not None and document.get(needed) is None:
        raise Refused(400, "GATEWAY_FIELD_TYPE", f"{needed} is missing", param=needed)
    return document


def _parsed(body: bytes) -> dict[str, Any]:
    if amount.is_too_much(body):
        parts = f"{amount.MAX_CONTAINERS} objects and lists or {amount.MAX_VALUES} values"
        raise Refused(413, "too_large", f"the body holds more than {parts}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}"[:200]) from None
    if not isinstance(document, dict):
        raise Refused(400, "invalid_request_error", "the body is not a JSON object")
    return document


def handed_on(document: dict[str, Any], path: str) -> bytes:
    """The body that LiteLLM gets: what was checked and nothing else, whatever another parser had made of the bytes.

    Where LiteLLM takes orders from `metadata` (tags, guardrails, cache, trace names), a client's lies one level down.
    """
    if document.get("metadata") and path.removeprefix("/v1").lstrip("/") in fields.OWN_METADATA:
        document = {**document, "metadata": {"client": document["metadata"]}}
    return orjson.dumps(document)
