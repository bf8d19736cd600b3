"""A stand-in service manager: it holds the listener as systemd does, and starts the release that `current` names."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from appliance.bundle.releases import installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.errors import OperationError

STOP_LIMIT_S = 40.0
COMMAND_LIMIT_S = 900.0
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # as the unit's
HAND_OVER = (  # sd_listen_fds(3): the socket is descriptor 3 of the very process that is named
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class Manager:
    """Runs one gateway out of a prefix of its own.

    Args:
        directory: an empty folder; its prefix is made below it.
        installed: prefix whose releases are copied, so that an upgrade and its way back touch nobody's installation.

    Attributes:
        prefix: of the run.
        log: what the gateways said.
        served: the release of each gateway that was started; None where none is installed.
    """

    def __init__(self, directory: Path, installed: Path) -> None:
        self._directory = directory
        self.prefix = Prefix(directory / "prefix")
        self.prefix.create()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / "gateway.log"
        self.served: list[str | None] = []
        for release in installed_releases(Prefix(installed)):
            shutil.copytree(Prefix(installed).release(release.id), self.prefix.release(release.id), symlinks=True)
            self.prefix.point_to(release.id, reason="acceptance", now=datetime.now(UTC))
        if (installed / "state" / "trust").is_dir():
            shutil.copytree(installed / "state" / "trust", self.prefix.state / "trust", symlinks=True)

    @property
    def port(self) -> int:
        """Of the listener."""
        return int(self._listener.getsockname()[1])

    @property
    def pid(self) -> int:
        """Of the gateway."""
        assert self._process is not None  # noqa: S101 (asked between start and stop)
        return self._process.pid

    @property
    def releases(self) -> list[str]:
        """What is installed in the run's own prefix, oldest first."""
        return [release.id for release in installed_releases(self.prefix)]

    def ended(self) -> str | None:
        """How the gateway ended, and the last it said; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        status = self._process.returncode
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with {status}"
        said = self.log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        return f"the gateway ended {how}; its last words: {said[0][:300] if said else 'none'}"

    def start(self, config: Path) -> None:
        """Start the gateway of the current release; its listener waits already."""
        self.served.append(self.prefix.active())
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, str(self._listener.fileno()), *self._command(),
                 "serve", "--config", str(config)],
                pass_fds=[self._listener.fileno()], stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **ENVIRONMENT}, cwd=self._directory,
            )  # fmt: skip

    def reload(self) -> None:
        """As `systemctl reload`."""
        os.kill(self.pid, signal.SIGHUP)

    def stop(self) -> None:
        """As `systemctl stop`: the gateway drains."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def close(self) -> None:
        """Stop, and let the listener go."""
        with contextlib.suppress(ProcessLookupError):
            self.stop()
        self._listener.close()

    def install(self, media: Path) -> None:
        """`appliance install` by the release that runs.

        Raises:
            OperationError: OPERATION_ACCEPTANCE_SETUP.
        """
        self._run("install", str(media.absolute()), "--prefix", str(self.prefix.root))

    def rollback(self, to: str | None = None) -> None:
        """`appliance rollback`; `to` names a release.

        Raises:
            OperationError: OPERATION_ACCEPTANCE_SETUP.
        """
        self._run("rollback", "--prefix", str(self.prefix.root), *(("--to", to) if to else ()))

    def _command(self) -> list[str]:
        """The program of the current release; where none is installed, the one that runs here."""
        active = self.prefix.active()
        python = self.prefix.environment(active) / "bin" / "python" if active else Path(sys.executable)
        return [str(python), "-m", "appliance.cli.main"]

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command(), *arguments], capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False,
            cwd=self._directory,
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise OperationError("OPERATION_ACCEPTANCE_SETUP", f"appliance {arguments[0]} was refused", said=said)
