"""The names by which LiteLLM may be steered from a body, read from its source without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from appliance.errors import ConfigError

FILES = (
    "main.py", "router.py", "types/litellm_params.py", "types/router.py", "types/utils.py", "responses/main.py",
    "rerank_api/main.py", "proxy/litellm_pre_call_utils.py", "proxy/common_request_processing.py",
    "proxy/route_llm_request.py", "proxy/auth/auth_utils.py",
)  # fmt: skip
BAGS = ("kwargs", "data", "params", "body", "request")  # what the dictionaries are called that hold a request


@lru_cache(maxsize=1)
def steering_names() -> frozenset[str]:
    """Parameters of its functions, fields of its models, and keys that it asks a request for: some 2,700.

    Raises:
        ConfigError: CONFIG_LITELLM where its source is not as the pinned version has it.
    """
    try:
        spec = importlib.util.find_spec("litellm")
        root = Path(str(spec.origin if spec is not None else "")).parent
        sources = [(root / file).read_text("utf-8") for file in FILES]
    except OSError as error:
        raise ConfigError("CONFIG_LITELLM", f"LiteLLM's source cannot be read: {error.strerror}") from None
    return frozenset(name for source in sources for name in _names(ast.parse(source)) if name)


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name) if name != "self":
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Call(
                func=ast.Attribute(value=bag, attr="get" | "pop" | "setdefault"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                if _holds_a_request(bag):
                    yield name
            case ast.Subscript(value=bag, slice=ast.Constant(value=str(name))) if _holds_a_request(bag):
                yield name
            case ast.Compare(left=ast.Constant(value=str(name)), comparators=[bag]) if _holds_a_request(bag):
                yield name


def _holds_a_request(node: ast.expr) -> bool:
    return any(word in ast.unparse(node) for word in BAGS)
