"""A circuit breaker for the registry: closed, open for a pause, half-open with a single probe.

Its clock is monotonic: on a host whose wall clock is set back by a year a breaker that asks it stays open for a year.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from appliance.errors import RegistryError

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Counts failures in a row and then refuses at once instead of waiting again.

    Args:
        threshold: failures in a row that open it.
        pause_s: seconds until one probe is let through.
        counts: tells a failure of the registry from one of the request.
        now: a monotonic clock, seconds.
    """

    def __init__(
        self,
        *,
        threshold: int,
        pause_s: float,
        counts: Callable[[BaseException], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._pause_s = pause_s
        self._counts = counts
        self._now = now
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """What the next caller meets."""
        with self._lock:
            return self._state()

    def _state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "half-open" if self._now() - self._opened_at >= self._pause_s and not self._probing else "open"

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Run one operation.

        Raises:
            RegistryError: REGISTRY_BREAKER_OPEN while it is open.
        """
        with self._lock:
            if self._state() == "open":
                left_s = max(0.0, self._pause_s - (self._now() - (self._opened_at or 0.0)))
                raise RegistryError(
                    "REGISTRY_BREAKER_OPEN",
                    "the registry failed several times in a row and is left alone for a while",
                    registry=where,
                    failures=self._failures,
                    retry_in_s=round(left_s, 1),
                )
            self._probing = self._opened_at is not None
        try:
            yield
        except BaseException as error:
            self._settle(failed=self._counts(error))
            raise
        self._settle(failed=False)

    def _settle(self, *, failed: bool) -> None:
        with self._lock:
            self._probing = False
            self._failures = self._failures + 1 if failed else 0
            if not failed:
                self._opened_at = None
            elif self._opened_at is not None or self._failures >= self._threshold:
                self._opened_at = self._now()
