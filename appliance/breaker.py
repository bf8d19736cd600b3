"""A circuit breaker: closed, open, half-open. Pure counting; the caller does the work and reports how it went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class BreakerView:
    """A breaker as status shows it.

    Attributes:
        state: closed (all pass), open (none pass), half-open (single probes pass).
        failures_in_a_row: since the last success.
        opened_count: how often it has opened.
        retry_in_s: seconds until a probe may pass, 0 unless open.
        last_reason: what the last failure was.
    """

    state: State
    failures_in_a_row: int
    opened_count: int
    retry_in_s: float
    last_reason: str | None


class Breaker:
    """Opens after `failures` in a row; after `open_s` lets one probe pass at a time; `probes` good ones close it.

    Args:
        failures: failures in a row that open it.
        open_s: seconds it stays open before the first probe; doubles with every failed probe up to `open_max_s`.
        probes: good probes in a row that close it.
        open_max_s: longest time it stays open, seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        failures: int,
        open_s: float,
        probes: int = 1,
        open_max_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold, self._open_s, self._probes, self._open_max_s = (
            failures,
            open_s,
            probes,
            max(open_s, open_max_s),
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failures = 0
        self._good_probes = 0
        self._probing_since: float | None = None
        self._insisted = False
        self._wait_s = open_s
        self._opened_at = 0.0
        self._opened_count = 0
        self._last_reason: str | None = None

    def allow(self) -> bool:
        """Whether a call may pass now. A call that was allowed must be reported by `success`, `failure` or `unused`."""
        if self._state == "closed":  # the common case, without the lock
            return True
        with self._lock:
            now = self._clock()
            if self._state == "open":
                if now - self._opened_at < self._wait_s:
                    return False
                self._state, self._good_probes, self._probing_since = "half-open", 0, None
            if self._state == "half-open":
                # a probe that never came back must not hold the door for ever
                if self._probing_since is not None and now - self._probing_since < self._open_s:
                    return False
                self._probing_since = now
            return True

    def insist(self) -> None:
        """A call goes although none may, because nothing else is left; if it goes well, it counts as a good probe."""
        with self._lock:
            self._insisted = self._state == "open"

    def would_allow(self) -> bool:
        """What `allow` would say, without taking a probe's place."""
        with self._lock:
            now = self._clock()
            if self._state == "open":
                return now - self._opened_at >= self._wait_s
            if self._state == "half-open":
                return self._probing_since is None or now - self._probing_since >= self._open_s
            return True

    def success(self) -> None:
        """A call went well."""
        if self._state == "closed" and self._failures == 0:
            return
        with self._lock:
            self._failures = 0
            if self._state == "open" and self._insisted:
                self._state, self._good_probes = "half-open", 0
            if self._state == "half-open":
                self._probing_since = None
                self._good_probes += 1
                if self._good_probes >= self._probes:
                    self._state, self._wait_s = "closed", self._open_s

    def failure(self, reason: str) -> None:
        """A call failed; `reason` is shown in status."""
        with self._lock:
            self._failures += 1
            self._last_reason = reason
            if self._state == "half-open":
                self._wait_s = min(self._wait_s * 2, self._open_max_s)
                self._open()
            elif self._state == "closed" and self._failures >= self._threshold:
                self._open()

    def unused(self) -> None:
        """The allowed call did not take place: gives a probe's place back."""
        with self._lock:
            self._probing_since = None

    def reset(self) -> None:
        """Close it: what failed has been replaced."""
        with self._lock:
            self._state, self._failures, self._wait_s, self._probing_since = "closed", 0, self._open_s, None

    def view(self) -> BreakerView:
        """The present state."""
        with self._lock:
            left = self._wait_s - (self._clock() - self._opened_at) if self._state == "open" else 0.0
            return BreakerView(
                self._state, self._failures, self._opened_count, round(max(left, 0.0), 3), self._last_reason
            )

    def _open(self) -> None:
        self._state, self._opened_at, self._probing_since, self._insisted = "open", self._clock(), None, False
        self._opened_count += 1
