"""The strict readers: one document in the bytes, or a refusal with a code."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from appliance import documents
from appliance.errors import DocumentError

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_what_we_write_is_what_we_read(value):
    written = documents.write_json(value)
    assert documents.read_json(written, what="document") == value
    assert documents.read_canonical_json(written, what="document") == value


@given(plain, st.integers(0, 8), st.binary(max_size=3))
def test_the_canonical_reader_takes_what_we_write_and_nothing_else(value, where, inserted):
    written = documents.write_json(value)
    altered = written[:where] + inserted + written[where:]
    try:
        read = documents.read_canonical_json(altered, what="document")
    except DocumentError:
        return
    assert documents.write_json(read) == altered
    assert documents.read_json(altered, what="document") == read


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"a":1,"a":1}\n', "DOCUMENT_DUPLICATE_KEY"),
        (b'{"b":1,"a":1}\n', "DOCUMENT_MALFORMED"),
        (b'{"a": 1}\n', "DOCUMENT_MALFORMED"),
        (b'{"a":1}', "DOCUMENT_MALFORMED"),
        (b'{"a":"\\u0061"}\n', "DOCUMENT_MALFORMED"),
        (b'{"a":-0}\n', "DOCUMENT_MALFORMED"),
        (b'{"a":1e2}\n', "DOCUMENT_MALFORMED"),
        (b'{"a":NaN}\n', "DOCUMENT_MALFORMED"),
        (b"1" * 30 + b"\n", "DOCUMENT_MALFORMED"),
        (b"[" * 40 + b"]" * 40 + b"\n", "DOCUMENT_TOO_LARGE"),
    ],
)
def test_every_other_form_of_the_same_json_is_refused_where_the_canonical_one_is_needed(data, code):
    with pytest.raises(DocumentError) as refusal:
        documents.read_canonical_json(data, what="document")
    assert refusal.value.code == code


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udfff": 1}', '["\\ude00\\ud83d"]'])
def test_half_a_surrogate_pair_is_refused_for_nothing_could_write_it_out_again(text):
    for reader in (documents.read_json, documents.read_yaml, documents.read_canonical_json):
        with pytest.raises(DocumentError) as refusal:
            reader(text.encode(), what="document")
        assert refusal.value.code == "DOCUMENT_MALFORMED"
    assert documents.read_json(b'["\\ud83d\\ude00"]', what="document") == ["\U0001f600"]


@given(plain)
def test_the_written_form_does_not_depend_on_key_order(value):
    shuffled = json.loads(json.dumps(value))
    assert documents.write_json(shuffled) == documents.write_json(value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_code(data):
    for reader in (documents.read_json, documents.read_yaml):
        with contextlib.suppress(DocumentError):
            reader(data, what="document")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"a": 1, "a": 2}', "DOCUMENT_DUPLICATE_KEY"),
        (b'{"a": {"b": 1, "b": 1}}', "DOCUMENT_DUPLICATE_KEY"),
        (b"NaN", "DOCUMENT_MALFORMED"),
        (b"[-Infinity]", "DOCUMENT_MALFORMED"),
        (b"[1e999]", "DOCUMENT_MALFORMED"),
        (b"1" * 30, "DOCUMENT_MALFORMED"),
        (b'{"a": 1} {"a": 2}', "DOCUMENT_MALFORMED"),
        (b"\xff{}", "DOCUMENT_MALFORMED"),
        (b"[" * 100_000, "DOCUMENT_TOO_LARGE"),
        (b"[" * 40 + b"]" * 40, "DOCUMENT_TOO_LARGE"),
        (b" " * (documents.MAX_BYTES + 1), "DOCUMENT_TOO_LARGE"),
    ],
)
def test_ambiguous_json_is_refused(data, code):
    with pytest.raises(DocumentError) as refusal:
        documents.read_json(data, what="document")
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"a: 1\na: 2", "DOCUMENT_DUPLICATE_KEY"),
        (b"a: &x 1", "DOCUMENT_MALFORMED"),
        (b"a: [&x 1, *x]", "DOCUMENT_MALFORMED"),
        (b"a: !!python/object/apply:os.system [id]", "DOCUMENT_MALFORMED"),
        (b"a: !!str 1", "DOCUMENT_MALFORMED"),
        (b"a: {<<: {b: 1}}", "DOCUMENT_MALFORMED"),
        (b"a: 1\n---\nb: 2", "DOCUMENT_MALFORMED"),
        (b"? [1, 2]\n: 3", "DOCUMENT_MALFORMED"),
        (b"a: .nan", "DOCUMENT_MALFORMED"),
        (b"a: -.inf", "DOCUMENT_MALFORMED"),
        (b"a: 1.0e+999", "DOCUMENT_MALFORMED"),
        (b"a: " + b"9" * 4000, "DOCUMENT_MALFORMED"),
        (b"a: 0x" + b"f" * 40, "DOCUMENT_MALFORMED"),
        (b"[" * 100_000, "DOCUMENT_TOO_LARGE"),
    ],
)
def test_ambiguous_yaml_is_refused(data, code):
    with pytest.raises(DocumentError) as refusal:
        documents.read_yaml(data, what="document")
    assert refusal.value.code == code


@pytest.mark.parametrize("tail", ["", ".0"])
def test_numbers_to_the_base_of_sixty_are_text_and_cost_nothing(tail):
    """YAML 1.1 would make 12:30 a number; a long one took hours, or escaped as an OverflowError."""
    text = ":".join(["1"] * 2_000) + tail
    assert documents.read_yaml(f"from: 12:30\nlong: {text}\n".encode(), what="document") == {
        "from": "12:30",
        "long": text,
    }


def test_honest_yaml_is_read_and_dates_stay_text():
    text = b"# comment\nname: gateway\nversion: 2026-11-23\nweights: {a: 1, b: 0.5}\nnested:\n- [x, y]\n"
    assert documents.read_yaml(text, what="document") == {
        "name": "gateway",
        "version": "2026-11-23",
        "weights": {"a": 1, "b": 0.5},
        "nested": [["x", "y"]],
    }


class Listener(BaseModel):
    model_config = ConfigDict(extra="forbid")
    port: int


def test_every_violation_of_a_schema_is_named():
    with pytest.raises(DocumentError) as refusal:
        documents.validate(Listener, {"port": "high", "prot": 1}, what="listener")
    assert refusal.value.code == "DOCUMENT_SCHEMA"
    assert [problem.split(":")[0] for problem in refusal.value.evidence["problems"]] == ["port", "prot"]
    assert documents.validate(Listener, {"port": 8443}, what="listener").port == 8443
