"""Several workers behind one listener: start, restart, stop, reload.

Workers are forked before LiteLLM is imported, share the listening socket, and end with their supervisor. A worker that
dies is started again after a pause that grows; one that is refused at its start (exit 1) ends them all, because the
next would be refused alike.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

from appliance.errors import ApplianceError

log = logging.getLogger("appliance.supervisor")

REFUSED = 1
STABLE_S = 60.0  # a worker that lived so long starts its pause again from the shortest
PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """Keeps `count` workers running.

    Args:
        count: of workers.
        run_worker: serves as worker number n on the listener until stopped; called in the child.
        report: writes a refusal for a person.
    """

    def __init__(
        self, count: int, run_worker: Callable[[int, socket.socket], None], report: Callable[[ApplianceError], None]
    ) -> None:
        self._count, self._run_worker, self._report = count, run_worker, report
        self._children: dict[int, tuple[int, float]] = {}  # pid -> (number, started)
        self._failures = [0] * count
        self._due: dict[int, float] = {}  # number -> when to start it again
        self._stopping = False
        self._listener: socket.socket | None = None

    def run(self, listener: socket.socket) -> int:
        """Serve until stopped. Returns the exit status."""
        self._listener = listener
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._stop)
        signal.signal(signal.SIGHUP, lambda sig, _: self._signal_all(sig))
        for number in range(self._count):
            self._start(number)
        status = 0
        while self._children or (self._due and not self._stopping):
            status = max(status, self._reap())
            now = time.monotonic()
            for number in [n for n, when in self._due.items() if when <= now and not self._stopping]:
                del self._due[number]
                self._start(number)
            time.sleep(0.05)
        return status

    def _start(self, number: int) -> None:
        assert self._listener is not None  # noqa: S101 (set by `run`)
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._children[pid] = (number, time.monotonic())
            return
        status = REFUSED
        try:
            for sig in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sig, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker's loop takes it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:  # it died before the call above
                os._exit(0)
            self._run_worker(number, self._listener)
            status = 0
        except ApplianceError as error:
            self._report(error)
        except BaseException:
            log.exception("worker %d ended", number)
            status = 2
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> int:
        """Collect ended workers; plan restarts. Returns the worst exit status that counts."""
        worst = 0
        while self._children:
            pid, raw = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            number, started = self._children.pop(pid)
            status = os.waitstatus_to_exitcode(raw)
            if self._stopping:
                continue
            if status == REFUSED and time.monotonic() - started < STABLE_S:
                worst = REFUSED
                self._stop(signal.SIGTERM, None)
                continue
            self._failures[number] = 0 if time.monotonic() - started > STABLE_S else self._failures[number] + 1
            pause = PAUSES_S[min(self._failures[number], len(PAUSES_S)) - 1] if self._failures[number] else 0.0
            log.warning("worker ended", extra={"worker": number, "pid": pid, "status": status, "restart_in_s": pause})
            self._due[number] = time.monotonic() + pause
        return worst

    def _stop(self, sig: int, _: object) -> None:
        self._stopping = True
        if self._listener is not None:
            self._listener.close()  # the workers' copies keep listening until they have drained
        self._signal_all(sig)

    def _signal_all(self, sig: int) -> None:
        for pid in list(self._children):
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                continue
