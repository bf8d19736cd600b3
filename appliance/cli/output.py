"""How every command speaks: a short text for people, `--json` for machines, refusals at one exit point.

What is printed comes from media, registries and models: names, causes, evaluations. None of it may drive the reader's
terminal (escape sequences, text that runs backwards, lines of its own), nor be taken for markup.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from appliance.errors import ApplianceError, FileError, OperationError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

# what a terminal acts upon, or hides, instead of showing it: control characters, half surrogates, Unicode's own line
# separators, changes of direction and empty marks (https://trojansource.codes/)
_ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)
_NARROW = 30  # columns: less room than this is no paragraph
_FRAMES = 4  # of a defect's stack, innermost last


def printable(text: str, *, one_line: bool = False) -> str:
    """Text as a terminal may have it: whatever it would act upon is written as an escape.

    Args:
        text: from anywhere.
        one_line: escape new lines too, so that a value cannot pass for lines of ours.
    """
    shown = _ACTING.sub(lambda found: _escape(found[0]), text)
    return shown.replace("\n", "\\n") if one_line else shown


def _escape(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"


class _Console(Console):
    """A console that takes text for text: no markup, no `:emoji:`, nothing that a terminal acts upon."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """What every printed string goes through."""
        return super().render_str(printable(text), **options)


def console() -> Console:
    """Standard output for people."""
    return _Console()


def show(value: Any, as_json: bool, text: Callable[[Console], None]) -> None:
    """Print a report: `value` as one JSON document, or whatever `text` writes to the console."""
    if as_json:
        print(json_text(value))
    else:
        text(console())


def hang(out: Console, label: str, text: str, *, column: int = 0) -> None:
    """Print `label` and `text`; on a terminal what does not fit goes on below the text, not at the margin.

    Args:
        out: where to.
        label: stands before the text.
        text: taken for one line.
        column: where the cursor stands already.
    """
    text = printable(text, one_line=True)
    room = out.width - column - len(label)
    if not out.is_terminal or room < _NARROW:
        out.print(label + text)
        return
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    out.print(label + ("\n" + " " * (column + len(label))).join(lines))


def json_text(value: Any) -> str:
    """A value as JSON (RFC 8259) that is safe to look at; a number that JSON has no word for is `null`."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str)
    return _ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # json has escaped what JSON itself forbids


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def refusals(as_json: bool = False) -> Iterator[None]:
    """Print a refusal (code, cause, evidence, next command) and exit with status 1; nobody ever meets a traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(1) from None
    except Exception as error:  # noqa: BLE001 (the last place before a person)
        refusal = as_refusal(error)
        if as_json:
            print(json_text(refusal.as_dict()))
        else:
            print_refusal(refusal)
        raise typer.Exit(1) from None


def as_refusal(error: Exception) -> ApplianceError:
    """Any error as a refusal: our own as it is, the system's by its name, anything else as the defect that it is."""
    if isinstance(error, ApplianceError):
        return error
    if isinstance(error, OSError):
        place = {} if error.filename is None else {"path": str(error.filename)}
        return FileError("FILE_SYSTEM", f"{error.strerror or error}", errno=error.errno, **place)
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return OperationError("OPERATION_DEFECT", f"{type(error).__name__}: {error}"[:500], where=where)


def print_refusal(error: ApplianceError) -> None:
    """Write a refusal to standard error, for a person."""
    errors = _Console(stderr=True)
    errors.print("refused", style="bold red", end=" ")
    errors.print(error.code, style="bold", end=" ")
    errors.print(printable(error.cause, one_line=True))
    for name, value in error.evidence.items():
        errors.print(f"  {name}: {printable(str(value), one_line=True)}")
    errors.print("next: ", end="", style="bold")
    errors.print(error.remedy)


class Steps:
    """Progress of long work: a live line on a terminal, plain lines elsewhere, nothing with `--json`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = _Console(stderr=True)
        self._live = self._console.is_terminal and not quiet

    def __call__(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Report a step; with `done` and `total` (any one unit) the share is shown."""
        if self._quiet:
            return
        share = f" {done * 100 // total:3d} %" if done is not None and total else ""
        if self._live and share:
            self._console.control(Control((ControlType.ERASE_IN_LINE, 0)))  # the line before may have been longer
            self._console.print(f"{text}{share}", end="\n" if done == total else "\r")
        elif not share or done == total:
            self._console.print(f"{text}{share}")
