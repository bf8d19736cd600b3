"""`appliance sync`: the sidecar between the registry and a shared volume."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.output import Json, Steps, refusals, show

if TYPE_CHECKING:
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
    from appliance.errors import ApplianceError
    from appliance.registry.directory import DirectoryStore

    with refusals(as_json):
        followers = _followers(registry, trust, cache, channel)
        volume = DirectoryStore(to)
        if once:
            reports = [_pass(follower, volume) for follower in followers]
            _report(reports, as_json)
            if any(report["problem"] for report in reports):
                raise typer.Exit(1)
            return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    say = Steps()
    said: dict[str, Any] = {}
    while not stop.is_set():
        for follower in followers:
            try:
                report = _pass(follower, volume)
            except ApplianceError as error:
                report = {"channel": follower.channel, "problem": error.as_dict()["error"], "written": []}
            news = (report.get("epoch"), (report["problem"] or {}).get("code"))
            if report["written"] or said.get(follower.channel) != news:
                said[follower.channel] = news
                say(_line(report))
        stop.wait(interval * (1 + random.uniform(-JITTER, JITTER)))  # noqa: S311 (spreads load)


def _followers(registry: str, trust: Path, cache: Path, channels: list[str] | None) -> list[Follower]:
    from appliance.registry.cache import Cache
    from appliance.registry.follower import Follower
    from appliance.registry.registry import Registry
    from appliance.registry.settings import open_store
    from appliance.registry.trust_source import TrustSource

    source = TrustSource(trust)
    home = Registry(open_store(registry), material=source.material, clock=source.now)
    kept = Cache(cache)
    names = channels or sorted({*home.channels(), *kept.channels()})
    followers = [Follower(home, kept, name, material=source.material, clock=source.now) for name in names]
    for follower in followers:
        follower.boot()
    return followers


def _pass(follower: Follower, volume: Any) -> dict[str, Any]:
    """Ask once, then bring the volume to what is known, also where the registry is away."""
    from appliance.errors import ApplianceError
    from appliance.registry.mirror import mirror

    problem: ApplianceError | None = None
    try:
        follower.poll()
    except ApplianceError as error:
        problem = error
    if follower.served is None and problem is not None:
        raise problem
    done = mirror(follower, volume)
    return {
        "channel": done.channel,
        "epoch": done.epoch,
        "version": done.version,
        "written": list(done.written),
        "problem": problem.as_dict()["error"] if problem else None,
    }


def _line(report: dict[str, Any]) -> str:
    problem = report["problem"]
    said = f"{report['channel']}: "
    if "epoch" in report:
        said += (
            f"version {report['version'] or 'none'}, epoch {report['epoch']}, {len(report['written'])} files written"
        )
    if problem:
        said += f" [{problem['code']}: {problem['cause']}]"
    return said


def _report(reports: list[dict[str, Any]], as_json: bool) -> None:
    def text(console: Any) -> None:
        for report in reports:
            console.print(_line(report), markup=False)
        if not reports:
            console.print("the registry has no channel yet; promote a router first")

    show({"channels": reports}, as_json, text)
