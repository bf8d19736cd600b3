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
        str | None, typer.Argument(help="The code, as printed with a refusal, or a part of it. Without it: all codes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What an error code means and what to do."""
    with refusals(as_json):
        entries = catalogue()
        asked = (code or "").upper()
        entry = entries.get(asked)
        alike = [each for each in entries.values() if asked in each.code]
        if entry is None and alike:

            def every_line(out: Console) -> None:
                for each in alike:
                    out.print(f"{each.code:32} {each.meaning}", markup=False)

            show([asdict(each) for each in alike], as_json, every_line)
            return
        if entry is None:
            near = difflib.get_close_matches(asked, entries, n=3)
            raise OperationError("OPERATION_UNKNOWN_CODE", f"no code {code!r}", nearest=near)
        show(
            asdict(entry),
            as_json,
            lambda out: out.print(f"{entry.code}\n{entry.meaning}\nnext: {entry.remedy}", markup=False),
        )
