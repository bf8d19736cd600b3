"""The human's text in a request of any of the served APIs, and how much of it there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.routers.prompt import is_human, prompt_text, text_parts


def of_request(messages: Sequence[Any] | None, body: Mapping[str, Any]) -> str:
    """The cleaned last human turn.

    Args:
        messages: of chat completions and messages; None elsewhere.
        body: the request; `input` (responses, embeddings) and `prompt` (completions) are looked at.
    """
    return prompt_text(_turns(messages, body))


def characters(messages: Sequence[Any] | None, body: Mapping[str, Any]) -> int:
    """Characters of all human turns, before cleaning: what cleaning will cost."""
    human = (turn.get("content") for turn in _turns(messages, body) if is_human(turn))
    return sum(len(part) for content in human for part in text_parts(content))


def _turns(messages: Sequence[Any] | None, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if messages is not None:
        return [turn for turn in messages if isinstance(turn, Mapping)]
    given = body.get("input", body.get("prompt"))
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if isinstance(given, list):
        if all(isinstance(item, str) for item in given):
            return [{"role": "user", "content": "\n".join(given)}]
        return [item for item in given if isinstance(item, Mapping)]
    return []
