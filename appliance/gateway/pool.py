"""Worker threads with a bounded queue and a hard deadline: work that cannot be done in time is not begun.

A timeout alone does not protect: under overload every request would wait its full deadline and the queue would still
grow. So a job is refused at once when the queue is full or when the measured service time says that it cannot finish
in time, and a job whose deadline passed while it waited is dropped unseen.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")
SMOOTHING = 0.1  # weight of the newest service time in the moving mean


class Overloaded(Exception):  # noqa: N818 (a condition, not an error)
    """The job was refused at once: it could not have been done in time."""


class DeadlineExceeded(Exception):  # noqa: N818
    """The job did not finish in time; its result will be thrown away."""


@dataclass
class _Job:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    expires: float
    abandoned: bool = field(default=False)


class Pool:
    """`threads` daemon threads behind a queue of at most `queue_length` jobs."""

    def __init__(
        self, *, threads: int, queue_length: int, name: str = "pool", clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._queue: queue.Queue[_Job | None] = queue.Queue(queue_length)
        self._clock = clock
        self._mean_service_s = 0.0
        self._busy = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[[], Result], *, deadline_s: float) -> Result:
        """Run `function` on a worker thread.

        Raises:
            Overloaded: at once, before anything is queued.
            DeadlineExceeded: after `deadline_s`.
        """
        if self.expected_wait_s() > deadline_s:
            raise Overloaded
        loop = asyncio.get_running_loop()
        job = _Job(function, loop, loop.create_future(), self._clock() + deadline_s)
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise Overloaded from None
        timer = loop.call_later(deadline_s, _expire, job.future)
        try:
            result: Result = await job.future
            return result
        finally:
            timer.cancel()
            job.abandoned = True

    def expected_wait_s(self) -> float:
        """Seconds a job put now is expected to wait before it is begun."""
        return (
            (self._queue.qsize() + max(0, self._busy - len(self._threads) + 1))
            * self._mean_service_s
            / len(self._threads)
        )

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._queue.qsize()

    @property
    def mean_service_ms(self) -> float:
        """Moving mean of the time a job takes, milliseconds."""
        return self._mean_service_s * 1000

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in self._threads:
            try:
                self._queue.put_nowait(None)
            except queue.Full:  # daemon threads end with the process
                return

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            started = self._clock()
            if job.abandoned or started >= job.expires:
                continue
            with self._lock:
                self._busy += 1
            outcome: Any = None
            failure: BaseException | None = None
            try:
                outcome = job.function()
            except Exception as error:  # noqa: BLE001 (handed to the caller)
                failure = error
            with self._lock:
                self._busy -= 1
                spent = self._clock() - started
                mean = self._mean_service_s
                self._mean_service_s = spent if mean == 0 else mean + SMOOTHING * (spent - mean)
            try:
                job.loop.call_soon_threadsafe(_deliver, job.future, outcome, failure)
            except RuntimeError:  # the loop has ended meanwhile
                return


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded())


def _deliver(future: asyncio.Future[Any], outcome: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(outcome)
