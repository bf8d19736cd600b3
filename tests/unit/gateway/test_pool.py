"""The bounded pool: in time, or not at all."""

import asyncio
import threading
import time

import pytest

from appliance.gateway.pool import DeadlineExceeded, Overloaded, Pool

HANGS_S = 120  # nobody waits that long, however slow the machine


@pytest.fixture
def pool():
    made = Pool(threads=1, queue_length=2)
    yield made
    made.close()


def test_a_result_comes_back_from_a_worker_thread(pool):
    assert asyncio.run(pool.run(lambda: threading.current_thread().name, deadline_s=HANGS_S)).startswith("pool-")


def test_an_exception_comes_back_as_it_was(pool):
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pool.run(lambda: 1 / 0, deadline_s=HANGS_S))


def test_the_deadline_ends_the_wait_though_the_thread_works_on(pool):
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(HANGS_S)
        ended.set()

    async def ask() -> None:
        while not begun.is_set():  # a thread that did not come to it in time never begins
            with pytest.raises(DeadlineExceeded):
                await pool.run(work, deadline_s=0.3)

    try:
        asyncio.run(ask())
        assert not ended.is_set()
    finally:
        release.set()


def test_a_full_queue_refuses_at_once(pool):
    release = threading.Event()

    async def ask() -> None:
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def work() -> bool:
            loop.call_soon_threadsafe(begun.set)
            return release.wait(HANGS_S)

        waiting = [asyncio.ensure_future(pool.run(work, deadline_s=HANGS_S))]
        await begun.wait()  # one runs; two more wait
        waiting += [asyncio.ensure_future(pool.run(work, deadline_s=HANGS_S)) for _ in range(2)]
        await asyncio.sleep(0)
        assert pool.waiting == 2
        with pytest.raises(Overloaded):
            await pool.run(lambda: 1, deadline_s=HANGS_S)
        assert not any(each.done() for each in waiting), "nobody was waited for"
        release.set()
        assert await asyncio.gather(*waiting) == [True] * 3

    asyncio.run(ask())


def test_a_job_that_cannot_be_in_time_is_refused_before_it_waits():
    pool = Pool(threads=1, queue_length=100)

    async def ask() -> None:
        await pool.run(lambda: time.sleep(0.1), deadline_s=HANGS_S)  # it learns what a job takes
        release = threading.Event()
        waiting = [asyncio.ensure_future(pool.run(release.wait, deadline_s=HANGS_S)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.run(lambda: 1, deadline_s=0.05)
        release.set()
        await asyncio.gather(*waiting)
        assert await pool.run(lambda: 1, deadline_s=HANGS_S) == 1

    asyncio.run(ask())
    pool.close()


def drained(pool: Pool) -> None:
    while pool.waiting:
        time.sleep(0.001)


def test_a_job_whose_asker_has_gone_is_never_begun(pool):
    release, begun = threading.Event(), []

    async def ask() -> None:
        busy, loop = asyncio.Event(), asyncio.get_running_loop()

        def work() -> None:
            loop.call_soon_threadsafe(busy.set)
            release.wait(HANGS_S)

        first = asyncio.ensure_future(pool.run(work, deadline_s=HANGS_S))
        await busy.wait()  # the queue, two places long, is empty
        gone = asyncio.ensure_future(pool.run(lambda: begun.append("gone"), deadline_s=HANGS_S))
        late = asyncio.ensure_future(pool.run(lambda: begun.append("late"), deadline_s=0.02))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        release.set()
        await first
        await asyncio.to_thread(drained, pool)  # both places are still taken by what is passed over
        await pool.run(lambda: begun.append("after"), deadline_s=HANGS_S)

    asyncio.run(ask())
    assert begun == ["after"]


def test_two_times_the_load_is_half_served_and_half_shed_and_nobody_waits_beyond_the_deadline():
    pool = Pool(threads=1, queue_length=8)
    served, shed, longest = [], [], []

    async def one() -> None:
        started = time.perf_counter()
        try:
            served.append(await pool.run(lambda: time.sleep(0.02), deadline_s=0.3))
        except (Overloaded, DeadlineExceeded) as error:
            shed.append(type(error).__name__)
        longest.append(time.perf_counter() - started)

    async def load() -> None:
        tasks: list[asyncio.Future[None]] = []
        begun = time.perf_counter()
        while len(tasks) < 100:  # one every 10 ms, each takes 20; who is late makes up for it, ten at a time
            due = min(100, 1 + int((time.perf_counter() - begun) / 0.01)) - len(tasks)
            tasks += [asyncio.ensure_future(one()) for _ in range(min(due, 10))]
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)

    asyncio.run(load())
    assert len(served) + len(shed) == 100
    assert len(served) >= 15, "goodput survives the overload"
    assert shed, "the rest is shed"
    assert max(longest) < 10, "the deadline and what the machine adds"
    pool.close()
