"""The pages `docs/configuration.md`, from the settings model, and `docs/requests.md`, from the fields of the APIs."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from appliance.gateway import amount, fields
from appliance.settings import Settings

HEAD = """# Configuration

`appliance.yaml`, validated before anything starts; unknown keys are refused. Relative paths count from its folder.
Check a change with `appliance serve --config FILE --check`. This page is generated from `appliance/settings.py`.
"""

REQUESTS = f"""# Requests

What an application may send. Point an OpenAI or Anthropic client at the gateway and leave it as it is; this page tells
what the gateway adds, and what it refuses that others ignore. It is generated from `appliance/gateway/fields.py`.

A field that its path does not have is refused (`GATEWAY_FIELD`), and so is a value of another kind
(`GATEWAY_FIELD_TYPE`); `param` of the error names it. Null says nothing, anywhere. A body may be {fields.MAX_DEPTH}
levels deep and hold {amount.MAX_CONTAINERS:,} objects and lists. Tools are those that the client runs itself.
`access.fields` admits what else your model servers take. LiteLLM's own fields and headers steer the gateway and are the
operator's: [decided](decisions/0050-what-a-client-may-say.md).

| header | |
|---|---|
| `x-appliance-cost-weight` | 0 to 1: how much cost counts against quality for this request; anything else is ignored |
| `x-appliance-session` | requests of one session stay on one side of a canary; without it, `user` of the body counts |
| `traceparent`, `tracestate` | carried on into the trace |

| answer | |
|---|---|
| `x-appliance-request-id` | of this request, for `/appliance/why?request_id=` and the log |
| `x-appliance-deployment`, `x-appliance-routing` | who was chosen, and how |
| 502 `GATEWAY_UPSTREAM`, 504 `GATEWAY_UPSTREAM_TIMEOUT` | the model servers failed or were silent; ask again |
| 429 `GATEWAY_UPSTREAM_BUSY` | every model server has enough to do; ask again after `Retry-After` |
| 404 `GATEWAY_UPSTREAM_UNKNOWN` | none has the model, or what the request refers to |
| 500 `GATEWAY_UNHANDLED` | the gateway failed; asking again will not help |
"""


def markdown() -> str:
    """The page of the configuration."""
    lines = [HEAD]
    for path, model in _sections(Settings, ""):
        lines += [
            f"## {path or 'Top level'}",
            "",
            _first_paragraph(model),
            "",
            "| key | value | default | |",
            "|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            lines.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description or ''} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def requests() -> str:
    """The page of the requests."""
    lines = [REQUESTS]
    for api, known in fields.APIS.items():
        kinds: dict[str, list[str]] = {}
        for name, kind in known.items():
            kinds.setdefault(kind.says, []).append(f"`{name}`")
        lines += [f"## /v1/{api}", "", "| kind | fields |", "|---|---|"]
        lines += [f"| {says} | {', '.join(names)} |" for says, names in kinds.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for inner, suffix in _models(field.annotation):
            yield from _sections(inner, f"{path}.{name}{suffix}".lstrip("."))


def _models(annotation: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation.__module__ == Settings.__module__:  # the registry's own sections: docs/registry.md
            yield annotation, suffix
        return
    origin = typing.get_origin(annotation)
    deeper = {dict: ".NAME", tuple: "[]"}.get(origin, suffix) if origin else suffix
    for argument in typing.get_args(annotation):
        yield from _models(argument, deeper)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    compound = {
        typing.Union: lambda: " or ".join(
            dict.fromkeys(_type(item) for item in arguments if item is not types.NoneType)
        ),
        typing.Literal: lambda: ", ".join(f"`{item}`" for item in arguments),
        dict: lambda: f"mapping of {_type(arguments[1])}",
        tuple: lambda: f"list of {_type(arguments[0])}",
    }
    compound[types.UnionType] = compound[typing.Union]
    if origin in compound:
        return compound[origin]()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
    return names.get(getattr(annotation, "__name__", ""), "anything")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return ""
    if field.default is None or field.default == ():
        return "none"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())
