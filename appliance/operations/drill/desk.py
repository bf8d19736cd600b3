"""The desk of a drill: runs runbooks as an operator does, and can be called away in the midst of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import OperationError
from appliance.operations.drill.ground import Ground

LIMIT_S = 300.0


@dataclass(frozen=True)
class Desk:
    """Where runbooks are typed.

    Attributes:
        ground: of the drill.
        scripts: folder of the runbooks.
    """

    ground: Ground
    scripts: Path

    def run(self, name: str, *arguments: str | Path, killed_after_s: float | None = None) -> str:
        """Run a runbook with `--apply`; returns what it said.

        Args:
            name: of the runbook.
            arguments: beside `--prefix` and `--apply`.
            killed_after_s: kill it and everything it started then, and run it again from the beginning.

        Raises:
            OperationError: OPERATION_DRILL_FAILED.
        """
        if killed_after_s is not None:
            self._start(name, arguments, killed_after_s)
        status, said = self._start(name, arguments, None)
        if status:
            last = [line for line in said.strip().splitlines() if line][-4:]
            raise OperationError("OPERATION_DRILL_FAILED", f"{name} ended with {status}", runbook=name, said=last)
        return said

    def refused(self, name: str, *arguments: str | Path) -> str:
        """Run a runbook that must refuse; returns what it said.

        Raises:
            OperationError: OPERATION_DRILL_FAILED where it did not.
        """
        status, said = self._start(name, arguments, None)
        if status != 1:
            raise OperationError("OPERATION_DRILL_FAILED", f"{name} was not refused ({status})", runbook=name)
        return said

    def ask(self, *arguments: str | Path) -> Any:
        """`appliance ... --json`, parsed.

        Raises:
            OperationError: OPERATION_DRILL_FAILED.
        """
        done = subprocess.run(
            [*_command(), *map(str, arguments), "--json"], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError:
            said = done.stderr.strip().splitlines()[-3:]
            raise OperationError(
                "OPERATION_DRILL_FAILED", f"appliance {arguments[0]} gave no report", said=said
            ) from None

    def _start(self, name: str, arguments: tuple[str | Path, ...], kill_after_s: float | None) -> tuple[int, str]:
        stated = ["--apply", "--prefix", str(self.ground.prefix)]
        process = subprocess.Popen(
            [str(self.scripts / name), *map(str, arguments), *stated],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            cwd=self.ground.directory, env=self._environment(), start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=LIMIT_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        return process.returncode, said

    def _environment(self) -> dict[str, str]:
        command = self.ground.directory / "appliance"
        if not command.exists():
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m appliance.cli.main "$@"\n')
            command.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
        return {**kept, "APPLIANCE": str(command), "SYSTEMCTL": "true"}  # no service is stopped or started


def _command() -> list[str]:
    return [sys.executable, "-m", "appliance.cli.main"]
