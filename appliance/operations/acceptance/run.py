"""The acceptance from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from appliance import settings
from appliance.bundle.stage0.workspace import workspace
from appliance.errors import ApplianceError
from appliance.operations.acceptance import checks
from appliance.operations.acceptance.bench import bench
from appliance.operations.acceptance.checks import Result
from appliance.operations.acceptance.endurance import endurance
from appliance.operations.doctor.gather import Places, gather
from appliance.operations.doctor.snapshot import Drift
from appliance.registry.settings import S3Settings, read_settings

PACE_S = 2.0  # between two disturbances


def accept(
    places: Places,
    *,
    now: datetime,
    say: Callable[[str], None],
    router: Path | None = None,
    probe: Sequence[str] = (),
    endurance_s: float = 0.0,
    rate_per_s: float = 20.0,
    upgrade: Path | None = None,
) -> tuple[list[Result], str | None]:
    """Run every check.

    Args:
        places: of the installation.
        now: the clock.
        say: told of progress.
        router: folder of the router to use; default is the installed one.
        probe: `host:port` outside the zone, which must not be reached.
        endurance_s: how long the endurance run takes; 0 leaves it out.
        rate_per_s: requests a second meanwhile.
        upgrade: media of a newer release, for the upgrade in its midst.

    Returns:
        The results, and the release they are about.

    Raises:
        ApplianceError: what keeps the acceptance from beginning.
    """
    say("reading every installed byte")
    snapshot = gather(places, now=now, deep=True, probe=probe)
    payload = places.prefix / "current" / "payload"
    results = [checks.dependencies(snapshot, payload)]
    with workspace("acceptance") as name:
        say("starting a second gateway beside the running one")
        with bench(places, name, router=router) as made:
            for check in checks.BENCH_CHECKS:
                say(check.__name__.replace("_", " "))
                results.append(_safely(check.__name__, lambda check=check: check(made)))  # type: ignore[misc]
            results.append(_safely("isolation", lambda: checks.isolation(made, snapshot)))
    results.append(_safely("internal CA pinning", lambda: checks.ca_pinning(_registries(places))))
    if endurance_s:
        say(f"endurance, {endurance_s:.0f} s")
        with workspace("endurance") as name:
            results.append(
                _safely(
                    "endurance",
                    lambda: endurance(
                        places,
                        name,
                        endurance_s,
                        router=router,
                        media=upgrade,
                        rate_per_s=rate_per_s,
                        pace_s=PACE_S,
                        say=say,
                    ),
                )
            )
    release = snapshot.drift.release if isinstance(snapshot.drift, Drift) else None
    return results, release


def _registries(places: Places) -> dict[str, S3Settings]:
    """The buckets that the gateway and the sidecar of this installation are told to trust, by where that stands."""
    installed = settings.load(places.config)
    named = {f"router {name}": each.registry for name, each in installed.routing.routers.items()}
    if installed.live is not None:
        named["live.registry"] = installed.live.registry
    followed = places.prefix / "etc" / "registry.yaml"
    if followed.is_file():
        named[followed.name] = read_settings(followed)
    return {what: each for what, each in named.items() if isinstance(each, S3Settings)}


def _safely(name: str, check: Callable[[], Result]) -> Result:
    """A check that breaks has not passed, and says how it broke."""
    try:
        return check()
    except ApplianceError as error:
        return Result(
            name, "the check can be carried out", passed=False, evidence={"refused": error.code, "cause": error.cause}
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        return Result(
            name, "the check can be carried out", passed=False, evidence={"broke": f"{type(error).__name__}: {error}"}
        )
