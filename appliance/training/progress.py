"""How long work reports: a callable, so that the command line, a job and a test each bring their own."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of each step; `appliance.cli.output.Steps` is one."""

    def __call__(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Report a step; with `done` and `total` (any one unit) the share is known."""


def silent(text: str, done: int | None = None, total: int | None = None) -> None:
    """Report nothing."""
