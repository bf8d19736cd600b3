"""Deployment C is where A and B run: a sealed room with nothing but loopback, whose kernel counts what would leave."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from scripts.demo import sealed_room

CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module", autouse=True)
def sealed() -> Iterator[bool]:
    """Every server, sidecar, gateway and client of the module lives in a network namespace of its own.

    Yields whether that is so: who may not make namespaces is walled in by the gateways' own guard alone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            yield False
            return
        sealed_room.raise_loopback()
        assert sealed_room.interfaces() == ["lo"]
        yield True
        assert libc.setns(outside, CLONE_NEWNET) == 0
    finally:
        os.close(outside)


@pytest.fixture
def packets_that_left(sealed: bool) -> int:
    """So many tried until now, by the kernel's count; the counter is shown to count."""
    if not sealed:
        return 0
    counted = sealed_room.attempts()
    assert sealed_room.prove_counter(), "the kernel did not count a deliberate attempt"
    return counted
