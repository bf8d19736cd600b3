"""Who may fetch now: at most K hosts at once, so that a new router does not bring fifty hosts down on the registry.

Within a host, `Cache` lets one process fetch a file (flock). Across hosts, a lease service gives out K slots. A lease
only ever limits load: what is fetched is checked by digest and written once, so that losing a lease, or having two
holders of one, costs bandwidth and nothing else. Hence the rule for a dead service: wait a random while and go on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from appliance.errors import RegistryError


@dataclass(frozen=True)
class Lease:
    """A slot that is held.

    Attributes:
        slot: its number, 0 to K-1; -1 where the service was dead or the wait too long.
        fence: rises with every lease given; a later holder has a greater one. 0 where the service has none.
    """

    slot: int
    fence: int


class Slots(Protocol):
    """A service of K slots."""

    def try_hold(self, held: ExitStack) -> Lease | None:
        """Take a free slot and enter its release into `held`; None where all are taken.

        Raises:
            RegistryError: REGISTRY_LEASES where the service does not answer.
        """


@dataclass(frozen=True)
class Patience:
    """How long to wait.

    Attributes:
        wait_s: for a slot; then go on without.
        poll_s: between two tries, with jitter.
        jitter_s: a random wait of up to this where the service is dead.
    """

    wait_s: float = 300.0
    poll_s: float = 0.5
    jitter_s: float = 5.0


def fetch_slot(
    slots: Slots,
    *,
    patience: Patience | None = None,
    report: Callable[[RegistryError], None] = lambda _error: None,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Callable[[str], AbstractContextManager[Lease]]:
    """What `Cache` calls before a fetch.

    Args:
        slots: the service.
        patience: how long to wait.
        report: told of a dead service.
        sleep, uniform: for tests.
    """
    bounds = patience or Patience()

    @contextmanager
    def hold(_digest: str) -> Iterator[Lease]:
        with ExitStack() as held:
            yield _acquire(slots, held, bounds, report, sleep, uniform)

    return hold


def _acquire(
    slots: Slots,
    held: ExitStack,
    patience: Patience,
    report: Callable[[RegistryError], None],
    sleep: Callable[[float], None],
    uniform: Callable[[float, float], float],
) -> Lease:
    waited = 0.0
    while waited < patience.wait_s:
        try:
            lease = slots.try_hold(held)
        except RegistryError as error:
            report(error)
            sleep(uniform(0.0, patience.jitter_s))
            return Lease(-1, 0)
        if lease is not None:
            return lease
        pause = uniform(0.5, 1.5) * patience.poll_s
        sleep(pause)
        waited += pause
    return Lease(-1, 0)
