"""What may go: versions that no channel serves, beyond the newest, and what publishing left half done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from appliance.artifact import SIGNATURE_NAME
from appliance.errors import RegistryError
from appliance.registry.contract import SIGNATURE_MAX_BYTES, checked_key, version_prefix
from appliance.registry.registry import Registry, VersionSummary

HALF_DONE_AFTER = timedelta(days=2)  # a publication does not take so long


@dataclass(frozen=True)
class Collected:
    """One version that went, or that the home did not let go.

    Attributes:
        kept_because: the home's reason, such as object lock; None where it is gone.
    """

    version: VersionSummary
    kept_because: str | None


def collectable(registry: Registry, *, keep: int, now: datetime) -> list[VersionSummary]:
    """The router versions that may go.

    Args:
        registry: every channel of it must verify; a forged pointer must not decide what is deleted.
        keep: so many of the newest complete versions of each router stay, beside those that are served.
        now: the checked time.

    Raises:
        TrustError, RegistryError: a channel does not verify.
    """
    served = _served(registry)
    going: list[VersionSummary] = []
    for _, group in groupby(registry.versions("router"), key=lambda one: one.name):
        versions = [one for one in group if (one.name, one.version) not in served]
        complete = sorted((one for one in versions if one.complete), key=lambda one: one.modified, reverse=True)
        going += complete[keep:]
        going += [one for one in versions if not one.complete and now - one.modified > HALF_DONE_AFTER]
    return sorted(going, key=lambda one: (one.name, one.version))


def collect(registry: Registry, *, keep: int, now: datetime) -> list[Collected]:
    """Delete what `collectable` names; the signature first, so that a kill leaves an incomplete version.

    Raises:
        TrustError, RegistryError: as `collectable`; what the home refuses.
    """
    return [Collected(one, _remove(registry, one)) for one in collectable(registry, keep=keep, now=now)]


def _remove(registry: Registry, version: VersionSummary) -> str | None:
    """Remove a version unless it is promoted at this very moment; None where it is gone, else why it is not.

    The signature goes first, then the channels are looked at again; a promotion writes its pointer first and looks for
    the signature then (`Registry.promote`). So whichever way the two meet, one of them sees the other.
    """
    store = registry.store
    try:
        prefix = version_prefix(version.kind, version.name, version.version)
        signature = prefix + SIGNATURE_NAME
        keys = [entry.key for entry in store.list(prefix)]
        for key in keys:
            checked_key(key)
        kept = store.get(signature, max_bytes=SIGNATURE_MAX_BYTES) if signature in keys else None
        store.delete(signature)
        try:
            promoted = (version.name, version.version) in _served(registry)
        except BaseException:
            promoted = True
            raise
        finally:
            if promoted and kept is not None:
                store.put(signature, kept.data, only_if_absent=True)
        if promoted:
            return "it was promoted meanwhile"
        for key in keys:
            if key != signature:
                store.delete(key)
    except RegistryError as error:
        if error.code not in {"REGISTRY_DENIED", "REGISTRY_LOCKED", "REGISTRY_NAME"}:  # the last: nothing of ours
            raise
        return str(error)
    return None


def _served(registry: Registry) -> set[tuple[str, str]]:
    """Name and version of what channels point to."""
    states = [registry.current(channel) for channel in registry.channels()]
    return {
        (state.pointer.target.name, state.pointer.target.version) for state in states if state and state.pointer.target
    }
