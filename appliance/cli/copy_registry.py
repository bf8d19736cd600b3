"""`appliance copy-registry`: everything of a registry, to another home; then both are compared."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from appliance.cli.output import Json, Steps, refusals, show

Home = "A directory, or a YAML settings file."


def copy_registry(
    source: Annotated[str, typer.Argument(help=f"The registry as it is. {Home}")],
    target: Annotated[str, typer.Argument(help=f"Where it shall be; empty, or an unfinished copy. {Home}")],
    as_json: Json = False,
) -> None:
    """Copy a registry between directories and buckets and compare every byte; repeat it after a kill."""
    from appliance.operations.moving import copy_registry as copy
    from appliance.registry.homes import open_store

    with refusals(as_json):
        moved = copy(open_store(source), open_store(target), say=Steps(quiet=as_json))
        show(
            asdict(moved),
            as_json,
            lambda out: out.print(
                f"{moved.objects} objects, {moved.size_bytes} bytes, the same in both; {moved.written} written"
            ),
        )
