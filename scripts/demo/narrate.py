"""How the demo speaks: numbered steps, the very commands an operator would type, and what they took."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOUR = sys.stdout.isatty()


def _style(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def say(text: str) -> None:
    """One line below the current step."""
    print(f"    {text}", flush=True)


@contextmanager
def step(number: int, title: str) -> Iterator[None]:
    """A numbered step; its time is printed at its end."""
    print(f"\n{_style('1', f'[{number}/8] {title}')}", flush=True)
    begun = time.monotonic()
    yield
    say(_style("2", f"({time.monotonic() - begun:.1f} s)"))


class Commands:
    """Runs commands the way an operator would, from one folder, and shows them.

    Args:
        folder: working directory, the paths shown are relative to it.
        path: folders put in front of PATH, so that `appliance` is the one meant.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}

    def __call__(self, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Run and show a command whose own output is for people; stop the demo where it fails."""
        words = self._show(command)
        run = subprocess.run(words, cwd=self.folder, env={**self.environment, **(env or {})}, check=False)
        if run.returncode:
            raise SystemExit(f"    the command failed with status {run.returncode}; its message stands above")

    def json(self, *command: str | Path, show: bool = True, check: bool = True) -> Any:
        """Run a command with `--json` and return the document it printed."""
        words = self._show((*command, "--json"), show)
        run = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if check and run.returncode:
            raise SystemExit(f"    the command failed with status {run.returncode}:\n{run.stdout}{run.stderr}")
        try:
            return json.loads(run.stdout)
        except json.JSONDecodeError:
            raise SystemExit(f"    the command printed no JSON:\n{run.stdout}{run.stderr}") from None

    def _show(self, command: tuple[str | Path, ...], show: bool = True) -> list[str]:
        words = [str(word) for word in command]
        if show:
            home = f"{self.folder}/"
            say(_style("36", "$ " + shlex.join(word.removeprefix(home) for word in words)))
        return words


def summary(rows: list[tuple[str, str]]) -> None:
    """The closing table."""
    width = max(len(name) for name, _ in rows)
    print(f"\n{_style('1', 'Summary')}")
    for name, value in rows:
        print(f"  {name:{width}}  {value}")
