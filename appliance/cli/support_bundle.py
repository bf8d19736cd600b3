"""`appliance support-bundle`: what support needs, and nothing that must not leave."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.doctor import DEFAULT_PREFIX
from appliance.cli.output import Json, refusals, show


def support_bundle(
    out: Annotated[Path | None, typer.Option("--out", help="The archive; default support-<time>.tar here.")] = None,
    prefix: Annotated[Path, typer.Option("--prefix", help="Where the appliance lives.")] = DEFAULT_PREFIX,
    config: Annotated[
        Path | None, typer.Option("--config", help="appliance.yaml; default PREFIX/etc/appliance.yaml.")
    ] = None,
    log: Annotated[list[Path] | None, typer.Option("--log", help="A log file beside the journal.")] = None,
    as_json: Json = False,
) -> None:
    """Collect what support needs from an allow-list; refuses to write if a secret of this host would be in it."""
    from appliance.operations.doctor.gather import Places
    from appliance.operations.support.write import support_bundle as collect_and_write

    with refusals(as_json):
        now = datetime.now(UTC)
        target = out or Path(f"support-{now:%Y%m%dT%H%M%SZ}.tar")
        report = collect_and_write(Places.below(prefix, config), target, now=now, logs=tuple(log or ()))
        show(report, as_json, lambda console: _print(console, report))


def _print(out: Any, report: dict[str, Any]) -> None:
    for name, entry in report["files"].items():
        out.print(f"  {name:20} {entry['bytes']:8} bytes", markup=False)
    out.print(f"{sum(report['left_out'].values())} values were not on the allow-list and stayed here")
    out.print(
        f"{report['archive']}: read it with `tar -xOf {report['archive']}` before it leaves the zone", markup=False
    )
