"""Upstreams that fail are left alone quickly and come back one probe at a time.

LiteLLM's own cooldown does not count a refused connection to a self-hosted server as it should (BerriAI/litellm#27362),
and lets everything back at once. Here every deployment has a breaker: a refused connection opens it at once, other
failures of the server after a few in a row, and half-open probes close it. Errors of the request (4xx) do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from appliance.breaker import Breaker

CONNECT_WORDS = ("connect", "refused", "unreachable", "name or service", "no route", "reset by peer", "disconnected")


class UpstreamHealth:
    """One breaker a deployment.

    Args:
        failures: of the server in a row that keep it out.
        open_s: seconds until the first probe.
        probes: good probes that bring it back whole.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, failures: int, open_s: float, probes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = {"failures": failures, "open_s": open_s, "probes": probes}
        self._clock = clock
        self._breakers: dict[str, Breaker] = {}

    def admitted(self, ids: Iterable[str]) -> set[str]:
        """Those that may be tried now."""
        return {id_ for id_ in ids if id_ not in self._breakers or self._breakers[id_].would_allow()}

    def chosen(self, id_: str) -> None:
        """A request goes there: takes a probe's place where the deployment is half-open."""
        if id_ in self._breakers:
            self._breakers[id_].allow()

    def succeeded(self, id_: str) -> None:
        """It answered."""
        if id_ in self._breakers:
            self._breakers[id_].success()

    def failed(self, id_: str, *, status: int | None, reason: str) -> None:
        """It did not answer.

        Args:
            id_: the deployment.
            status: HTTP status, None where no answer came.
            reason: the exception's name and message; only its first words are kept.
        """
        if status is not None and 400 <= status < 500 and status not in {401, 403, 404, 408, 429}:
            return  # the request's own fault
        breaker = self._breakers.setdefault(id_, Breaker(open_max_s=30.0, clock=self._clock, **self._options))  # type: ignore[arg-type]
        unreachable = any(word in reason.lower() for word in CONNECT_WORDS)
        for _ in range(self._options["failures"] if unreachable else 1):  # type: ignore[arg-type]
            if breaker.view().state == "open":
                break
            breaker.failure("unreachable" if unreachable else f"status {status}" if status else "no answer")

    def describe(self, id_: str) -> dict[str, Any] | None:
        """For status; None for a deployment that never failed."""
        return asdict(self._breakers[id_].view()) if id_ in self._breakers else None
