"""`appliance sync`: the sidecar between the registry and a shared volume."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.output import Json, Steps, as_refusal, refusals, show

if TYPE_CHECKING:
    from appliance.registry.contract import Store
    from appliance.registry.follower import Follower

JITTER = 0.2  # of the interval, so that hosts started together do not ask together


def sync(
    *,
    registry: Annotated[str, typer.Option(envvar="APPLIANCE_REGISTRY", help="A directory, or a YAML settings file.")],
    trust: Annotated[Path, typer.Option(envvar="APPLIANCE_TRUST", help="The host's trust state.")],
    to: Annotated[Path, typer.Option(help="The shared volume; gateways follow it as a directory registry.")],
    cache: Annotated[Path, typer.Option(help="This sidecar's own cache: epochs seen, interrupted transfers.")],
    channel: Annotated[
        list[str] | None, typer.Option(help="Channels to follow; without it, all of the registry.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="One pass, then exit: 0 only if every channel is up to date.")
    ] = False,
    interval: Annotated[float, typer.Option(min=0.2, max=86400, help="Seconds between passes.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Bring verified routers from the registry to a shared folder, once or for ever."""
    from appliance.notify import notify
    from appliance.registry.directory import DirectoryStore

    with refusals(as_json):
        volume = DirectoryStore(to)
        volume.check_present()
        say = Steps(as_json)
        follow = _Channels(registry, trust, cache, channel, lambda error: say(f"fetching without a slot; {error}"))
        if once:
            passes = _one_pass(follow, volume, say)
            reports = [*passes, *follow.configs(volume)]
            _report(reports, as_json)
            if any(report["problem"] for report in reports):
                raise typer.Exit(1)
            return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    said: dict[str, Any] = {}
    while not stop.is_set():
        passes = [_pass(follower, volume) for follower in _patiently(follow, say, said)]
        for report in [*passes, *follow.configs(volume)]:
            news = (report["epoch"], (report["problem"] or {}).get("code"))
            if report["written"] or said.get(report["channel"]) != news:
                said[report["channel"]] = news
                say(_line(report))
        _leave_note(volume, passes, said.get(""), say, said)
        notify("READY=1\nWATCHDOG=1")  # also while the registry is away: what is on the volume is served
        stop.wait(interval * (1 + random.uniform(-JITTER, JITTER)))  # noqa: S311 (spreads load)
    notify("STOPPING=1")


def _one_pass(follow: _Channels, volume: Any, say: Steps) -> list[dict[str, Any]]:
    """One report a channel; a registry that has never been reached is a refusal, told in the volume too."""
    from appliance.errors import RegistryError

    try:
        passes = [_pass(follower, volume) for follower in follow()]
    except RegistryError as error:
        _leave_note(volume, [], error.code, say, {})
        raise
    _leave_note(volume, passes, None, say, {})
    return passes


def _patiently(follow: _Channels, say: Steps, said: dict[str, Any]) -> list[Follower]:
    """The followers; none yet where the registry has never been reached, which is said once."""
    from appliance.errors import RegistryError

    try:
        followers = follow()
    except RegistryError as error:
        if said.get("") != error.code:
            said[""] = error.code
            say(f"waiting for the registry; {error}")
        return []
    said[""] = None
    return followers


def _leave_note(
    volume: Store, passes: list[dict[str, Any]], problem: str | None, say: Steps, said: dict[str, Any]
) -> None:
    """Tell those who see the volume alone how the registry fares; where that fails, on a full disk, say so once."""
    from appliance.errors import ApplianceError
    from appliance.registry.sidecar import KEY, heard, leave

    channels = {
        each["channel"]: heard(
            datetime.fromisoformat(each["contact"]) if each["contact"] else None, (each["problem"] or {}).get("code")
        )
        for each in passes
    }
    refused = None
    try:
        leave(volume, channels, problem)
    except ApplianceError as error:
        refused = error.code
        if said.get(KEY) != refused:
            say(f"{KEY} could not be written; {error}")
    said[KEY] = refused


class _Channels:
    """The followers of the channels named, or of all that the registry has or ever had."""

    def __init__(
        self, registry: str, trust: Path, cache: Path, names: list[str] | None, say: Callable[[object], None]
    ) -> None:
        from appliance.registry.contract import checked_name
        from appliance.registry.homes import open_cache, open_store
        from appliance.registry.registry import Registry
        from appliance.registry.trust_source import TrustSource

        self._names = [checked_name(name) for name in names or ()]
        self._source = TrustSource(trust)
        store = open_store(registry, revocations=self._source.revocations)
        self._home = Registry(store, material=self._source.material, clock=self._source.now)
        self._cache = open_cache(cache, registry, report=say)
        self._followers: dict[str, Follower] = {}

    def __call__(self) -> list[Follower]:
        """One follower a channel, each booted once."""
        from appliance.registry.follower import Follower

        for name in self._names or self._known():
            if name not in self._followers:
                material, clock = self._source.material, self._source.now
                self._followers[name] = Follower(self._home, self._cache, name, material=material, clock=clock)
                self._followers[name].boot()
        return list(self._followers.values())

    def configs(self, volume: Store) -> list[dict[str, Any]]:
        """Bring every signed configuration to the volume; one report each."""
        from appliance.errors import ApplianceError
        from appliance.registry.signed_config import Configs, mirror_config

        configs = Configs(self._home.store, material=self._source.material, clock=self._source.now)
        try:
            names = configs.names()
        except ApplianceError:
            return []  # the channels' reports say why
        reports = []
        for name in names:
            report: dict[str, Any] = {"channel": f"config/{name}", "epoch": 0, "version": None, "written": []}
            try:
                config, written = mirror_config(configs, name, self._cache, volume)
                report |= {"epoch": config.statement.epoch, "written": list(written), "problem": None}
            except ApplianceError as error:
                report["problem"] = error.as_dict()["error"]
            reports.append({"contact": None, "contact_age_s": None, "expired": False, **report})
        return reports

    def _known(self) -> list[str]:
        from appliance.errors import RegistryError

        kept = self._cache.channels()
        try:
            return sorted({*self._home.channels(), *kept})
        except RegistryError:
            if not kept:
                raise
            return kept  # the registry is away: what this host has followed goes on


def _pass(follower: Follower, volume: Any) -> dict[str, Any]:
    """Ask once, then bring the volume to what is known, also where the registry is away."""
    from appliance.errors import ApplianceError
    from appliance.registry.mirror import mirror

    problem: ApplianceError | None = None
    written: list[str] = []
    try:
        follower.poll()
    except (ApplianceError, OSError) as error:
        problem = as_refusal(error)
    try:
        written = list(mirror(follower, volume).written)
    except (ApplianceError, OSError) as error:
        problem = problem or as_refusal(error)
    health = follower.health()
    return {
        "channel": follower.channel,
        "epoch": health.epoch,
        "version": health.version,
        "written": written,
        "contact": health.contact.isoformat() if health.contact else None,
        "contact_age_s": health.contact_age_s,
        "expired": health.expired,
        "problem": problem.as_dict()["error"] if problem else None,
    }


def _line(report: dict[str, Any]) -> str:
    problem = report["problem"]
    said = f"{report['channel']}: version {report['version'] or 'none'}, epoch {report['epoch']}"
    if report["written"]:
        said += f", {len(report['written'])} files written"
    if problem:
        contact, age = report["contact"], report["contact_age_s"]
        when = contact if age is None else f"{age:.0f} s ago"  # an age needs a clock that is believed
        since = f"last sound answer {when}" if contact else "never reached"
        said += f"; {since}; {problem['code']}: {problem['cause']}"
    return said


def _report(reports: list[dict[str, Any]], as_json: bool) -> None:
    def text(console: Any) -> None:
        for report in reports:
            console.print(_line(report), markup=False)
        if not reports:
            console.print("the registry has no channel yet; promote a router first")

    show({"channels": reports}, as_json, text)
