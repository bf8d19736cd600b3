"""Move a registry: copy every object to another home, then compare both, byte by byte.

Contents go first and pointers last, so that no pointer is ever ahead of what it names. What stands at the target
already and is the same is left alone, so that a killed copy is taken up where it stood. Nothing is trusted here:
whoever reads either home verifies.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import ApplianceError, OperationError, RegistryError
from appliance.registry.channel import split
from appliance.registry.contract import POINTER_MAX_BYTES, Entry, Store

CONTENTS, POINTERS = ("encoders/", "routers/"), ("config/", "channels/")
PARTS = CONTENTS + POINTERS


@dataclass(frozen=True)
class Moved:
    """What a copy came to: objects and bytes that both homes hold now, and how many objects were written."""

    objects: int
    size_bytes: int
    written: int


def copy_registry(source: Store, target: Store, *, say: Callable[[str], None] = lambda _: None) -> Moved:
    """Copy and compare.

    Args:
        source: read only.
        target: written; foreign objects in it are a refusal.
        say: told of every object that is written.

    Raises:
        OperationError: OPERATION_REGISTRY_DIFFERS.
        RegistryError: what either home refuses.
    """
    entries = [entry for part in PARTS for entry in source.list(part)]
    if not entries:
        raise OperationError("OPERATION_REGISTRY_DIFFERS", f"{source.location} holds nothing", source=source.location)
    written = 0
    for entry in entries:
        wanted, data = _read(source, entry)
        if _digest(target, entry) != wanted:
            if entry.key.startswith(POINTERS):
                _check_not_newer(target, entry, data)
            say(f"{entry.key}, {entry.size_bytes} bytes")
            target.put(entry.key, data)
            written += 1
        if _digest(target, entry) != wanted:
            raise OperationError("OPERATION_REGISTRY_DIFFERS", f"{entry.key} arrived as something else", key=entry.key)
    there = {entry.key for part in PARTS for entry in target.list(part)}
    if foreign := sorted(there - {entry.key for entry in entries}):
        raise OperationError(
            "OPERATION_REGISTRY_DIFFERS", f"{target.location} holds objects of its own", foreign=foreign[:10]
        )
    return Moved(len(entries), sum(entry.size_bytes for entry in entries), written)


def _check_not_newer(target: Store, entry: Entry, data: bytes) -> None:
    """Officers may promote at the target already; a pointer never goes back to an older one."""
    try:
        standing = target.get(entry.key, max_bytes=POINTER_MAX_BYTES)
    except RegistryError as error:
        if error.code != "REGISTRY_NOT_FOUND":
            raise
        return
    ours, theirs = _epoch(data), _epoch(standing.data) if standing else 0
    if theirs >= ours:
        raise OperationError(
            "OPERATION_REGISTRY_DIFFERS",
            f"{entry.key} is newer at the target",
            key=entry.key,
            epoch=theirs,
            copied=ours,
        )


def _epoch(envelope: bytes) -> int:
    try:
        return int(json.loads(split(envelope)[0])["epoch"])
    except (ApplianceError, ValueError, KeyError, TypeError):
        return 0  # nothing that a reader would take; it holds nobody back


def _read(store: Store, entry: Entry) -> tuple[str, bytes]:
    with tempfile.TemporaryFile() as file:
        store.copy(entry.key, file, size_bytes=entry.size_bytes)
        file.seek(0)
        data = file.read()
    return hashlib.sha256(data).hexdigest(), data


def _digest(store: Store, entry: Entry) -> str | None:
    """SHA-256 of an object; None where it is not there or has another length."""
    try:
        return _read(store, entry)[0]
    except RegistryError as error:
        if error.code in {"REGISTRY_NOT_FOUND", "REGISTRY_TOO_LARGE", "REGISTRY_INCOMPLETE"}:
            return None
        raise
