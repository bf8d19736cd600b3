"""The guides' commands, taken from the pages as they stand there, typed, and counted: what nobody typed is named."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from appliance.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
Replacements = Mapping[str, object]


def commands_in(page: str) -> list[str]:
    """Commands of ours in a page: lines of fenced blocks that begin with a prompt or our name, and what is in back
    quotes; a continued line is one, and what a comment says is left out."""
    page = page.replace("\\\n", " ")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    each = [part for line in lines + inline for part in re.split(r"\s+# ", line)[0].split(" && ")]
    return [line.strip() for line in each if re.match(r"(\S*/)?appliance \w", line)]


class Guide:
    """A page of `docs/`, and what of it was typed.

    Args:
        name: of the page.
        environment: of every command, beside the process's own.
    """

    def __init__(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        self.page = (DOCS / f"{name}.md").read_text()
        self.commands = list(dict.fromkeys(commands_in(self.page)))
        self._environment = dict(environment or {})
        self._typed: set[str] = set()

    def line(self, begins: str) -> str:
        """The page's one command that begins so; where several do, the one that says nothing else."""
        found = [line for line in self.commands if line.startswith(begins)]
        assert found, f"the page has no command `{begins}`"
        exact = [line for line in found if line == begins]
        assert len(exact or found) == 1, f"several begin with `{begins}`: {found}"
        self._typed.add((exact or found)[0])
        return (exact or found)[0]

    def type(
        self,
        begins: str,
        replace: Replacements | None = None,
        *more: object,
        expect: int = 0,
        environment: Mapping[str, str] | None = None,
        report: bool = True,
    ) -> Any:
        """Type the command that begins so, in this process: starting Python anew takes longer than what it does.

        Args:
            begins: how the page's line begins; nothing but that line may.
            replace: what the reader puts in place of the page's names: text -> value; a list of values for one after
                the other.
            more: arguments that the test adds (a port of its own, say).
            expect: exit code.
            environment: for this command alone.
            report: ask for `--json` and return what it says; else return the text.
        """
        words = [*shlex.split(filled(self.line(begins), replace or {}))[1:], *map(str, more)]
        words += ["--json"] if report and "--json" not in words else []
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200", **self._environment, **(environment or {})})
        assert done.exit_code == expect, f"{words}\n{done.output}\n{done.exception!r}"
        return json.loads(done.stdout) if report else done.stdout

    def exports(self, replace: Replacements) -> dict[str, str]:
        """The variables that the page's `export` lines set, their values filled in; a name may stand in any line."""
        lines = "\n".join(line.strip() for line in self.page.splitlines() if line.strip().startswith("export "))
        pairs = (shlex.split(line)[1].partition("=") for line in filled(lines, replace).splitlines())
        return {name: os.path.expandvars(value) for name, _, value in pairs}

    def other(self, begins: str) -> str:
        """What the page types in a shell that is no command of ours: the one line that begins so, a loop to its end."""
        lines = [line.strip().removeprefix("$ ") for line in self.page.splitlines()]
        (at,) = [number for number, line in enumerate(lines) if line.startswith(begins)]
        loop = begins.startswith("for ")
        typed = lines[at : lines.index("done", at) + 1] if loop else [re.split(r"\s+# ", lines[at])[0]]
        self._typed.update(line for line in typed if line in self.commands)
        return "\n".join(typed)

    def all_typed(self, elsewhere: Mapping[str, str]) -> None:
        """Nothing in the page is left, but what `elsewhere` names with its reason; and that names nothing else."""
        left = {line for line in self.commands if line not in self._typed}
        assert left == set(elsewhere), f"not typed: {left - set(elsewhere)}; named for nothing: {set(elsewhere) - left}"


def filled(line: str, replace: Replacements) -> str:
    """A line of a page with the reader's own names in it.

    Args:
        line: of the page; what follows a comment sign or `...` is not for typing.
        replace: text -> value, or -> values for its first, second, ... place; longer texts go first.
    """
    line = line.removesuffix(" ...")
    for text, value in sorted(replace.items(), key=lambda item: -len(item[0])):
        assert text in line, f"`{text}` is not in `{line}`"
        if isinstance(value, Sequence) and not isinstance(value, str):
            for each in value:
                line = line.replace(text, str(each), 1)
        else:
            line = line.replace(text, str(value))
    return line
