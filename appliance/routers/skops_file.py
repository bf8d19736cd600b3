"""skops files (scikit-learn without pickle), read by a pinned list of node types.

skops itself trusts every public class of scikit-learn and SciPy's functions. That is more than a routing estimator
needs and changes with the installed versions, so the schema is walked here first, against a list that names both the
class and the node that may build it. What calls functions or methods (`MethodNode`, `OperatorFuncNode`, `FunctionNode`,
`PartialNode`) is not in it: CVE-2025-54412, CVE-2025-54413.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from appliance.errors import RouterError
from appliance.routers.archives import hidden_part
from appliance.routers.pickles import SKLEARN

FLOOR = (0, 13)  # below: CVE-2024-37065, CVE-2025-54412, CVE-2025-54413, CVE-2025-54886
PROTOCOL = 2  # an older protocol selects older node classes
MAX_SCHEMA_BYTES = 16 * 1024**2
MAX_DEPTH = 64
MAX_MEMBERS = 4096
MAX_UNFOLDING = 16  # members read, each as often as the schema names it, times the file's length
LEAST_UNFOLDED_BYTES = 16 * 1024**2  # small files may be mostly zeros

_BUILT_IN = frozenset(
    {
        ("builtins", "dict", "DictNode"),
        ("builtins", "list", "ListNode"),
        ("builtins", "tuple", "TupleNode"),
        ("builtins", "str", "JsonNode"),
        ("builtins", "str", "TypeNode"),
        ("numpy", "ndarray", "NdArrayNode"),
        ("numpy", "int64", "NdArrayNode"),
        ("numpy", "float32", "NdArrayNode"),
        ("numpy", "float64", "NdArrayNode"),
        ("numpy.random.mtrand", "RandomState", "RandomStateNode"),
    }
)
_ESTIMATORS = frozenset(
    (module, name, "ObjectNode")
    for module, names in SKLEARN.items()
    if module.startswith("sklearn.")
    for name in names
    if name != "newObj"
)
PINNED = _BUILT_IN | _ESTIMATORS


def load(data: bytes, *, what: str) -> Any:
    """Build the estimator of *verified* bytes.

    Args:
        data: the whole file.
        what: its name, for messages.

    Raises:
        RouterError: ROUTER_BACKEND where skops is missing or too old; ROUTER_MODEL_IMPORT for a node outside the list;
            ROUTER_MODEL for anything malformed.
    """
    require_skops()
    return build(data, what=what)


def build(data: bytes, *, what: str) -> Any:
    """As `load`, where the version was looked at before: a confined process can open no file to do so.

    Raises:
        RouterError: ROUTER_MODEL_IMPORT, ROUTER_MODEL.
    """
    try:
        _check(data, what)
        import skops.io

        return skops.io.loads(data, trusted=sorted(f"{module}.{name}" for module, name, _ in PINNED))
    except (RouterError, ImportError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (zip, JSON and skops each raise their own)
        raise RouterError("ROUTER_MODEL", f"{what} is no well-formed skops file: {str(error)[:200]}") from None


def require_skops() -> None:
    """Look whether skops is there and new enough.

    Raises:
        RouterError: ROUTER_BACKEND.
    """
    try:
        found = version("skops")
    except PackageNotFoundError:
        raise RouterError(
            "ROUTER_BACKEND", "a skops router needs the packages skops and scikit-learn", package="skops"
        ) from None
    if tuple(int(part) for part in found.split(".")[:2]) < FLOOR:
        floor = ".".join(map(str, FLOOR))
        raise RouterError("ROUTER_BACKEND", f"skops {found} is older than {floor}", package="skops", floor=floor)


def check(data: bytes, *, what: str) -> None:
    """Look into a file without building anything.

    Raises:
        RouterError: ROUTER_MODEL_IMPORT for a node outside the list; ROUTER_MODEL for anything malformed.
    """
    try:
        _check(data, what)
    except RouterError:
        raise
    except Exception as error:  # noqa: BLE001 (zip and JSON raise their own)
        raise RouterError("ROUTER_MODEL", f"{what} is no well-formed skops file: {str(error)[:200]}") from None


def _check(data: bytes, what: str) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
            raise RouterError("ROUTER_MODEL", f"{what} has too many members, or one twice", members=len(names))
        if hidden := hidden_part(archive, data):
            raise RouterError("ROUTER_MODEL", f"{what}: {hidden}")
        if archive.getinfo("schema.json").file_size > MAX_SCHEMA_BYTES:
            raise RouterError("ROUTER_MODEL", f"the schema of {what} is longer than {MAX_SCHEMA_BYTES} bytes")
        schema = json.loads(archive.read("schema.json"))
        sizes = {info.filename: info.file_size for info in infos}  # no more than that is read of a member
    if not isinstance(schema, dict) or schema.get("protocol") != PROTOCOL or isinstance(schema["protocol"], bool):
        raise RouterError("ROUTER_MODEL", f"{what} is not written in protocol {PROTOCOL}")
    _walk(schema, sizes, max(LEAST_UNFOLDED_BYTES, MAX_UNFOLDING * len(data)), what)


def _walk(schema: dict[str, Any], sizes: Mapping[str, int], left: int, what: str) -> None:
    """Look at every node; `left` bytes may be read of members of these sizes, and every member is one that is read."""
    pending: list[tuple[Any, int]] = [(schema, 0)]
    read = {"schema.json"}
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise RouterError("ROUTER_MODEL", f"the schema of {what} is nested too deeply")
        if isinstance(value, dict):
            if "__loader__" in value or "__class__" in value:
                _check_node(value, what)
            if isinstance(file := value.get("file"), str):
                left -= sizes[file]
                read.add(file)
            if left < 0:
                raise RouterError("ROUTER_MODEL", f"the arrays of {what} are many times as large as the file")
            pending += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list):
            pending += [(child, depth + 1) for child in value]
    if spare := sorted(set(sizes) - read):
        raise RouterError("ROUTER_MODEL", f"{what} holds {spare[0][:80]!r}, which its schema does not name")


def _check_node(node: dict[str, Any], what: str) -> None:
    named = (node.get("__module__"), node.get("__class__"), node.get("__loader__"))
    if named not in PINNED:
        text = ".".join(str(part)[:100] for part in named[:2])
        raise RouterError(
            "ROUTER_MODEL_IMPORT", f"{what} would build {text} through {str(named[2])[:100]}", imports=text
        )
