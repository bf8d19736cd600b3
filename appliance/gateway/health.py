"""Upstreams that fail are left alone quickly and come back one probe at a time.

LiteLLM's own cooldown does not count a refused connection to a self-hosted server (BerriAI/litellm#27362), and lets
everything back at once. Here every deployment has a breaker: a refused connection opens it at once, other failures of
the server after a few in a row, and half-open probes close it.

Only what the upstream did counts. LiteLLM reports a request that it cannot even build as a connection error of the
deployment; if that counted, one client with a malformed body could put every upstream out of service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Literal

from appliance.breaker import Breaker

Blame = Literal["unreachable", "untrusted", "no answer", "server error"]
OPEN_MAX_S = 30.0
CLIENTS = ("openai", "httpx", "httpcore", "aiohttp", "anyio")  # packages whose exceptions speak of the wire
CONNECT = frozenset(
    {"ConnectError", "ConnectTimeout", "ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError"}
)
HUNG_UP = frozenset({"ClientOSError", "ClientConnectionResetError", "ServerDisconnectedError"})  # once it stood
CERTIFICATE = frozenset({"ClientConnectorCertificateError", "SSLCertVerificationError"})
OVERLOADED_STATUS = frozenset({408, 429})


def blame(error: BaseException) -> Blame | None:
    """What an upstream did wrong, by the exceptions beneath LiteLLM's; None where it did nothing wrong.

    Args:
        error: as LiteLLM reports it; causes and contexts are followed.
    """
    found: Blame | None = None
    if any(type(each).__name__ in HUNG_UP for each in chain(error)):
        return "no answer"  # LiteLLM calls it a failure to connect, which would be reason to leave the server alone
    if any(type(each).__name__ in CERTIFICATE for each in chain(error)):
        return "untrusted"
    for each in chain(error):
        package = type(each).__module__.partition(".")[0]
        if isinstance(each, ConnectionRefusedError) or type(each).__name__ in CONNECT:
            return "unreachable"
        status = getattr(each, "status_code", None) or getattr(getattr(each, "response", None), "status_code", None)
        if package in CLIENTS and isinstance(status, int):
            found = found or ("server error" if status >= 500 or status in OVERLOADED_STATUS else None)
        elif package in CLIENTS or isinstance(each, OSError | TimeoutError):
            found = found or "no answer"
    return found


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what lies beneath it: causes, contexts, and LiteLLM's originals."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseException) and id(each) not in seen and len(seen) < 32:
            seen.add(id(each))
            yield each
            pending += [each.__cause__, each.__context__, getattr(each, "original_exception", None)]


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
        self._failures, self._open_s, self._probes, self._clock = failures, open_s, probes, clock
        self._breakers: dict[str, Breaker] = {}

    def admitted(self, ids: Iterable[str]) -> set[str]:
        """Those that may be tried now."""
        return {id_ for id_ in ids if id_ not in self._breakers or self._breakers[id_].would_allow()}

    def chosen(self, id_: str) -> None:
        """A request goes there: as a probe where the deployment is half-open, as a last hope where it is left alone."""
        breaker = self._breakers.get(id_)
        if breaker is not None and not breaker.allow():
            breaker.insist()

    def succeeded(self, id_: str) -> None:
        """It answered."""
        if id_ in self._breakers:
            self._breakers[id_].success()

    def failed(self, id_: str, what: Blame) -> None:
        """It did not answer; a refused connection is enough to leave it alone."""
        if id_ not in self._breakers:
            self._breakers[id_] = Breaker(
                failures=self._failures,
                open_s=self._open_s,
                probes=self._probes,
                open_max_s=OPEN_MAX_S,
                clock=self._clock,
            )
        breaker = self._breakers[id_]
        for _ in range(self._failures if what == "unreachable" else 1):
            if breaker.view().state != "open":
                breaker.failure(what)

    def describe(self, id_: str) -> dict[str, Any] | None:
        """For status; None for a deployment that never failed."""
        return asdict(self._breakers[id_].view()) if id_ in self._breakers else None
