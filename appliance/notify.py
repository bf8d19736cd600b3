"""How we speak with the service manager, without its library.

We tell it how we are: readiness, a sign of life, the end (sd_notify(3)). It hands over the listening sockets that it
keeps while we are restarted (sd_listen_fds(3)).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping

FIRST_HANDED = 3  # SD_LISTEN_FDS_START


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send a state such as `READY=1`, `WATCHDOG=1`, `STOPPING=1` or `STATUS=text` to the service manager.

    Args:
        state: assignments, one a line.
        environment: holds `NOTIFY_SOCKET` where a manager listens.

    Returns:
        Whether a manager was told; never raises, because nobody's request may fail for it.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)  # a manager that does not read must not stop the event loop
            channel.connect("\0" + address[1:] if address[0] == "@" else address)
            channel.send(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval_s(environment: Mapping[str, str] = os.environ, *, pid: int | None = None) -> float | None:
    """How often to send `WATCHDOG=1`: half of the manager's patience, in seconds; None where nobody waits for it."""
    wanted_pid = environment.get("WATCHDOG_PID", "")
    if wanted_pid and wanted_pid != str(os.getpid() if pid is None else pid):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 2_000_000


def handed_sockets(
    environment: MutableMapping[str, str] = os.environ, *, pid: int | None = None
) -> list[socket.socket]:
    """The sockets that the service manager opened for this process; each is handed over once.

    Returns:
        Not inheritable sockets, in the order of the unit; empty where none are meant for this process.
    """
    wanted, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if wanted != str(os.getpid() if pid is None else pid) or not count.isdecimal():
        return []
    found = [socket.socket(fileno=number) for number in range(FIRST_HANDED, FIRST_HANDED + int(count))]
    for each in found:
        each.set_inheritable(False)
    return found
