"""Strict readers and one canonical writer for the small documents the appliance exchanges.

Two readers must never see two documents in the same bytes: duplicate keys, YAML tags, anchors and merge keys, NaN,
and invalid UTF-8 are refused, size and depth are bounded. Reading happens on bytes that were verified before.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from appliance.errors import DocumentError

MAX_BYTES = 4 * 1024 * 1024  # bytes; larger documents name their own limit
MAX_DEPTH = 32  # nested mappings and sequences
_MAX_DIGITS = 20  # of a whole number

Model = TypeVar("Model", bound=BaseModel)


def read_json(data: bytes, *, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON strictly.

    Args:
        data: the document's bytes.
        what: its name for messages, e.g. `release manifest`.
        max_bytes: refuse anything longer before parsing.

    Raises:
        DocumentError: DOCUMENT_TOO_LARGE, DOCUMENT_MALFORMED, DOCUMENT_DUPLICATE_KEY.
    """
    text = _decode(data, what, max_bytes)
    try:
        value = _JSON.decode(text)
    except RecursionError:
        raise DocumentError("DOCUMENT_TOO_LARGE", f"{what}: nested too deeply", max_depth=MAX_DEPTH) from None
    except DocumentError as error:
        raise DocumentError(error.code, f"{what}: {error.cause}", **error.evidence) from None
    except ValueError as error:
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: {error}") from None
    _check_depth(value, what)
    _check_text(value, text, what)
    return value


def read_canonical_json(data: bytes, *, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON that must be, byte for byte, what `write_json` makes of it.

    So there is nothing left to be ambiguous about: a key that stands twice, say, would not come out twice.

    Args and Raises: as `read_json`; DOCUMENT_MALFORMED also for every other form.
    """
    text = _decode(data, what, max_bytes)
    try:
        value = _PLAIN_JSON.decode(text)
        canonical = write_json(value) == data
    except (ValueError, RecursionError, DocumentError):
        canonical = False
    if not canonical:
        read_json(data, what=what, max_bytes=max_bytes)  # knows better what is wrong, if anything is
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: not in canonical form")
    _check_depth(value, what)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise DocumentError("DOCUMENT_DUPLICATE_KEY", f"key {key!r} stands twice", key=key)
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise DocumentError("DOCUMENT_MALFORMED", f"{name} is not JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise DocumentError("DOCUMENT_MALFORMED", f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise DocumentError("DOCUMENT_MALFORMED", f"{digits[:20]} is out of range")
    return value


_JSON = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_int=_whole_number, parse_float=_finite
)
_CANONICAL_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
_PLAIN_JSON = json.JSONDecoder(parse_constant=_no_constant, parse_int=_whole_number, parse_float=_finite)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without anchors, tags, merge keys and duplicate keys; its numbers are JSON's."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not accepted", event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, f"tag {event.tag} is not accepted", event.start_mark)
        return super().compose_node(parent, index)


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool) or key == "<<":
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not accepted", key_node.start_mark)
        if key in result:
            line = key_node.start_mark.line + 1
            raise DocumentError("DOCUMENT_DUPLICATE_KEY", f"key {key!r} stands twice", key=key, line=line)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _strict_number(loader: _StrictLoader, node: yaml.ScalarNode) -> str | int | float:
    """A number as JSON bounds it; YAML's third kind, to the base of sixty, stays text (12:30, a port after a port)."""
    text = loader.construct_scalar(node)
    if ":" in text:
        return text
    if node.tag.endswith(":int"):
        if len(text) > _MAX_DIGITS + 4:  # a sign, 0x, a separator or two
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return loader.construct_yaml_int(node)
    value = loader.construct_yaml_float(node)
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{text[:20]} is no number here", node.start_mark)
    return value


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _strict_mapping)
for _kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _strict_number)
# dates stay text: a version such as 2026-11-23 is a name, not a day
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(data: bytes, *, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse one YAML document strictly: no tags, anchors, merge keys, duplicate keys, NaN; dates and times stay text.

    Args and Raises: as `read_json`.
    """
    text = _decode(data, what, max_bytes)
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a subclass of SafeLoader)
    except RecursionError:
        raise DocumentError("DOCUMENT_TOO_LARGE", f"{what}: nested too deeply", max_depth=MAX_DEPTH) from None
    except DocumentError as error:
        raise DocumentError(error.code, f"{what}: {error.cause}", **error.evidence) from None
    except yaml.YAMLError as error:
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: {error}") from None
    _check_depth(value, what)
    _check_text(value, text, what)
    return value


def validate(model: type[Model], value: Any, *, what: str, context: dict[str, Any] | None = None) -> Model:
    """Build a pydantic model from a parsed document; every violation is named in one refusal.

    Args:
        model: what the document must be.
        value: the parsed document.
        what: its name for messages.
        context: what the model's validators need to know, e.g. the folder that relative paths count from.

    Raises:
        DocumentError: DOCUMENT_SCHEMA.
    """
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'document'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        ]
        raise DocumentError("DOCUMENT_SCHEMA", f"{what}: {'; '.join(problems[:5])}", problems=problems) from None


def paths_below(model: Model, base: Path) -> Model:
    """The same settings with every relative path counted from `base`, also in the sections within."""
    moved: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Path):
            moved[name] = path_below(value, base)
        elif isinstance(value, BaseModel):
            moved[name] = paths_below(value, base)
    return model.model_copy(update=moved)


def path_below(path: Path, base: Path) -> Path:
    """A path as a person writes it, `~` included, counted from `base`."""
    return base / path.expanduser()


def write_json(value: Any) -> bytes:
    """Canonical JSON (RFC 8785 for the values we use: no floats beyond JSON's shortest form), ending in a newline."""
    return _CANONICAL_JSON.encode(value).encode("utf-8") + b"\n"


def _decode(data: bytes, what: str, max_bytes: int) -> str:
    if len(data) > max_bytes:
        raise DocumentError("DOCUMENT_TOO_LARGE", f"{what}: larger than allowed", bytes=len(data), max_bytes=max_bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: not UTF-8 at byte {error.start}") from None


def _check_text(value: Any, text: str, what: str) -> None:
    r"""Refuse half a surrogate pair, which an escape such as `\ud800` can smuggle in and no encoding can write out."""
    if "\\" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: an escape is half a surrogate pair") from None


def _check_depth(value: Any, what: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise DocumentError("DOCUMENT_TOO_LARGE", f"{what}: nested too deeply", max_depth=MAX_DEPTH)
