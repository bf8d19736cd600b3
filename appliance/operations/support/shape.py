"""The allow-list as a shape: which keys of a report leave the host, and what their values must look like.

A shape is a mapping of keys to shapes, a list with the shape of its items, `EVERY(shape)` for names as keys, or a leaf
that says whether a value may pass. Whatever does not fit is left out and counted; nothing is redacted in place.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import appliance

Leaf = Callable[[Any], bool]
Shape = Any  # Mapping[str, Shape] | list[Shape] | Every | Leaf

_NAME = re.compile(r"(?=.{1,160}\Z)[A-Za-z0-9(][A-Za-z0-9._:/@+()\[\],=-]*( [A-Za-z0-9._+-]+)?\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|\+00:00)?\Z")
_HEX = re.compile(r"[0-9a-f]{8,64}\Z")
_CODE = re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)+\Z")
_SECRET_SHAPES = re.compile(
    r"-----BEGIN|PRIVATE KEY|\bsk-[A-Za-z0-9_-]{6}|\bA[KS]IA[A-Z0-9]{12}|\beyJ[A-Za-z0-9_-]{10}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16}|(?i:\bbearer\s+\S{8})|(?i:(password|passwd|secret|token|api[_-]?key)\s*[=:]\s*\S)|://[^/\s:@]+:[^/\s@]+@"
)
_TOKEN = re.compile(r"[A-Za-z0-9+/=]{16,}")


@dataclass(frozen=True)
class Every:
    """Any key that is a name, with values of one shape."""

    shape: Shape


def number(value: Any) -> bool:
    """A number or a flag."""
    return value is None or isinstance(value, bool | int | float)


def name(value: Any) -> bool:
    """A short name: of a model, a version, a role; never one that looks like a secret."""
    return isinstance(value, str) and bool(_NAME.match(value)) and not looks_secret(value)


def phrase(value: Any) -> bool:
    """A log message that stands word for word in the appliance's own source: it cannot hold anybody's data."""
    return isinstance(value, str) and value in _phrases()


def time(value: Any) -> bool:
    """An RFC 3339 time."""
    return isinstance(value, str) and bool(_TIME.match(value))


def digest(value: Any) -> bool:
    """Lower-case hex of a SHA-256, or its beginning."""
    return isinstance(value, str) and bool(_HEX.match(value))


def code(value: Any) -> bool:
    """A code such as those of the catalogue."""
    return isinstance(value, str) and bool(_CODE.match(value))


def fact(value: Any) -> bool:
    """A number, a time, a digest or a code: evidence that holds no words."""
    return any(leaf(value) for leaf in (number, time, digest, code))


def looks_secret(text: str) -> bool:
    """Whether something in a text has the form of a key, a token or a password: known forms, or a long random word."""
    if _SECRET_SHAPES.search(text):
        return True
    return any(_random(token) for token in _TOKEN.findall(text))


def fit(value: Any, shape: Shape, left_out: Counter[str], path: str = "") -> Any:  # noqa: PLR0911 (one a kind)
    """The part of a value that a shape allows.

    Args:
        value: plain data.
        shape: what may leave.
        left_out: counts what did not fit, by path without names.
        path: of the value.
    """
    if isinstance(shape, Every):
        if not isinstance(value, Mapping):
            return _leave_out(path, left_out)
        kept = {key: fit(item, shape.shape, left_out, f"{path}.*") for key, item in value.items() if name(key)}
        left_out[f"{path}.*"] += len(value) - len(kept)
        return kept
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return _leave_out(path, left_out)
        for key in value.keys() - shape.keys():
            left_out[f"{path}.{key if name(key) else '?'}"] += 1
        return {key: fit(value[key], part, left_out, f"{path}.{key}") for key, part in shape.items() if key in value}
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return _leave_out(path, left_out)
        return [fit(item, shape[0], left_out, f"{path}[]") for item in value]
    return value if value is None or shape(value) else _leave_out(path, left_out)


@cache
def _phrases() -> frozenset[str]:
    package = Path(appliance.__file__).parent
    calls = (node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_bytes())))
    return frozenset(
        node.args[0].value
        for node in calls
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"debug", "info", "warning", "error", "exception", "critical"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def _leave_out(path: str, left_out: Counter[str]) -> None:
    left_out[path] += 1


def _random(token: str) -> bool:
    """Whether a long word has the entropy of a key: hexadecimal digests are no secrets and have leaves of their own."""
    classes = sum(bool(re.search(kind, token)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    if classes < 2 or ("/" in token.strip("/") and classes < 3):
        return False
    counts = Counter(token)
    entropy = -sum(n / len(token) * math.log2(n / len(token)) for n in counts.values())
    return entropy > 3.4
