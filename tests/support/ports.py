"""Ports for servers that are told theirs before they bind it."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

FIRST = 10_240
_reserved: list[socket.socket] = []


def free_port() -> int:
    """A loopback port that nobody else is given while this process lives.

    A port from the kernel (bind to 0, then close) lies in the range from which every outgoing connection takes its own:
    until a server has booted it may be somebody else's. These lie below that range, and whoever asks here, in whichever
    process, reserves the number by a socket name in the same network namespace.
    """
    for port in _candidates():
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0appliance-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        _reserved.append(reservation)
        return port
    raise AssertionError("no port is free")


def _candidates() -> Iterator[int]:
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    numbers = range(FIRST, end) if end > FIRST + 1000 else range(FIRST, 65_536)
    start = os.getpid() * 37 % len(numbers)
    return itertools.chain(numbers[start:], numbers[:start])
