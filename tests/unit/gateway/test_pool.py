"""The bounded pool: in time, or not at all."""

import asyncio
import threading
import time

import pytest

from appliance.gateway.pool import DeadlineExceeded, Overloaded, Pool


@pytest.fixture
def pool():
    made = Pool(threads=1, queue_length=2)
    yield made
    made.close()


def test_a_result_comes_back_from_a_worker_thread(pool):
    assert asyncio.run(pool.run(lambda: threading.current_thread().name, deadline_s=1)).startswith("pool-")


def test_an_exception_comes_back_as_it_was(pool):
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pool.run(lambda: 1 / 0, deadline_s=1))


def test_the_deadline_ends_the_wait_though_the_thread_works_on(pool):
    release = threading.Event()

    async def ask() -> float:
        started = time.perf_counter()
        with pytest.raises(DeadlineExceeded):
            await pool.run(lambda: release.wait(5), deadline_s=0.05)
        return time.perf_counter() - started

    try:
        assert 0.04 < asyncio.run(ask()) < 1
    finally:
        release.set()


def test_a_full_queue_refuses_at_once(pool):
    release = threading.Event()

    async def ask() -> None:
        waiting = [asyncio.ensure_future(pool.run(release.wait, deadline_s=5))]
        await asyncio.sleep(0.1)  # it runs; two more wait
        waiting += [asyncio.ensure_future(pool.run(release.wait, deadline_s=5)) for _ in range(2)]
        await asyncio.sleep(0.01)
        started = time.perf_counter()
        with pytest.raises(Overloaded):
            await pool.run(lambda: 1, deadline_s=5)
        assert time.perf_counter() - started < 0.05
        release.set()
        assert await asyncio.gather(*waiting) == [True] * 3

    asyncio.run(ask())


def test_a_job_that_cannot_be_in_time_is_refused_before_it_waits():
    pool = Pool(threads=1, queue_length=100)

    async def ask() -> None:
        await pool.run(lambda: time.sleep(0.1), deadline_s=5)  # it learns what a job takes
        waiting = [asyncio.ensure_future(pool.run(lambda: time.sleep(0.1), deadline_s=5)) for _ in range(3)]
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded):
            await pool.run(lambda: 1, deadline_s=0.05)
        await asyncio.gather(*waiting)
        assert await pool.run(lambda: 1, deadline_s=5) == 1

    asyncio.run(ask())
    pool.close()


def test_a_job_whose_asker_has_gone_is_never_begun(pool):
    release, begun = threading.Event(), []

    async def ask() -> None:
        first = asyncio.ensure_future(pool.run(release.wait, deadline_s=5))
        await asyncio.sleep(0.02)
        gone = asyncio.ensure_future(pool.run(lambda: begun.append("gone"), deadline_s=5))
        late = asyncio.ensure_future(pool.run(lambda: begun.append("late"), deadline_s=0.02))
        await asyncio.sleep(0.01)
        gone.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        release.set()
        await first
        await pool.run(lambda: begun.append("after"), deadline_s=5)

    asyncio.run(ask())
    assert begun == ["after"]


def test_two_times_the_load_is_half_served_and_half_shed_and_nobody_waits_beyond_the_deadline():
    pool = Pool(threads=1, queue_length=8)
    served, shed, longest = [], [], []

    async def one() -> None:
        started = time.perf_counter()
        try:
            served.append(await pool.run(lambda: time.sleep(0.01), deadline_s=0.05))
        except (Overloaded, DeadlineExceeded) as error:
            shed.append(type(error).__name__)
        longest.append(time.perf_counter() - started)

    async def load() -> None:
        tasks = []
        for _ in range(100):  # one every 5 ms, each takes 10
            tasks.append(asyncio.ensure_future(one()))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)

    asyncio.run(load())
    assert len(served) + len(shed) == 100
    assert len(served) >= 15, "goodput survives the overload"
    assert shed, "the rest is shed"
    assert max(longest) < 0.5
    pool.close()
