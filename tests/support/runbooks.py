"""Run the runbooks themselves, as an operator does, with the service manager recorded."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
COMMAND = Path(sys.executable).with_name("appliance")


# kills a runbook before the first command that begins with $KILLED_BEFORE; bash -p heeds no trap of its environment
_TRAP = """
if [ -n "${KILLED_BEFORE:-}" ]; then
    set -o functrace
    trap 'case $BASH_COMMAND in "$KILLED_BEFORE"*) kill -9 $$ ;; esac' DEBUG
fi
"""


def breakable_runbooks(folder: Path) -> Path:
    """Copies of the runbooks that can be killed at a command: see `Desk.killed`."""
    folder.mkdir()
    for path in runbooks():
        shutil.copy(path, folder)
    shutil.copytree(SCRIPTS / "lib", folder / "lib")
    shared = folder / "lib" / "runbook.sh"
    shared.write_text(shared.read_text() + _TRAP)
    return folder


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
        units: whether the service manager knows the appliance's units.
        scripts: folder of the runbooks.
        appliance: the command, instead of the installation's; empty for the installation's own.
    """

    directory: Path
    prefix: Path
    act: str = ":"
    units: bool = True
    scripts: Path = SCRIPTS
    appliance: str = str(COMMAND)

    def __call__(self, name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a runbook."""
        recorder = self.directory / "systemctl"
        units = "[ $1 != cat ] || exit 0" if self.units else "[ $1 != cat ] || exit 1"
        log = shlex.quote(f"{self.directory}/asked")
        recorder.write_text(f'#!/bin/sh\n{units}\necho "$@" >>{log}\n{self.act}\n')
        recorder.chmod(0o755)
        return subprocess.run(
            [str(self.scripts / name), *map(str, arguments), "--prefix", str(self.prefix)],
            capture_output=True, text=True, timeout=600, check=False, cwd=self.directory,
            env={**os.environ, "APPLIANCE": self.appliance, "SYSTEMCTL": str(recorder), **environment},
        )  # fmt: skip

    def done(self, name: str, *arguments: object, **environment: str) -> str:
        """Run it; it must succeed. Returns what it said."""
        run = self(name, *arguments, **environment)
        assert run.returncode == 0, f"{name}: {run.stdout}{run.stderr}"
        return run.stdout

    def killed(self, before: str, name: str, *arguments: object) -> None:
        """Run it, of `breakable_runbooks`, until the first command that begins with `before`."""
        run = self(name, *arguments, KILLED_BEFORE=before)
        assert run.returncode == -signal.SIGKILL, f"{before} was never met: {run.stdout}{run.stderr}"

    @property
    def asked(self) -> list[str]:
        """What the service manager was asked."""
        path = self.directory / "asked"
        return path.read_text().splitlines() if path.exists() else []
