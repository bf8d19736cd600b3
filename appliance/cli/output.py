"""How every command speaks: a short text for people, `--json` for machines, refusals at one exit point."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console

from appliance.errors import ApplianceError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def console() -> Console:
    """Standard output for people."""
    return Console(highlight=False, soft_wrap=True)


def show(value: Any, as_json: bool, text: Callable[[Console], None]) -> None:
    """Print a report: `value` as one JSON document, or whatever `text` writes to the console."""
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        text(console())


@contextlib.contextmanager
def refusals(as_json: bool = False) -> Iterator[None]:
    """Print an `ApplianceError` (code, cause, evidence, next command) and exit with status 1."""
    try:
        yield
    except ApplianceError as error:
        if as_json:
            print(json.dumps(error.as_dict(), indent=2, ensure_ascii=False))
        else:
            print_refusal(error)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(1) from None


def print_refusal(error: ApplianceError) -> None:
    """Write a refusal to standard error, for a person."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    errors.print(f"[bold red]refused[/] [bold]{error.code}[/]", error.cause, markup=True)
    for name, value in error.evidence.items():
        errors.print(f"  {name}: {value}", markup=False)
    errors.print("next: ", end="", style="bold")
    errors.print(error.remedy, markup=False)


class Steps:
    """Progress of long work: a live line on a terminal, plain lines elsewhere, nothing with `--json`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not quiet

    def __call__(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Report a step; with `done` and `total` (any one unit) the share is shown."""
        if self._quiet:
            return
        share = f" {done * 100 // total:3d} %" if done is not None and total else ""
        if self._live and share:
            end = "\n" if done == total else "\r"
            self._console.print(f"{text}{share}\033[K", end=end, markup=False)
        elif not share or done == total:
            self._console.print(f"{text}{share}", markup=False)
