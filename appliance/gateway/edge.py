"""What a request must be before LiteLLM sees it: a served path, a bounded JSON object, a group that its key reaches."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import UnionType
from typing import Any

import orjson

from appliance.gateway.access import Principal

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WITH_BODY = re.compile(
    r"/(?:v1/)?(?:chat/completions|completions|embeddings|responses|messages|messages/count_tokens|rerank)"
)
WITHOUT_BODY = re.compile(r"/(?:v1/)?models(?:/[A-Za-z0-9._:@+-]{1,256})?")
HEALTH = re.compile(r"/health/(?:liveliness|liveness|readiness)")


# what LiteLLM takes from a body to steer itself: a client that sets them fakes answers, chooses the upstream or the key
INTERNAL = frozenset(
    {
        "api_base", "base_url", "api_key", "api_version", "organization", "mock_response", "mock_tool_calls",
        "mock_timeout", "specific_deployment", "model_info", "deployment_id", "litellm_params", "litellm_call_id",
        "litellm_logging_obj", "litellm_trace_id", "proxy_server_request", "custom_llm_provider", "client",
        "router", "model_list", "extra_headers", "headers", "callbacks", "success_callback", "failure_callback",
        "user_config", "allowed_model_region", "guardrails", "silent_model", "fastest_response", "secret_fields",
    }
)  # fmt: skip
# LiteLLM turns other types at these places into errors of the server
TYPES: dict[str, type | UnionType] = {
    "metadata": dict | None,
    "litellm_metadata": dict | None,
    "stream_options": dict | None,
    "response_format": dict | None,
    "tools": list | None,
    "functions": list | None,
    "fallbacks": list | None,
    "stream": bool | None,
    "user": str | None,
    "temperature": int | float | None,
    "top_p": int | float | None,
    "max_tokens": int | None,
    "max_completion_tokens": int | None,
    "n": int | None,
}


class Refused(Exception):  # noqa: N818 (an answer)
    """The request is answered here: status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


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


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 where it is longer than `limit` bytes.
    """
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > limit:
            raise Refused(413, "too_large", f"the body is longer than {limit} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then whatever the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def as_json(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request whose body was checked as JSON, so that LiteLLM cannot read it as anything else.

    LiteLLM goes by the content type: the same bytes, called a form, would carry other fields than those checked here.
    """
    kept = [(name, value) for name, value in headers if name not in {b"content-type", b"content-encoding"}]
    return [*kept, (b"content-type", b"application/json")]


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


def checked(body: bytes, principal: Principal) -> dict[str, Any]:
    """The parsed body, refused before anybody acts on it where it is not what every served API begins with.

    Raises:
        Refused: 400, or 403 where the key does not reach the model group.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}"[:200]) from None
    if not isinstance(document, dict):
        raise Refused(400, "invalid_request_error", "the body is not a JSON object")
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "invalid_request_error", "model must name a model group")
    if not principal.may_use(model):
        raise Refused(403, "model_not_allowed", "this key does not reach that model group")
    steering = sorted(name for name in document if name in INTERNAL or name.startswith("_"))
    if steering:
        raise Refused(400, "invalid_request_error", f"not for clients: {', '.join(steering)[:200]}")
    for name, kind in TYPES.items():
        if not isinstance(document.get(name), kind):
            raise Refused(400, "invalid_request_error", f"{name} has a value of the wrong type")
    messages = document.get("messages", [])
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise Refused(400, "invalid_request_error", "messages must be a list of objects with role and content")
    return document


def _is_message(message: Any) -> bool:
    """Whether it has the form every served API gives a message: a role, and content of text or parts."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
        return False
    content = message.get("content")
    return (
        content is None
        or isinstance(content, str)
        or (isinstance(content, list) and all(isinstance(part, dict | str) for part in content))
    )
