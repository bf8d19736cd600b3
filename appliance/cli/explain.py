"""`appliance explain`: the error catalogue at the prompt."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from appliance.cli.output import Json, refusals, show
from appliance.errors import OperationError, catalogue


def explain(
    code: Annotated[
        str | None, typer.Argument(help="The code, as printed with a refusal. Without it: all codes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What an error code means and what to do."""
    with refusals(as_json):
        entries = catalogue()
        if code is None:

            def every_line(out: Console) -> None:
                for entry in entries.values():
                    out.print(f"{entry.code:32} {entry.meaning}", markup=False)

            show([asdict(entry) for entry in entries.values()], as_json, every_line)
            return
        entry = entries.get(code.upper())
        if entry is None:
            near = difflib.get_close_matches(code.upper(), entries, n=3)
            raise OperationError("OPERATION_UNKNOWN_CODE", f"no code {code!r}", nearest=near)
        show(
            asdict(entry),
            as_json,
            lambda out: out.print(f"{entry.code}\n{entry.meaning}\nnext: {entry.remedy}", markup=False),
        )
