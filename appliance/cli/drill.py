"""`appliance drill`: every runbook done for real, on an installation made for it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.doctor import DEFAULT_PREFIX
from appliance.cli.output import Json, console, refusals, show

if TYPE_CHECKING:
    from appliance.operations.drill.run import Drilled


def drill(
    prefix: Annotated[
        Path, typer.Option("--prefix", help="Whose runbooks, wheels and encoder are used; it is only read.")
    ] = (DEFAULT_PREFIX),
    scripts: Annotated[
        Path | None, typer.Option("--scripts", help="Folder of the runbooks; default that of the release.")
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option("--wheels", help="Folder with wheels of PyYAML and uv; default that of the release.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option("--encoder", help="Folder of an encoder; default that of the release.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Empty folder to drill in, kept to be looked at; default a temporary.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Drill every runbook on a throw-away installation. Exit 0 where every case held, else 1."""
    with refusals(as_json):
        from appliance.bundle.stage0.workspace import workspace
        from appliance.operations.drill.run import drill as run

        payload = prefix.absolute() / "current" / "payload"
        terminal = console()

        def say(each: Drilled) -> None:
            if not as_json:
                terminal.print("held   " if each.held else "FAILED ", style=None if each.held else "bold red", end="")
                terminal.print(f"{each.case} ({each.seconds} s): {each.seen}", markup=False)

        with workspace("drill") as temporary:
            done = run(
                (out or temporary).absolute(),
                scripts=(scripts or payload / "scripts").absolute(),
                wheels=(wheels or payload / "wheels").absolute(),
                encoder=(encoder or payload / "encoder").absolute(),
                now=datetime.now(UTC),
                say=say,
            )
        value: dict[str, Any] = {"held": all(each.held for each in done), "cases": [each.as_dict() for each in done]}
        show(value, as_json, lambda out: out.print("every case held" if value["held"] else "not every case held"))
        raise typer.Exit(0 if value["held"] else 1)
