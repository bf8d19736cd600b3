"""A router that follows a channel of the registry: epochs, withdrawal and revocation hold in the gateway itself.

The registry's follower brings verified files; they are verified once more when they are loaded, because what is loaded
is what must have been verified. A dead registry is a problem to show, never a reason to stop serving.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.breaker import Breaker
from appliance.errors import ApplianceError, GatewayError
from appliance.gateway.active import Slot
from appliance.gateway.loading import LastGood, Loader
from appliance.gateway.watch import Watch, generation
from appliance.registry.directory import DirectoryStore
from appliance.registry.follower import Follower, Served
from appliance.registry.homes import open_cache, open_store
from appliance.registry.registry import Registry
from appliance.registry.settings import DirectorySettings
from appliance.registry.sidecar import Sidecar
from appliance.registry.trust_source import TrustSource
from appliance.settings import Router

log = logging.getLogger("appliance.routers")
JITTER = 0.2


class ChannelWatch(Watch):
    """Keeps one slot in step with a channel.

    Args:
        slot, settings, loader, last_good: as `Watch`; `settings.registry` and `settings.channel` say what is followed.
        trust: the trust store.
        cache: content-addressed, shared by the workers of this host.
    """

    def __init__(
        self, slot: Slot, settings: Router, loader: Loader, *, trust: Path, cache: Path, last_good: LastGood
    ) -> None:
        super().__init__(slot, settings, loader, last_good=last_good, jitter=JITTER)
        self._trust, self._cache = trust, cache
        self._follower: Follower | None = None
        self._breaker: Breaker | None = None
        self._judged = ""
        self._out_of_reach = False
        self._begun = False
        self._sidecar: Sidecar | None = None
        if isinstance(settings.registry, DirectorySettings):
            self._sidecar = Sidecar(DirectoryStore(settings.registry.path))

    def first(self) -> None:
        """Serve what this host served last, then ask the registry."""
        self.look()

    def look(self) -> bool:
        """Ask the registry once; judge what is news, and what is served where the zone's trust has changed."""
        now = generation(self._trust)
        self._hear()
        try:
            follower = self._open()
        except ApplianceError as error:  # a file of its settings; once that is mended, everything goes on from here
            if (self.slot.problem or {}).get("code") != error.code:
                self._refuse(error)
            return False
        changed = self._again or now != self._judged
        self._again, self._judged = False, now
        try:
            news = follower.poll()
        except ApplianceError as error:
            withdrawn = follower.served is not None and follower.served.artifact is None
            self.slot.refuse(error, keep=not withdrawn)
            if withdrawn:
                self._forget()
            news, self._out_of_reach = None, True
        else:
            if self._out_of_reach and self.slot.current is not None:
                self.slot.healthy()
            self._out_of_reach = False
        if news is None and changed:
            news = follower.served
        if news is not None:
            self._serve(news)
        if not self._begun:
            self._begun = True
            self._fall_back(follower.may_serve)
        return news is not None

    def _hear(self) -> None:
        """Of the registry behind the sidecar, where the folder that is followed is the volume of one."""
        if self._sidecar is not None:
            self._sidecar.look()

    def describe(self) -> dict[str, Any]:
        """How well the channel is followed; behind a sidecar it is the registry that counts, and not its copy here."""
        if self._follower is None:
            return {**super().describe(), "channel": {"name": self._settings.channel}}
        health = self._follower.health()
        told = self._sidecar.of(health.channel, datetime.now(UTC)) if self._sidecar is not None else None
        problem = health.problem.code if health.problem is not None else None
        return {
            **super().describe(),
            "channel": {
                "name": health.channel,
                "epoch": health.epoch,
                "version": health.version,
                "heard_by": "gateway" if told is None else "sidecar",
                "contact_age_s": health.contact_age_s if told is None else told.age_s,
                "expired": health.expired,
                "problem": problem if told is None else problem or told.problem,
                "breaker": asdict(self._breaker.view()) if self._breaker is not None else None,
            },
        }

    def _open(self) -> Follower:
        """The follower; the first time, what this host served last is served again before the registry is asked."""
        if self._follower is None:
            registry, channel = self._settings.registry, self._settings.channel
            assert registry is not None  # noqa: S101 (the settings model demands it with a channel)
            assert channel is not None  # noqa: S101
            source = TrustSource(self._trust)
            store = open_store(registry, mounted_later=True, revocations=source.revocations)
            home = Registry(store, material=source.material, clock=source.now)
            cache = open_cache(self._cache, registry, report=_slots_dead)
            self._follower = Follower(home, cache, channel, material=source.material, clock=source.now)
            self._breaker = getattr(home.store, "breaker", None)  # of a home on the network
            self._judged = generation(self._trust)
            booted = self._follower.boot()
            if booted is not None:
                self._serve(booted)
        return self._follower

    def _serve(self, served: Served) -> None:
        artifact = served.artifact
        if artifact is None:
            pointer = served.state.pointer
            self._refuse(
                GatewayError(
                    "GATEWAY_CHANNEL_WITHDRAWN", f"channel {self._settings.channel} is withdrawn", epoch=pointer.epoch
                )
            )
            self._forget()
            return

        self._take(lambda: self._loader.from_bytes(self.slot.name, artifact, origin="registry"))


def _slots_dead(error: ApplianceError) -> None:
    log.warning("fetching without a slot", extra={"code": error.code, "cause": error.cause})
