"""What a gateway process gives up before it serves, and the proof that it did."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from dataclasses import dataclass
from typing import Any

from appliance.errors import GatewayError
from appliance.gateway import egress, kernel
from appliance.gateway.litellm_config import LiteLLMConfig
from appliance.settings import Settings

log = logging.getLogger("appliance.lockdown")
NOWHERE = ("192.0.2.1", 9)  # RFC 5737: no such host anywhere


@dataclass
class Lockdown:
    """The locks of this process.

    Attributes:
        guard: of outbound connections.
        landlock, seccomp: `enforced`, `off`, or why not.
        self_test: how an attempt to leave ended.
        names: whether names are looked up, for which the kernel must let UDP pass.
    """

    guard: egress.EgressGuard
    landlock: str = "off"
    seccomp: str = "off"
    self_test: str = "not run"
    names: bool = True

    def describe(self) -> dict[str, Any]:
        """For status."""
        return {
            "landlock": self.landlock,
            "seccomp": self.seccomp,
            "self_test": self.self_test,
        }


def before_import(settings: Settings, config: LiteLLMConfig) -> Lockdown:
    """Lock what can be locked before LiteLLM is imported and before threads exist: files, core dumps, connections."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chosen = settings.lockdown
    allowed = destinations(settings, config)
    ports = {port for _, port in allowed}
    if settings.live is not None:
        ports |= {int(pattern.rpartition(":")[2]) for pattern in settings.live.destinations}
    names = any(not egress.is_address(host) for host, _ in allowed) or _live_names(settings)
    locks = Lockdown(egress.EgressGuard(allowed, enforce=chosen.egress == "enforce"), names=names)
    locks.guard.install()
    if chosen.landlock:
        locks.landlock = kernel.landlock(ports | ({53} if names else set()))
    return locks


def destinations(settings: Settings, config: LiteLLMConfig) -> set[egress.Destination]:
    """Every destination that the configuration names."""
    named = egress.destinations(config.document) | egress.destinations(settings.telemetry.otlp_endpoint)
    named |= {egress.destination(text) for text in settings.lockdown.allow}
    registries = [router.registry for router in settings.routing.routers.values()]
    if settings.live is not None:
        registries.append(settings.live.registry)
        named |= egress.destinations(settings.live.model_dump(include={"postgres"}))
    for registry in registries:
        if registry is not None and registry.home == "s3":
            named.add(egress.destination(registry.endpoint))
            named |= egress.destinations(registry.model_dump(include={"slots"}))
    return named


def _live_names(settings: Settings) -> bool:
    """Whether a live deployment may be named instead of numbered."""
    patterns = settings.live.destinations if settings.live is not None else ()
    return any(not egress.is_address(pattern.rpartition(":")[0].strip("[]")) for pattern in patterns)


def before_serving(settings: Settings, locks: Lockdown) -> None:
    """The last locks, when LiteLLM has started, and the self-test.

    Raises:
        GatewayError: GATEWAY_EGRESS_OPEN where a connection that should be refused is not.
    """
    if settings.lockdown.seccomp:
        locks.seccomp = kernel.seccomp(udp=locks.names)
    for lock, holds in (("landlock", locks.landlock), ("seccomp", locks.seccomp)):
        if holds not in {"enforced", "off"}:
            log.warning("the kernel does not hold a lock", extra={"lock": lock, "why": holds})
    if settings.lockdown.egress != "enforce":
        return
    locks.self_test = _try_to_leave(locks.guard, NOWHERE)
    if locks.self_test != "refused":
        raise GatewayError("GATEWAY_EGRESS_OPEN", f"the self-test ended with: {locks.self_test}", tried=NOWHERE)


def _try_to_leave(guard: egress.EgressGuard, address: tuple[str, int]) -> str:
    with guard.uncounted(), socket.socket() as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(address)
        except egress.EgressRefused:
            return "refused"
        except OSError as error:
            return f"not refused: {errno.errorcode.get(error.errno or 0, 'timeout')}"
    return "not refused: connected"
