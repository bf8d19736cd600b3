"""How `appliance ca` prints a report for people, and reads a time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from appliance.cli.output import printable
from appliance.files import read_regular, sha256_hex


def rows(console: Any, report: dict[str, Any]) -> None:
    """A report for people: one line a value, lists below their name."""
    for name, value in report.items():
        title = name.replace("_", " ")
        if isinstance(value, dict) and value:
            console.print(title)
            for each, inner in value.items():
                text = "  ".join(f"{k} {cell(v)}" for k, v in inner.items()) if isinstance(inner, dict) else cell(inner)
                _line(console, f"  {each:20} {text}")
        elif isinstance(value, list) and value:
            console.print(title)
            for each in value:
                text = "  ".join(map(str, each.values())) if isinstance(each, dict) else str(each)
                _line(console, f"  {text}")
        else:
            _line(console, f"{title:18} {cell(value)}")


def _line(console: Any, text: str) -> None:
    """A line stays one: a key holder signs by what is read here, and names in a draft are somebody else's words."""
    console.print(printable(text, one_line=True))


def cell(value: Any) -> str:
    """One value as text."""
    if isinstance(value, list | tuple | dict):
        return ", ".join(_words(each) if isinstance(each, dict) else str(each) for each in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _words(value: dict[str, Any]) -> str:
    return " ".join(f"{name} {inner}" for name, inner in value.items())


def parse_time(text: str, hint: str) -> datetime:
    """An RFC 3339 time of the command line, UTC."""
    from appliance.trust.trusted_root import parse_rfc3339

    try:
        return parse_rfc3339(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time such as 2026-11-23T12:00:00Z", param_hint=hint) from None


def new_folder(path: Path, hint: str) -> Path:
    """A folder of the command line that shall be made: under its own name, which `.` and `..` do not tell."""
    if path.name in {"", ".."}:
        raise typer.BadParameter(f"name the folder from outside of it, not {str(path)!r}", param_hint=hint)
    return path


def now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


def handed_out(authority: Path) -> dict[str, str]:
    """What goes over the second channel: the anchor and its SHA-256."""
    anchor = authority / "anchor.json"
    return {"anchor": str(anchor), "anchor_sha256": sha256_hex(read_regular(anchor, max_bytes=4 * 1024 * 1024))}
