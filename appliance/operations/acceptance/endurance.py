"""Endurance: a gateway under mixed traffic, while everything around it goes wrong or is replaced.

Reloads, a flapping registry, model servers that die, certificates and their CA rotated, an upgrade and the way back:
no request may fail while one model server lives; memory, descriptors and threads must stay where they are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance import settings
from appliance.operations.acceptance.bench import installed_router
from appliance.operations.acceptance.checks import Result
from appliance.operations.acceptance.levels import Levels
from appliance.operations.acceptance.manager import Manager
from appliance.operations.acceptance.scene import Scene
from appliance.operations.acceptance.traffic import Traffic
from appliance.operations.acceptance.upstream import StandIn, stand_ins
from appliance.operations.acceptance.zone import Zone
from appliance.operations.doctor.gather import Places

UPGRADE_AT, CA_AT, ROLLBACK_AT = 0.1, 0.2, 0.3  # of the run: what comes after is one process, long enough to judge
JUDGED_FROM_S = 1800.0  # a run this long that judged nobody's memory has not shown what it was asked to show


def endurance(
    places: Places,
    directory: Path,
    seconds: float,
    *,
    router: Path | None = None,
    media: Path | None = None,
    pace_s: float = 1.0,
    rate_per_s: float = 20.0,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Run for so long.

    Args:
        places: of the installation, which is only read.
        directory: an empty folder for everything that is written.
        seconds: how long traffic flows, at least: every disturbance comes once.
        router: the router's folder; default is the newest one of the installation.
        media: a newer release to upgrade to; without it, to the newest of several that are installed.
        pace_s: between two disturbances.
        rate_per_s: requests a second of all clients together.
        say: told of progress.
    """
    installed = settings.load(places.config)
    copied = Zone.create(
        directory / "zone", router=router or installed_router(installed, places), encoders=installed.routing.encoders
    )
    with stand_ins(list(copied.models)) as upstreams, _run(directory, copied, places, upstreams) as run:
        traffic, levels = run.prepare(installed, rate_per_s), Levels()
        begun = time.monotonic()
        once: list[tuple[float, Callable[[], None]]] = [
            (UPGRADE_AT * seconds, lambda: run.upgrade(media)),
            (CA_AT * seconds, run.rotate_ca),
            (ROLLBACK_AT * seconds, run.rollback),
        ]
        turn = 0
        with traffic.flowing():
            steps = run.disturbances()
            while run.ended is None and (time.monotonic() - begun < seconds or once or turn < len(steps)):
                if once and time.monotonic() - begun >= once[0][0]:
                    once.pop(0)[1]()
                else:
                    steps[turn % len(steps)]()
                    turn += 1
                    if turn % len(steps) == 0:
                        say(f"{time.monotonic() - begun:.0f} s, {sum(traffic.counts.values())} requests, "
                            f"{traffic.failed} failed{_newest(traffic)}")  # fmt: skip
                levels.watch(run.pid, pace_s)
            if (ended := run.ended) is None:
                run.recover()
        return _result(run, traffic, levels, time.monotonic() - begun, ended)


@contextlib.contextmanager
def _run(directory: Path, zone: Zone, places: Places, upstreams: dict[str, StandIn]) -> Iterator[Scene]:
    run = Scene(directory, zone, Manager(directory, places.prefix), upstreams)
    try:
        yield run
    finally:
        run.close()


def _newest(traffic: Traffic) -> str:
    """The failure that was told last, in words: an hour is long to wait for it."""
    if not traffic.failures:
        return ""
    kind, at_s, said = traffic.failures[-1]
    return f" ({kind} at {at_s:.0f} s: {said})"


def _result(run: Scene, traffic: Traffic, levels: Levels, seconds: float, ended: str | None) -> Result:
    pairs = zip(run.served, levels.processes(), strict=ended is None)
    processes = [{"release": release, **each} for release, each in pairs]
    judged = any(each["slope_judged"] for each in processes)
    sound = ended is None and not traffic.failed and not run.missed
    return Result(
        "endurance",
        "no request fails while one model server lives, whatever is reloaded, replaced or taken away; what was changed "
        "arrives; memory, descriptors and threads do not grow",
        sound and levels.flat() and (judged or seconds < JUDGED_FROM_S),
        {
            "seconds": round(seconds),
            "ended": ended,
            "requests": sum(traffic.counts.values()),
            "by_kind": dict(traffic.counts),
            "failed": traffic.failed,
            "failures": traffic.failures,
            "longest_wait_s": round(traffic.longest_s, 1),
            "done": dict(run.done),
            "missed": run.missed,
            "memory_judged": judged,
            "processes": processes,
        },
    )
