"""What may go: versions that no channel serves, beyond the newest, and what publishing left half done."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from appliance.artifact import SIGNATURE_NAME
from appliance.errors import RegistryError
from appliance.registry.contract import version_prefix
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
    served: set[tuple[str, str]] = set()
    for channel in registry.channels():
        state = registry.current(channel)
        if state is not None and (target := state.pointer.target) is not None:
            served.add((target.name, target.version))
    going: list[VersionSummary] = []
    for _, group in groupby(registry.versions("router"), key=lambda one: one.name):
        versions = [one for one in group if (one.name, one.version) not in served]
        complete = sorted((one for one in versions if one.complete), key=lambda one: one.modified, reverse=True)
        going += complete[keep:]
        going += [one for one in versions if not one.complete and now - one.modified > HALF_DONE_AFTER]
    return sorted(going, key=lambda one: (one.name, one.version))


def collect(registry: Registry, *, keep: int, now: datetime) -> list[Collected]:
    """Delete what `collectable` names; the signature first, so that a kill leaves an incomplete version."""
    done: list[Collected] = []
    for version in collectable(registry, keep=keep, now=now):
        prefix = version_prefix(version.kind, version.name, version.version)
        entries = [entry.key for entry in registry.store.list(prefix)]
        reason = None
        try:
            for key in sorted(entries, key=lambda key: key != prefix + SIGNATURE_NAME):
                registry.store.delete(key)
        except RegistryError as error:
            if error.code not in {"REGISTRY_DENIED", "REGISTRY_LOCKED"}:
                raise
            reason = str(error)
        done.append(Collected(version, reason))
    return done
