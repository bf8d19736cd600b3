"""The rule of the border: what kinds of files a router may consist of, and that each is what its name says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Literal

from appliance import documents
from appliance.errors import DocumentError, IntakeError, RouterError
from appliance.intake import pickles, tensors, torch_archives

MAX_TEXT_BYTES = 256 * 1024
MAX_JSON_BYTES = 64 * 1024 * 1024

Legacy = Literal["sklearn", "skops", "torch"]


def _yaml(data: bytes, name: str) -> None:
    documents.read_yaml(data, what=name)


def _json(data: bytes, name: str) -> None:
    documents.read_json(data, what=name, max_bytes=MAX_JSON_BYTES)


def _text(data: bytes, name: str) -> None:
    if len(data) > MAX_TEXT_BYTES or b"\0" in data:
        raise IntakeError("INTAKE_FORMAT", f"{name} is no short text", file=name)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise IntakeError("INTAKE_FORMAT", f"{name} is not UTF-8", file=name) from None


def _tensors(data: bytes, name: str) -> None:
    tensors.check(data, what=name)


def _onnx(data: bytes, name: str) -> None:
    from appliance.routers.onnx_file import check_network

    check_network(data, what=name)


def _pickle(data: bytes, name: str) -> None:
    pickles.scan(data, allowed=pickles.SKLEARN, what=name)


def _skops(data: bytes, name: str) -> None:
    from appliance.routers import skops_file

    skops_file.check(data, what=name)


def _torch(data: bytes, name: str) -> None:
    torch_archives.check(data, what=name)


CHECKS: Mapping[str, Callable[[bytes, str], None]] = {
    ".yaml": _yaml,
    ".json": _json,
    ".md": _text,
    ".txt": _text,
    ".safetensors": _tensors,
    ".onnx": _onnx,
    ".pkl": _pickle,
    ".skops": _skops,
    ".pt": _torch,
}
LEGACY: Mapping[str, Legacy] = {".pkl": "sklearn", ".skops": "skops", ".pt": "torch"}


def check_formats(files: Mapping[str, bytes]) -> dict[str, Legacy]:
    """Check every file by its kind.

    Args:
        files: relative name -> bytes, the signature left out.

    Returns:
        The files that must be converted, with their kind.

    Raises:
        IntakeError: INTAKE_FORMAT for a kind that is not admitted or a file that is not of its kind, and the codes of
            the kinds' own modules.
    """
    legacy: dict[str, Legacy] = {}
    for name, data in files.items():
        suffix = PurePosixPath(name).suffix.lower()
        check = CHECKS.get(suffix)
        if check is None:
            raise IntakeError(
                "INTAKE_FORMAT", f"{name}: files of this kind are not admitted", file=name, admitted=sorted(CHECKS)
            )
        try:
            check(data, name)
        except (DocumentError, RouterError) as error:
            raise IntakeError("INTAKE_FORMAT", error.cause, file=name, found=error.code) from None
        if suffix in LEGACY:
            legacy[name] = LEGACY[suffix]
    return legacy
