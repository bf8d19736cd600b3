"""PyTorch state dicts (`.pt`), read without torch: a stored zip archive of one small pickle and raw arrays.

The layout is that of `torch.save` since 1.6 (torch/serialization.py). The pickle may name storages and the function
that lays a tensor over them, nothing else; those names are answered here, and torch is never imported.
"""

from __future__ import annotations

import io
import math
import pickle  # through the restricted reader below
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import RouterError

MAX_MEMBERS = 4096
MAX_SHARING = 8  # read and laid out together, times the file's length: each once, twice as wide, a few shared
# storage -> NumPy type; bfloat16 is the upper half of a float32
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4",
}  # fmt: skip

Tensors = dict[str, NDArray[np.float32]]


def read_state_dict(data: bytes, *, what: str) -> Tensors:
    """The tensors of a *verified* state dict, as float32, in their order.

    Args:
        data: the whole file.
        what: its name, for messages.

    Raises:
        RouterError: ROUTER_MODEL_IMPORT for a name no state dict needs, ROUTER_MODEL for anything malformed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            state = _Archive(archive, len(data), what).state()
    except (RouterError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (zip, pickle and NumPy each raise their own)
        raise RouterError("ROUTER_MODEL", f"{what} is no well-formed state dict: {str(error)[:200]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise RouterError("ROUTER_MODEL", f"{what} is no state dict of tensors")
    return {str(name): np.ascontiguousarray(value, np.float32) for name, value in state.items()}


class _Archive:
    """One `.pt` file; members are stored, not compressed, so that none is longer than the file."""

    def __init__(self, archive: zipfile.ZipFile, size_bytes: int, what: str) -> None:
        self._archive, self._what = archive, what
        self._left = MAX_SHARING * size_bytes
        infos = archive.infolist()
        self._top = infos[0].filename.partition("/")[0] if infos else ""
        if len(infos) > MAX_MEMBERS or any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise RouterError("ROUTER_MODEL", f"{what} has too many members, or a compressed one")
        if sum(info.file_size for info in infos) > size_bytes:
            raise RouterError("ROUTER_MODEL", f"the members of {what} overlap")
        order = f"{self._top}/byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise RouterError("ROUTER_MODEL", f"{what} is not little-endian")

    def state(self) -> Any:
        """Whatever the pickle holds."""
        outer = self

        class Reader(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                return outer.named(module, name)

            def persistent_load(self, pid: Any) -> Any:
                return outer.storage(pid)

        return Reader(io.BytesIO(self._archive.read(f"{self._top}/data.pkl"))).load()

    def named(self, module: str, name: str) -> Any:
        """What stands for a name of torch's."""
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): self._lay,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            **{("torch", storage): storage for storage in STORAGES},
        }
        if (module, name) not in known:
            raise RouterError(
                "ROUTER_MODEL_IMPORT", f"{self._what} would import {module}.{name}", imports=f"{module}.{name}"
            )
        return known[module, name]

    def storage(self, pid: Any) -> NDArray[Any]:
        """The flat array that a persistent id `("storage", type, key, location, length)` names."""
        kind, storage, key, _location, length = pid
        if kind != "storage" or storage not in STORAGES or not str(key).isdecimal():
            raise RouterError("ROUTER_MODEL", f"{self._what} names a storage that does not exist")
        self._spend(self._archive.getinfo(f"{self._top}/data/{key}").file_size)
        flat = np.frombuffer(self._archive.read(f"{self._top}/data/{key}"), STORAGES[storage])
        if len(flat) != length:
            raise RouterError("ROUTER_MODEL", f"a storage of {self._what} has {len(flat)} numbers, not {length}")
        if storage == "BFloat16Storage":
            return (flat.astype(np.uint32) << 16).view(np.float32)
        return flat

    def _lay(self, flat: Any, *rest: Any) -> NDArray[Any]:
        tensor = _lay(flat, *rest)
        self._spend(tensor.nbytes)
        return tensor

    def _spend(self, size_bytes: int) -> None:
        """Tensors may share a storage, but not turn a small file into more than this process has."""
        self._left -= size_bytes
        if self._left < 0:
            raise RouterError("ROUTER_MODEL", f"the tensors of {self._what} are many times as large as the file")


def _lay(flat: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> NDArray[Any]:
    """A tensor over a storage, within its bounds, in memory of its own."""
    if len(shape) != len(strides) or offset < 0 or any(n < 0 for n in (*shape, *strides)):
        raise ValueError("a tensor of no possible shape")
    if math.prod(shape) > len(flat):
        raise ValueError("a tensor repeats its storage")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= len(flat):
        raise ValueError("a tensor reaches beyond its storage")
    size = flat.itemsize
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, [stride * size for stride in strides], writeable=False)
    return view.copy()
