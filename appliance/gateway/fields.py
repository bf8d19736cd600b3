"""What a client may say in a body: for each served API the fields it has, and of which kind.

A list of what is allowed, because the list of what is not has no end: LiteLLM takes hundreds of names out of a body to
steer itself (`timeout`, `fallbacks`, `extra_body`, `ssl_verify`, prices, credentials, tool servers ...), and the next
version takes others. See docs/decisions/0050-what-a-client-may-say.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64  # levels; LiteLLM copies bodies recursively
MAX_METADATA = 16  # entries, as OpenAI has it


@dataclass(frozen=True)
class Kind:
    """A kind of value; null, which says nothing, is of every kind.

    Attributes:
        says: what it is, for the refusal.
        holds: whether a value is one.
    """

    says: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _object(**fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """An object whose named fields, where they are given, pass their tests."""
    return lambda value: (
        isinstance(value, dict) and all(value.get(name) is None or test(value[name]) for name, test in fields.items())
    )


def _either(*tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(test(value) for test in tests)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and "://" not in value  # LiteLLM would fetch it


_called = _object(name=_is_text, arguments=_is_text)
_cached = _object(type=_is_text, ttl=_is_text)
_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "text": _is_text,
    "image_url": _either(_is_text, _object(url=_is_text, detail=_is_text)),
    "input_audio": _object(data=_is_text, format=_is_text),
    "file": _object(file_data=_is_text, file_id=_is_id, filename=_is_text, format=_is_text),
}
_part_fields = _object(cache_control=_cached, **_PARTS)


def _is_part(part: Any) -> bool:
    """A part of OpenAI's: a type, and what the type says it holds."""
    if not _part_fields(part) or not isinstance(part.get("type"), str):
        return False
    return part["type"] not in _PARTS or part.get(part["type"]) is not None


def _is_block(block: Any) -> bool:
    """A block of Anthropic's content."""
    return (
        _object(text=_is_text, cache_control=_cached)(block)
        and isinstance(block.get("type"), str)
        and (block["type"] == "text" or block["type"] not in _PARTS)
    )


# of a user's turn; LiteLLM knows no others, and calls one that it does not know a failure of the model server
USERS_PARTS = frozenset(
    {
        "text", "image_url", "input_audio", "audio_url", "video_url", "document", "file",
        "guarded_text", "grounding_source", "query",
    }
)  # fmt: skip
_message_fields = _object(
    content=_either(_is_text, _are(_is_part)),
    name=_is_text,
    tool_call_id=_is_text,
    tool_calls=_are(_object(id=_is_text, type=_is_text, function=_called)),
    function_call=_called,
    refusal=_is_text,
    reasoning_content=_is_text,
    cache_control=_cached,
)
_SILENT = frozenset({"assistant", "tool", "function"})  # whose turn may hold no text


def _is_message(message: Any) -> bool:
    if not _message_fields(message) or not isinstance(message.get("role"), str) or not message["role"]:
        return False
    content = message.get("content")
    if message["role"] == "user" and isinstance(content, list):
        return all(part["type"] in USERS_PARTS for part in content)
    return content is not None or message["role"] in _SILENT


def _is_turn(turn: Any) -> bool:
    """A message of Anthropic's API."""
    return (
        isinstance(turn, dict)
        and turn.get("role") in ("user", "assistant")
        and _either(_is_text, _are(_is_block))(turn.get("content"))
    )


# run by whoever asks; a hosted tool (mcp, web search, file search) would make gateway or model server reach out
_CLIENTS_TOOLS = re.compile(r"(?:function|custom|(?:bash|text_editor|computer|memory)_\d{8})")


def _is_tool(tool: Any) -> bool:
    named = _object(
        name=_is_text, description=_is_text, parameters=_is_object, input_schema=_is_object, strict=_is_flag
    )
    return (
        named(tool)
        and _object(function=named, custom=_is_object, format=_is_object)(tool)
        and isinstance(tool.get("type", "custom"), str)
        and _CLIENTS_TOOLS.fullmatch(tool.get("type", "custom")) is not None
    )


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_METADATA
        and all(len(key) <= 64 and isinstance(text, str) and len(text) <= 512 for key, text in value.items())
    )


ANYTHING = Kind("anything", lambda _: True)
TEXT = Kind("text", _is_text)
FLAG = Kind("true or false", _is_flag)
WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a number", _is_number)
OBJECT = Kind("an object", _is_object)
TEXTS = Kind("a list of texts", _are(_is_text))
WHOLES = Kind("a list of whole numbers", _are(_is_whole))
NUMBERS = Kind("an object of numbers", lambda v: isinstance(v, dict) and all(map(_is_number, v.values())))
TEXT_OR_TEXTS = Kind("text or a list of texts", _either(_is_text, _are(_is_text)))
TEXT_OR_OBJECT = Kind("text or an object", _either(_is_text, _is_object))
TOKENS = Kind(
    "text, a list of texts, or tokens",
    _either(_is_text, _are(_is_text), _are(_is_whole), _are(_are(_is_whole))),
)
PROMPT = Kind("text, a list of texts, or tokens; not empty", lambda value: value != [] and TOKENS.holds(value))
MESSAGES = Kind("a list of messages with role and content", _are(_is_message))
ITEMS = Kind("text or a list of items", _either(_is_text, _are(_object(role=_is_text, type=_is_text))))
TURNS = Kind("a list of turns of user and assistant with content", _are(_is_turn))
SYSTEM = Kind("text or a list of text parts", _either(_is_text, _are(_is_block)))
FUNCTIONS = Kind("a list of functions", _are(_object(name=_is_text, description=_is_text, parameters=_is_object)))
TOOLS = Kind("a list of tools that the client runs itself", _are(_is_tool))
FORMAT = Kind(
    "an object with a type",
    _object(type=_is_text, json_schema=_object(name=_is_text, schema=_is_object, strict=_is_flag)),
)
TEXT_FORMAT = Kind("an object", _object(format=_object(type=_is_text, name=_is_text, schema=_is_object)))
STREAM_OPTIONS = Kind(
    "an object of flags", lambda v: isinstance(v, dict) and all(flag is None or _is_flag(flag) for flag in v.values())
)
METADATA = Kind("at most 16 short texts by name", _is_metadata)
REASONING = Kind("an object of texts", _object(effort=_is_text, summary=_is_text))
THINKING = Kind("an object with a type", _object(type=_is_text, budget_tokens=_is_whole))
DOCUMENTS = Kind("a list of texts or objects", _are(_either(_is_text, _is_object)))

Fields = Mapping[str, Kind]


def _fields(kind: Kind, names: str) -> dict[str, Kind]:
    return dict.fromkeys(names.split(), kind)


_EVERY = {"model": TEXT, "user": TEXT, "metadata": METADATA}
_STREAM = {"stream": FLAG, "stream_options": STREAM_OPTIONS}
_SAMPLING = _fields(NUMBER, "temperature top_p")
# what vLLM, SGLang, llama.cpp and TGI take beside OpenAI's, and what steers nothing but the sampling of one answer
_SERVERS = {
    **_fields(NUMBER, "min_p repetition_penalty length_penalty typical_p"),
    **_fields(WHOLE, "top_k min_tokens prompt_logprobs truncate_prompt_tokens thinking_token_budget"),
    **_fields(
        FLAG,
        "ignore_eos skip_special_tokens spaces_between_special_tokens include_stop_str_in_output echo "
        "add_generation_prompt continue_final_message add_special_tokens use_beam_search include_reasoning "
        "return_token_ids return_tokens_as_token_ids",
    ),
    **_fields(TEXT, "guided_regex guided_grammar guided_decoding_backend grammar regex cache_salt"),
    **_fields(TEXTS, "guided_choice bad_words"),
    **_fields(WHOLES, "stop_token_ids allowed_token_ids"),
    **_fields(OBJECT, "structured_outputs chat_template_kwargs mm_processor_kwargs"),
    **_fields(TEXT_OR_OBJECT, "guided_json"),
}
_OPENAI = {
    **_fields(NUMBER, "frequency_penalty presence_penalty"),
    **_fields(WHOLE, "n seed max_tokens"),
    "stop": TEXT_OR_TEXTS,
    "logit_bias": NUMBERS,
}
CHAT: Fields = {
    **_EVERY, **_STREAM, **_SAMPLING, **_SERVERS, **_OPENAI,
    "messages": MESSAGES,
    **_fields(WHOLE, "max_completion_tokens top_logprobs"),
    **_fields(FLAG, "logprobs parallel_tool_calls store"),
    **_fields(
        TEXT, "reasoning_effort verbosity service_tier safety_identifier prompt_cache_key prompt_cache_retention"
    ),
    **_fields(OBJECT, "audio prediction"),
    "modalities": TEXTS, "response_format": FORMAT, "thinking": THINKING,
    "tools": TOOLS, "tool_choice": TEXT_OR_OBJECT, "functions": FUNCTIONS, "function_call": TEXT_OR_OBJECT,
}  # fmt: skip
COMPLETIONS: Fields = {
    **_EVERY, **_STREAM, **_SAMPLING, **_SERVERS, **_OPENAI,
    "prompt": PROMPT, "suffix": TEXT, "response_format": FORMAT, **_fields(WHOLE, "logprobs best_of"),
}  # fmt: skip
EMBEDDINGS: Fields = {
    **_EVERY, "input": TOKENS, "encoding_format": TEXT, **_fields(WHOLE, "dimensions truncate_prompt_tokens"),
}  # fmt: skip
RESPONSES: Fields = {
    **_EVERY, **_STREAM, **_SAMPLING,
    "input": ITEMS,
    **_fields(
        TEXT,
        "instructions previous_response_id service_tier truncation safety_identifier prompt_cache_key "
        "prompt_cache_retention",
    ),
    **_fields(WHOLE, "max_output_tokens max_tool_calls top_logprobs"),
    **_fields(FLAG, "parallel_tool_calls store"),
    "include": TEXTS, "reasoning": REASONING, "text": TEXT_FORMAT, "tools": TOOLS, "tool_choice": TEXT_OR_OBJECT,
}  # fmt: skip
COUNTED: Fields = {
    "model": TEXT, "messages": TURNS, "system": SYSTEM, "tools": TOOLS, "tool_choice": OBJECT, "thinking": THINKING,
}  # fmt: skip
ANTHROPIC: Fields = {
    **COUNTED, **_SAMPLING,
    "stream": FLAG, "metadata": Kind("an object with user_id", _object(user_id=_is_text)),
    **_fields(WHOLE, "max_tokens top_k"), "stop_sequences": TEXTS, "service_tier": TEXT,
}  # fmt: skip
RERANK: Fields = {
    **_EVERY,
    "query": TEXT, "documents": DOCUMENTS, "rank_fields": TEXTS, "return_documents": FLAG,
    **_fields(WHOLE, "top_n max_chunks_per_doc max_tokens_per_doc truncate_prompt_tokens"),
}  # fmt: skip

APIS: Mapping[str, Fields] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "responses": RESPONSES,
    "messages": ANTHROPIC,
    "messages/count_tokens": COUNTED,
    "rerank": RERANK,
}
NEEDED: Mapping[str, str] = {
    **dict.fromkeys(("chat/completions", "messages", "messages/count_tokens"), "messages"),
    "completions": "prompt",
}
# where LiteLLM takes what a client wrote there for its own: it is handed on one level down
OWN_METADATA = frozenset({"chat/completions", "completions", "embeddings", "rerank"})


def too_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether containers lie in one another more than `limit` levels deep; without recursion."""
    level: list[Any] = [value]
    for _ in range(limit):
        if not level:
            return False
        level = [inner for each in level for inner in _inside(each) if isinstance(inner, dict | list)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
