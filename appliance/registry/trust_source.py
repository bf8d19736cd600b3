"""The zone's trust for a command or a service: the host's trust state, opened once, its time floor respected."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from appliance.trust.store import TrustStore
from appliance.trust.verification import TrustMaterial


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class TrustSource:
    """Gives what `Registry` and `Follower` ask for.

    Args:
        directory: the host's trust state.
        clock: the wall clock; a time below the floor is refused by the trust store.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._store = TrustStore.open(directory)
        self._clock = clock

    def material(self) -> TrustMaterial:
        """The trust as it stands now; a refresh by another process counts from the next call on."""
        return self._store.material(now=self._clock())

    def revocations(self) -> bytes | None:
        """The TLS revocation lists (PEM) that travelled with the trust metadata, if any."""
        return self._store.revocation_list()

    def now(self) -> datetime:
        """The checked time."""
        return self._store.checked_time(self._clock())
