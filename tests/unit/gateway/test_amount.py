"""A body of more parts than any honest request has is refused before anything is made of it; a long text is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway import amount, edge
from appliance.gateway.access import Principal

TEXTS = st.text(alphabet='a"\\\\{[,]}\u2028', max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=30,
)


def counted(value: Any) -> tuple[int, int]:
    """Containers and commas, by walking through them."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(n for n, _ in inner), max(len(value) - 1, 0) + sum(n for _, n in inner)


@given(VALUES)
def test_what_stands_in_texts_is_not_counted(value):
    containers, commas = counted(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amount, "MAX_CONTAINERS", 4)
        patch.setattr(amount, "MAX_VALUES", 8)
        assert amount.is_too_much(json.dumps(value).encode()) == (containers > 4 or commas >= 8)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "chat", "messages": [' + b"{}," * amount.MAX_CONTAINERS + b"{}]}",
        b'{"model": "chat", "messages": [' + b"[" * amount.MAX_CONTAINERS,
        b'{"model": "chat", "input": [' + b"1," * amount.MAX_VALUES + b"1]}",
    ],
    ids=["objects", "lists without an end", "numbers"],
)
def test_a_body_of_too_many_parts_is_too_large(body):
    with pytest.raises(edge.Refused) as refusal:
        edge.checked(body, Principal("master"), "/v1/chat/completions")
    assert (refusal.value.status, refusal.value.code) == (413, "too_large")


def test_a_long_program_in_a_prompt_passes():
    prompt = 'if (a[0] == "{") { f([1, 2, 3]); }\n' * 100_000
    body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": prompt}]}).encode()
    assert edge.checked(body, Principal("master"), "/v1/chat/completions")["model"] == "chat"
