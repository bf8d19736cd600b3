"""A look at a pickle without unpickling it: which classes and functions would it call, and is it one stream?

`scan` interprets the opcodes with a symbolic stack, so that a name that is put together at run time, fetched from the
memo or hidden in a nested stream is seen or refused. It decides by an allow-list: what honest scikit-learn estimators
and PyTorch state dicts need, and nothing else. The same list governs `restricted_load`, which the conversion worker
uses inside its confinement: the two would have to fail together, and then the kernel still stands.
"""

from __future__ import annotations

import io
import pickle  # the restricted loader below
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from appliance.errors import IntakeError
from appliance.routers import pickles as routed

MAX_OPCODES = 2_000_000
_MARK, _UNKNOWN = object(), object()

Allowed = Mapping[str, frozenset[str]]  # module -> names

SKLEARN: Allowed = routed.SKLEARN  # the list that a gateway reads pickles by, where a policy lets it
TORCH: Allowed = {
    "collections": frozenset({"OrderedDict"}),
    "torch": frozenset(
        {"FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage"}
    ),
    "torch._utils": frozenset({"_rebuild_tensor_v2", "_rebuild_parameter"}),
}
_NEVER = frozenset({"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"})
_STRINGS = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)
_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})


def scan(data: bytes, *, allowed: Allowed, what: str, persistent_ids: bool = False) -> set[tuple[str, str]]:
    """Tell what a pickle would import; refuse it unless all of that is allowed.

    Args:
        data: the whole file.
        allowed: module -> names that may be imported.
        what: the file's name, for messages.
        persistent_ids: whether the format uses them (PyTorch does).

    Returns:
        The (module, name) pairs it imports.

    Raises:
        IntakeError: INTAKE_PICKLE_FORM for anything but one plain stream, INTAKE_PICKLE_IMPORT for a class or function
            that is not allowed, or whose name is made at run time.
    """
    if data[:1] != b"\x80":
        raise IntakeError("INTAKE_PICKLE_FORM", f"{what} is no plain pickle of protocol 2 or newer", file=what)
    machine = _Machine(what)
    end = 0
    count = 0
    try:
        for opcode, argument, position in pickletools.genops(data):
            count += 1
            if count > MAX_OPCODES:
                raise IntakeError("INTAKE_PICKLE_FORM", f"{what} has more than {MAX_OPCODES} opcodes", file=what)
            if opcode.name in _NEVER or (opcode.name == "BINPERSID" and not persistent_ids):
                raise IntakeError("INTAKE_PICKLE_FORM", f"{what} uses the opcode {opcode.name}", file=what)
            machine.step(opcode, argument)
            end = (position or 0) + 1
    except (ValueError, IndexError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise IntakeError("INTAKE_PICKLE_FORM", f"{what} is no well-formed pickle: {error}", file=what) from None
    if end != len(data):
        raise IntakeError(
            "INTAKE_PICKLE_FORM",
            f"{what} goes on for {len(data) - end} bytes after its end",
            file=what,
            bytes=len(data),
        )
    for module, name in sorted(machine.imports):
        if name not in allowed.get(module, frozenset()):
            raise IntakeError(
                "INTAKE_PICKLE_IMPORT", f"{what} would import {module}.{name}", file=what, imports=f"{module}.{name}"
            )
    return machine.imports


class _Machine:
    """The pickle machine's stack and memo, holding strings and nothing else that is known."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.imports: set[tuple[str, str]] = set()

    def step(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        if name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            self._import(module, attribute)
        elif name == "STACK_GLOBAL":
            self._import(self._stack[-2], self._stack[-1])
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in _PUTS:
            self._memo[int(argument)] = self._stack[-1]
        if name in _GETS:
            self._stack.append(self._memo[int(argument)])
        elif name in _STRINGS:
            self._stack.append(argument)
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name not in _PUTS | {"MEMOIZE"}:
            self._generic(opcode)

    def _generic(self, opcode: Any) -> None:
        """Pop and push what the opcode's description says."""
        wanted = [kind.name for kind in opcode.stack_before]
        if "mark" in wanted:
            while self._stack.pop() is not _MARK:
                pass
            wanted = wanted[: wanted.index("mark")]
        if wanted:
            del self._stack[-len(wanted) :]
        self._stack.extend(_UNKNOWN for _ in opcode.stack_after)

    def _import(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise IntakeError("INTAKE_PICKLE_IMPORT", f"{self._what} makes up an import at run time", file=self._what)
        self.imports.add((module, name))


def restricted_load(data: bytes, *, allowed: Allowed) -> Any:
    """Unpickle, importing only what is allowed. For the confined worker alone.

    Raises:
        IntakeError: INTAKE_PICKLE_IMPORT.
    """

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name not in allowed.get(module, frozenset()):
                raise IntakeError("INTAKE_PICKLE_IMPORT", f"it imports {module}.{name}", imports=f"{module}.{name}")
            return super().find_class(module, name)

        def persistent_load(self, pid: Any) -> Any:
            raise IntakeError("INTAKE_PICKLE_FORM", "it uses persistent ids", pid=str(pid)[:80])

    load: Callable[[], Any] = Restricted(io.BytesIO(data)).load
    return load()
