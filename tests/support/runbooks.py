"""Run the runbooks themselves, as an operator does, with the service manager recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
COMMAND = Path(sys.executable).with_name("appliance")


def runbooks() -> list[Path]:
    """Every runbook."""
    return [path for path in sorted(SCRIPTS.iterdir()) if path.is_file() and "lib/runbook.sh" in path.read_text()]


@dataclass
class Desk:
    """Where an operator types.

    Attributes:
        directory: holds the recorder and its log.
        prefix: the installation.
        act: shell text that the recorder runs with the service manager's arguments.
    """

    directory: Path
    prefix: Path
    act: str = ":"

    def __call__(self, name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a runbook."""
        recorder = self.directory / "systemctl"
        recorder.write_text(f'#!/bin/sh\necho "$@" >>{self.directory}/asked\n{self.act}\n')
        recorder.chmod(0o755)
        return subprocess.run(
            [str(SCRIPTS / name), *map(str, arguments), "--prefix", str(self.prefix)],
            capture_output=True, text=True, timeout=600, check=False, cwd=self.directory,
            env={**os.environ, "APPLIANCE": str(COMMAND), "SYSTEMCTL": str(recorder), **environment},
        )  # fmt: skip

    def done(self, name: str, *arguments: object, **environment: str) -> str:
        """Run it; it must succeed. Returns what it said."""
        run = self(name, *arguments, **environment)
        assert run.returncode == 0, f"{name}: {run.stdout}{run.stderr}"
        return run.stdout

    @property
    def asked(self) -> list[str]:
        """What the service manager was asked."""
        path = self.directory / "asked"
        return path.read_text().splitlines() if path.exists() else []
