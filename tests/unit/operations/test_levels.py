"""What the endurance run reads from its samples."""

import os
import subprocess
import sys

import pytest

from appliance.operations.acceptance.levels import (
    CURVE_POINTS,
    JUDGED_S,
    WARM_UP_S,
    Levels,
    Sample,
    describe,
    look,
    slope,
)


def samples(seconds: int, *, rss_mb_per_s: float = 0.0, descriptors_per_s: float = 0.0, pid: int = 1) -> list[Sample]:
    return [
        Sample(float(at), pid, int((400 + rss_mb_per_s * at) * 1e6), int(30 + descriptors_per_s * at), 9)
        for at in range(seconds)
    ]


def test_a_slope_is_the_least_squares_line():
    assert slope([(0, 100), (10, 110), (20, 120)]) == pytest.approx(1)
    assert slope([(0, 100), (10, 100)]) == 0
    assert slope([(0, 100)]) == 0


def test_a_process_that_stays_where_it_is_is_flat():
    assert Levels(samples(1000)).flat()


def test_memory_that_grows_is_told_in_megabytes_an_hour():
    levels = Levels(samples(1300, rss_mb_per_s=0.02))
    assert levels.processes()[0]["slope_mb_per_hour"] == pytest.approx(72, abs=0.1)
    assert not levels.flat()


def test_a_short_line_has_no_slope_that_counts():
    levels = Levels(samples(int(WARM_UP_S + JUDGED_S), rss_mb_per_s=0.02))
    assert levels.processes()[0]["slope_mb_per_hour"] == pytest.approx(72, abs=0.1)
    assert not levels.processes()[0]["slope_judged"]
    assert levels.flat()


def test_the_curve_runs_from_begin_to_end_in_a_few_points():
    curve = describe(samples(1000, rss_mb_per_s=0.1))["rss_mb_over_time"]
    assert len(curve) <= CURVE_POINTS
    assert curve[0] == pytest.approx(400, abs=4)
    assert curve[-1] == pytest.approx(500, abs=4)
    assert describe(samples(3))["rss_mb_over_time"] == [400, 400, 400]


def test_leaked_descriptors_count_however_short_the_run():
    assert not Levels(samples(100, descriptors_per_s=0.5)).flat()


def test_what_fills_while_warming_up_is_no_growth():
    warming = [Sample(float(at), 1, int(min(at, 20) * 1e7), 30 + min(at, 20), 9) for at in range(100)]
    assert describe(warming)["descriptors_growth"] == 0
    assert describe(warming)["slope_mb_per_hour"] == 0


def test_caches_may_fill_for_a_quarter_of_an_hour_and_no_longer():
    def filling(until_s: float) -> Levels:
        return Levels([Sample(float(at), 1, int((400 + 0.05 * min(at, until_s)) * 1e6), 30, 9) for at in range(2400)])

    assert filling(WARM_UP_S).processes()[0]["slope_judged"]
    assert filling(WARM_UP_S).flat()
    assert not filling(2 * WARM_UP_S).flat()


def test_every_process_is_judged_on_its_own():
    levels = Levels([*samples(100, pid=1), *samples(100, pid=2)])
    assert [each["seconds"] for each in levels.processes()] == [99, 99]


def test_a_process_that_has_ended_has_no_levels_and_is_not_waited_for():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
    with pytest.raises(ProcessLookupError):
        look(gone.pid, 0.0)
    gone.wait()
    with pytest.raises(ProcessLookupError):
        look(gone.pid, 0.0)
    levels = Levels()
    levels.watch(gone.pid, 3600.0)
    assert not levels.samples


def test_a_look_at_this_very_process():
    seen = look(os.getpid(), 0.0)
    assert seen.rss_bytes > 10e6
    assert seen.threads >= 1
    assert seen.descriptors >= 3
