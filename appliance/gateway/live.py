"""The gateway follows its live configuration: it boots from the newest or the last applied, then applies differences.

Nothing here can stop what serves: a source that is away, a row or a revision that cannot be applied is a problem in
status, in the log and in the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from appliance.errors import ApplianceError, ConfigError
from appliance.gateway import lockdown
from appliance.gateway.egress import EgressGuard
from appliance.gateway.live_config import Rows, Whole
from appliance.registry.live import Changes, LiveConfig, Problem
from appliance.registry.live_watch import ConfigWatcher, Source
from appliance.settings import Settings

if TYPE_CHECKING:
    from appliance.gateway.litellm_config import LiteLLMConfig

log = logging.getLogger("appliance.live")
APPLY_LIMIT_S = 60.0  # for the event loop to take up one revision


class Deployments(Protocol):
    """The running router, as much as is needed here; `proxy` implements it over LiteLLM."""

    def upsert(self, entry: Mapping[str, Any]) -> None:
        """Add or replace one deployment.

        Raises:
            GatewayError: GATEWAY_DEPLOYMENT; what there was stays.
        """

    def delete(self, id_: str) -> None:
        """Remove one deployment; running requests finish."""


def kept_file(settings: Settings) -> Path:
    """The last applied configuration, shared by the workers."""
    return settings.state_dir / "live.json"


def open_source(settings: Settings) -> Source:
    """Where the live configuration comes from.

    Raises:
        ApplianceError: the registry or the trust store cannot be opened.
    """
    live = settings.live
    assert live is not None  # noqa: S101 (asked only where there is such a section)
    if live.postgres is not None:
        from appliance.registry.live_database import ConfigDatabase

        return ConfigDatabase(live.postgres)
    from appliance.registry.homes import open_cache, open_store
    from appliance.registry.signed_config import Configs, SignedSource
    from appliance.registry.trust_source import TrustSource

    assert live.registry is not None  # noqa: S101 (the settings model demands it with a name)
    assert live.config is not None  # noqa: S101
    assert settings.trust is not None  # noqa: S101 (and it demands this with a registry)
    trust = TrustSource(settings.trust.store)
    store = open_store(live.registry, mounted_later=True, revocations=trust.revocations)
    configs = Configs(store, material=trust.material, clock=trust.now)
    return SignedSource(store, configs, live.config, open_cache(settings.state_dir / "registry-cache", live.registry))


def first(settings: Settings, config: LiteLLMConfig) -> LiveConfig:
    """What to boot with: the newest configuration, or the last applied one where the source is away.

    Raises:
        ApplianceError: there is neither, and no deployment in the files: nothing could be served.
    """
    rows = Rows(settings, config)

    class Trial:
        def apply(self, _changes: Changes, config: LiveConfig) -> LiveConfig:
            rows.together(config)
            return config

    watcher = ConfigWatcher(open_source(settings), Trial(), kept=kept_file(settings), host=rows.host, report=_say)
    live = watcher.boot()
    try:
        rows.together(live)
    except ConfigError as error:
        raise watcher.problem or error from None
    return live


class LiveFollower:
    """Follows in a thread of its own and applies on the event loop's.

    Args:
        settings, config: of the gateway's files.
        live: what the process booted with.
        guard: of outbound connections; it learns the deployments' destinations.
        deployments: LiteLLM's router.
        change: takes a whole configuration; called on the event loop's thread.
    """

    def __init__(
        self,
        settings: Settings,
        config: LiteLLMConfig,
        live: LiveConfig,
        *,
        guard: EgressGuard,
        deployments: Deployments,
        change: Callable[[Whole], None],
    ) -> None:
        self._rows, self._guard, self._deployments, self._change = Rows(settings, config), guard, deployments, change
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        assert settings.live is not None  # noqa: S101 (made only where there is such a section)
        self._source = open_source(settings)
        self._booted = live
        self._watcher = ConfigWatcher(
            self._source,
            self,
            kept=kept_file(settings),
            host=self._rows.host,
            poll_s=settings.live.poll_interval_s,
            report=_say,
        )

    async def start(self) -> None:
        """Bring LiteLLM's router to what the process booted with, then follow."""
        self._loop = asyncio.get_running_loop()
        everything = {table: tuple(rows.values()) for table, rows in self._booted.rows.items()}
        self._watcher.running = await self._apply(Changes(everything, dict.fromkeys(everything, ())), self._booted)
        threading.Thread(target=self._watcher.run, args=(self._stop,), name="live", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its present wait."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """For status."""
        running, problem = self._watcher.running, self._watcher.problem
        age = self._watcher.contact_age_s()
        return {
            "source": self._source.location,
            "revision": running.revision,
            "contact_age_s": None if age is None else round(age, 1),
            "rows": {table: len(rows) for table, rows in running.rows.items()},
            "refused": [one.as_dict() for one in running.problems],
            "problem": problem.as_dict()["error"] if problem is not None else None,
        }

    def gauges(self, worker: int) -> dict[str, list[tuple[Mapping[str, str], float]]]:
        """For metrics; they are not added up over the workers."""
        running, age, labels = self._watcher.running, self._watcher.contact_age_s(), {"worker": str(worker)}
        return {
            "appliance_live_revision": [(labels, float(running.revision))],
            "appliance_live_refused_rows": [(labels, float(len(running.problems)))],
            "appliance_live_contact_age_seconds": [] if age is None else [(labels, age)],
        }

    def apply(self, changes: Changes, config: LiveConfig) -> LiveConfig:
        """Called by the watcher, in its thread; see `live_watch.Applier`."""
        assert self._loop is not None  # noqa: S101 (the watcher runs after `start`)
        try:
            return asyncio.run_coroutine_threadsafe(self._apply(changes, config), self._loop).result(APPLY_LIMIT_S)
        except TimeoutError:
            cause = f"the event loop did not take it up within {APPLY_LIMIT_S:.0f} s"
            raise ConfigError("CONFIG_LIVE", cause, revision=config.revision) from None

    async def _apply(self, changes: Changes, config: LiveConfig) -> LiveConfig:
        whole = self._rows.together(config)  # refuses before anything is touched
        self._allow(whole, more=True)
        failed: dict[str, ApplianceError] = {}
        for row in changes.upserts["deployment"]:
            try:
                self._deployments.upsert(row.litellm())
            except ApplianceError as error:
                failed[row.id] = error
            await asyncio.sleep(0)  # requests pass in between
        if failed:
            config = _without(config, failed, self._watcher.running)
            whole = self._rows.together(config)
        self._change(whole)
        for id_ in changes.deletes["deployment"]:
            self._deployments.delete(id_)
            await asyncio.sleep(0)
        self._allow(whole)
        log.info("live configuration applied", extra={"revision": config.revision})
        return config

    def _allow(self, whole: Whole, *, more: bool = False) -> None:
        wanted = lockdown.destinations(whole.settings, whole.config)
        self._guard.allow(wanted | self._guard.allowed if more else wanted)


def _without(config: LiveConfig, failed: Mapping[str, ApplianceError], running: LiveConfig) -> LiveConfig:
    """The configuration with the old form of deployments that LiteLLM did not take, or without them."""
    old = running.rows["deployment"]
    kept = {id_: old.get(id_) if id_ in failed else row for id_, row in config.rows["deployment"].items()}
    rows = {**config.rows, "deployment": {id_: row for id_, row in kept.items() if row is not None}}
    problems = tuple(Problem("deployment", id_, error) for id_, error in failed.items())
    return replace(config, rows=MappingProxyType(rows), problems=(*config.problems, *problems))


def _say(line: str) -> None:
    log.warning("live configuration: %s", line)
