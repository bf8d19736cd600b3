"""A look inside an ONNX file before a runtime parses it.

onnxruntime follows *external data* (tensors that name another file, by a path the model chooses) and runs whatever
operator the file asks for. Both are refused here with a reader of the few protobuf fields that matter
(onnx.proto, IR version 10): what is left is one self-contained graph of well-known tensor operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from appliance.errors import RouterError

MAX_DEPTH = 8  # nested subgraphs
MAX_NODES = 100_000
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
# control flow can loop for ever or grow without bound, chance makes every trial worthless; no export of ours needs them
FORBIDDEN_OPERATORS = frozenset(
    {"Loop", "Scan", "If", "SequenceMap", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"}
    | {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_ORT_FORMAT = b"ORTM"  # https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


def check_network(data: bytes, *, what: str) -> None:
    """Refuse a network that reaches outside its own bytes or uses operators beyond plain tensor work.

    Args:
        data: the ONNX file.
        what: its name, for the message.

    Raises:
        RouterError: ROUTER_NETWORK.
    """
    if data[4:8] == _ORT_FORMAT:  # legal in ONNX, as part of a name; the runtime would read another model than we do
        raise RouterError("ROUTER_NETWORK", f"{what}: it passes for a file of onnxruntime's own format", file=what)
    _Walk(what).model(memoryview(data))


def open_session(data: bytes, *, what: str, threads: int = 1, code: str = "ROUTER_NETWORK") -> Any:
    """Check a network and give it to onnxruntime, as ONNX whatever else its bytes may pass for.

    Args:
        data: the ONNX file, verified.
        what: its name, for the message.
        threads: of one call.
        code: of a refusal by the runtime.

    Returns:
        The `onnxruntime.InferenceSession`.

    Raises:
        RouterError: ROUTER_NETWORK as `check_network`; `code`.
    """
    check_network(data, what=what)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (it raises bare exceptions of its own making)
        raise RouterError(code, f"{what} cannot be built: {str(error)[:300]}") from None


class _Walk:
    """One pass over a ModelProto; field numbers as in onnx.proto."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._nodes = 0

    def model(self, data: memoryview) -> None:
        graphs = 0
        for field, value in self._fields(data):
            if field == 7 and isinstance(value, memoryview):
                graphs += 1
                self._graph(value, 0)
            elif field == 8 and isinstance(value, memoryview):  # opset_import
                self._opset(value)
            elif field == 20:
                self._refuse("it holds graphs for training")
            elif field == 25:
                self._refuse("it defines functions of its own")
        if graphs != 1:
            self._refuse(f"it holds {graphs} graphs")

    def _opset(self, data: memoryview) -> None:
        for field, value in self._fields(data):
            if field == 1 and isinstance(value, memoryview) and _text(value) not in DOMAINS:
                self._refuse(f"it needs operators of {_text(value)!r}")

    def _graph(self, data: memoryview, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._refuse("its graphs are nested too deeply")
        for field, value in self._fields(data):
            if not isinstance(value, memoryview):
                continue
            if field == 1:
                self._node(value, depth)
            elif field == 5:
                self._tensor(value)
            elif field == 15:
                self._sparse(value)

    def _node(self, data: memoryview, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(f"it has more than {MAX_NODES} nodes")
        for field, value in self._fields(data):
            if not isinstance(value, memoryview):
                continue
            if field == 4 and _text(value) in FORBIDDEN_OPERATORS:
                self._refuse(f"it uses the operator {_text(value)}")
            elif field == 7 and _text(value) not in DOMAINS:
                self._refuse(f"it uses an operator of {_text(value)!r}")
            elif field == 5:
                self._attribute(value, depth)

    def _attribute(self, data: memoryview, depth: int) -> None:
        for field, value in self._fields(data):
            if not isinstance(value, memoryview):
                continue
            if field in (5, 10):
                self._tensor(value)
            elif field in (6, 11):
                self._graph(value, depth + 1)
            elif field in (22, 23):
                self._sparse(value)

    def _sparse(self, data: memoryview) -> None:
        for field, value in self._fields(data):
            if field in (1, 2) and isinstance(value, memoryview):
                self._tensor(value)

    def _tensor(self, data: memoryview) -> None:
        for field, value in self._fields(data):
            if field == 13 or (field == 14 and value == _EXTERNAL):
                self._refuse("it keeps tensors in another file")

    def _fields(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """The fields of one message: (number, integer or bytes)."""
        position, end = 0, len(data)
        while position < end:
            key, position = self._varint(data, position)
            field, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, position = self._varint(data, position)
                yield field, value
                continue
            if wire == _BYTES:
                size, position = self._varint(data, position)
            elif wire in (_FIXED64, _FIXED32):
                size = 8 if wire == _FIXED64 else 4
            else:
                self._refuse(f"it is no ONNX file (wire type {wire})")
            if field == 0 or position + size > end:
                self._refuse("it is no ONNX file, or is cut short")
            yield field, data[position : position + size]
            position += size

    def _varint(self, data: memoryview, position: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if position >= len(data) or shift > 63:
                self._refuse("it is no ONNX file, or is cut short")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, position

    def _refuse(self, why: str) -> NoReturn:
        raise RouterError("ROUTER_NETWORK", f"{self._what}: {why}", file=self._what)


def _text(value: memoryview) -> str:
    return bytes(value[:200]).decode("utf-8", "replace")
