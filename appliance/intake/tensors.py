"""A look at a safetensors file before a library parses it: the header says the truth about every byte, once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, IntakeError

MAX_HEADER_BYTES = 8 * 1024 * 1024
MAX_TENSORS = 4096
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

_Length = Annotated[int, Field(ge=0, lt=2**40)]


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: Annotated[tuple[_Length, ...], Field(max_length=8)]
    data_offsets: tuple[_Length, _Length]


def check(data: bytes, *, what: str) -> None:
    """Refuse a file whose header does not describe exactly the bytes that follow it.

    Args:
        data: the whole file.
        what: its name, for messages.

    Raises:
        IntakeError: INTAKE_TENSORS_FORM.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise _refused(what, "its header is longer than the file, or empty")
    try:
        header = documents.read_json(data[8 : 8 + length].rstrip(b" "), what=what, max_bytes=MAX_HEADER_BYTES)
        if not isinstance(header, dict) or len(header) > MAX_TENSORS:
            raise _refused(what, "its header is no mapping of tensors")
        header.pop("__metadata__", None)
        tensors = {name: documents.validate(_Tensor, value, what=f"tensor {name}") for name, value in header.items()}
    except DocumentError as error:
        raise _refused(what, error.cause) from None
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, stop = tensor.data_offsets
        count = 1
        for side in tensor.shape:
            count *= side
        if begin != end or stop - begin != count * _SIZES[tensor.dtype]:
            raise _refused(what, f"tensor {name} overlaps another, leaves a gap or has another size than its shape")
        end = stop
    if end != len(data) - 8 - length:
        raise _refused(what, f"{len(data) - 8 - length - end} bytes are described by no tensor")


def _refused(what: str, why: str) -> IntakeError:
    return IntakeError("INTAKE_TENSORS_FORM", f"{what}: {why}", file=what)
