"""`appliance serve`: run the gateway until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.output import Json, refusals, show

Config = Annotated[
    Path, typer.Option("--config", envvar="APPLIANCE_CONFIG", help="The gateway's appliance.yaml.", show_default=True)
]

default_config = Path("appliance.yaml")


def serve(
    config: Config = default_config,
    check: Annotated[bool, typer.Option("--check", help="Only check the configuration, then exit.")] = False,
    as_json: Json = False,
) -> None:
    """Run the gateway."""
    from appliance import settings
    from appliance.gateway import boot, logs

    with refusals(as_json):
        chosen = settings.load(config)
        if check:
            boot.check(chosen)
            where = f"[{chosen.listen.host}]" if ":" in chosen.listen.host else chosen.listen.host
            value = {"valid": True, "config": str(config), "listen": f"{where}:{chosen.listen.port}"}
            show(value, as_json, lambda out: out.print(f"{config} is valid"))
            return
        logs.configure()
        status = boot.boot(chosen)
    raise typer.Exit(status)
