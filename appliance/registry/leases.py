"""Who may fetch now: at most K hosts at once, so that a new router does not bring fifty hosts down on the registry.

Within a host, `Cache` lets one process fetch a file (flock). Across hosts, a lease service gives out K slots. A lease
only ever limits load: what is fetched is checked by digest and written once, so that losing a lease, or having two
holders of one, costs bandwidth and nothing else. Hence the rule for a dead service: wait a random while and go on.
"""

from __future__ import annotations

import random
import threading
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
        answer_s: for one try; a service that accepts and then says nothing, or very little, is dead as well.
    """

    wait_s: float = 300.0
    poll_s: float = 0.5
    jitter_s: float = 5.0
    answer_s: float = 30.0


@contextmanager
def as_lease_errors(host: str) -> Iterator[None]:
    """Turn every fault of a lease service into one that the fetch goes on from.

    Args:
        host: of the service, for the message.

    Raises:
        RegistryError: REGISTRY_LEASES.
    """
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise RegistryError("REGISTRY_LEASES", words, host=host) from error


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
        asked = time.monotonic()
        try:
            lease = _ask(slots, held, patience.answer_s)
        except RegistryError as error:
            report(error)
            sleep(uniform(0.0, patience.jitter_s))
            return Lease(-1, 0)
        if lease is not None:
            return lease
        pause = uniform(0.5, 1.5) * patience.poll_s
        waited += pause + time.monotonic() - asked
        sleep(pause)
    return Lease(-1, 0)


def _ask(slots: Slots, held: ExitStack, seconds: float) -> Lease | None:
    """One try in bounded time: what waits for the service is a thread that can be left behind.

    Raises:
        RegistryError: REGISTRY_LEASES.
    """
    own, turn, left_behind = ExitStack(), threading.Lock(), False
    answer: list[Lease | None] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            answer.append(slots.try_hold(own))
        except Exception as error:  # noqa: BLE001 (raised again below)
            failure.append(error)
        with turn:
            late = left_behind
        if late:
            own.close()  # nobody waits for this slot any more

    _bounded(ask, seconds)
    with turn:
        if failure:
            raise failure[0]
        if not answer:
            left_behind = True
            raise RegistryError("REGISTRY_LEASES", f"no answer within {seconds:g} s")
    held.callback(_bounded, own.close, seconds)
    return answer[0]


def _bounded(act: Callable[[], None], seconds: float) -> None:
    worker = threading.Thread(target=act, daemon=True, name="registry-lease")
    worker.start()
    worker.join(seconds)
