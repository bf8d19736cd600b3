"""The commands' own manual pages and the shells' completion scripts, as they travel with a release."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from appliance import __version__


def walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be typed, with its words."""
    if getattr(command, "list_commands", None) is None:
        yield path, command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from walk(command.get_command(context, name), (*path, name))


def option_text(parameter: Any) -> tuple[str, str]:
    """How a parameter is written, and what it is for."""
    if parameter.param_type_name == "argument":
        return (parameter.metavar or parameter.name).upper(), getattr(parameter, "help", "") or ""
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" {(parameter.metavar or parameter.name or '').upper()}"
    return names + value, parameter.help or ""


def man_pages(app: typer.Typer) -> dict[str, str]:
    """One page for man(1) for each command: file name -> text."""
    commands = walk(typer.main.get_command(app), ("appliance",))
    return {f"{'-'.join(words)}.1": _man_page(words, command) for words, command in commands}


def completions() -> dict[str, str]:
    """The completion script of each shell, as typer writes it: file name -> text."""
    from typer._completion_shared import get_completion_script

    return {
        f"appliance.{shell}": get_completion_script(
            prog_name="appliance", complete_var="_APPLIANCE_COMPLETE", shell=shell
        )
        + "\n"
        for shell in ("bash", "zsh", "fish")
    }


def _man_page(words: tuple[str, ...], command: Any) -> str:
    name, help_text = "-".join(words), " ".join((command.help or "").split())
    lines = [
        f'.TH "{name.upper()}" "1" "" "appliance {__version__}" "LLM routing appliance"',
        ".SH NAME", f"{_roff(name)} \\- {_roff(help_text.split('. ')[0].rstrip('.'))}",
        ".SH SYNOPSIS", f".B {_roff(' '.join(words))}", "[OPTIONS]",
        *(f"\\fI{(p.metavar or p.name).upper()}\\fR" for p in command.params if p.param_type_name == "argument"),
        ".SH DESCRIPTION", _roff(help_text), ".SH OPTIONS",
    ]  # fmt: skip
    for option, text in (option_text(each) for each in command.params):
        lines += [".TP", f"\\fB{_roff(option)}\\fR", _roff(text)]
    lines += [".SH EXIT STATUS", "0 done, 1 refused or failed with a code, 2 usage.", ".SH SEE ALSO",
              "appliance\\-explain(1); the runbooks in scripts/."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "'")
    return f"\\&{text}" if text.startswith((".", "'")) else text
