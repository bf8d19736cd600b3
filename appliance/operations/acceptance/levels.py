"""Memory, descriptors and threads of a process over time, and whether they stay where they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_S = 1.0
WARM_UP_S = 900.0  # caches, pools and the allocator's free lists fill, then the line must be flat (docs/benchmarks.md)
SHORT_WARM_UP = 0.3  # of the time of a process that lives less long: its slope is told and not judged
JUDGED_S = 300.0  # a slope over less is noise
MAX_SLOPE_MB_PER_HOUR = 30.0
CURVE_POINTS = 30
MAX_GROWTH = 16  # descriptors or threads, between the first third and the last of the steady time


@dataclass(frozen=True)
class Sample:
    """One look: seconds, the process, and what it holds."""

    at_s: float
    pid: int
    rss_bytes: int
    descriptors: int
    threads: int


@dataclass
class Levels:
    """Samples of the processes that served one after the other."""

    samples: list[Sample] = field(default_factory=list)

    def watch(self, pid: int, seconds: float) -> None:
        """Wait so long, and look meanwhile; no longer than the process lives."""
        end = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if not self.samples or now - self.samples[-1].at_s >= SAMPLE_S:
                try:
                    self.samples.append(look(pid, now))
                except ProcessLookupError:
                    return
            if now >= end:
                return
            time.sleep(min(SAMPLE_S, end - now))

    def processes(self) -> list[dict[str, Any]]:
        """What each process came to, in the order they served."""
        pids = list(dict.fromkeys(sample.pid for sample in self.samples))
        return [describe([sample for sample in self.samples if sample.pid == pid]) for pid in pids]

    def flat(self) -> bool:
        """Whether no process grew; a slope counts where the process lived long enough to have one."""
        return all(
            (each["slope_mb_per_hour"] <= MAX_SLOPE_MB_PER_HOUR or not each["slope_judged"])
            and each["descriptors_growth"] <= MAX_GROWTH
            and each["threads_growth"] <= MAX_GROWTH
            for each in self.processes()
        )


def look(pid: int, at_s: float) -> Sample:
    """What a process holds now.

    Raises:
        ProcessLookupError: it has ended.
    """
    folder = Path("/proc") / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        descriptors = len(list((folder / "fd").iterdir()))
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    if "VmRSS" not in status:  # it ended, and nobody has asked how
        raise ProcessLookupError(pid)
    return Sample(at_s, pid, int(status["VmRSS"].split()[0]) * 1024, descriptors, int(status["Threads"]))


def describe(samples: Sequence[Sample]) -> dict[str, Any]:
    """One process: its steady time, where it stood, how it grew."""
    lived_s = samples[-1].at_s - samples[0].at_s
    judged = lived_s >= WARM_UP_S + JUDGED_S
    warm_up_s = WARM_UP_S if judged else lived_s * SHORT_WARM_UP
    steady = [each for each in samples if each.at_s - samples[0].at_s >= warm_up_s]
    third = max(1, len(steady) // 3)
    first, last = steady[:third], steady[-third:]

    def growth(name: str) -> int:
        before, after = (statistics.median(int(getattr(each, name)) for each in part) for part in (first, last))
        return round(after - before)

    return {
        "seconds": round(lived_s),
        "rss_mb": round(statistics.median(each.rss_bytes for each in last) / 1e6, 1),
        "rss_mb_over_time": curve(samples),
        "slope_mb_per_hour": round(slope([(each.at_s, each.rss_bytes / 1e6) for each in steady]) * 3600, 1),
        "slope_judged": judged,
        "descriptors": last[-1].descriptors,
        "descriptors_growth": growth("descriptors"),
        "threads": last[-1].threads,
        "threads_growth": growth("threads"),
    }


def curve(samples: Sequence[Sample]) -> list[float]:
    """Memory from begin to end in MB: medians of up to thirty equal stretches."""
    stretch = -(-len(samples) // CURVE_POINTS)
    parts = (samples[at : at + stretch] for at in range(0, len(samples), stretch))
    return [round(statistics.median(each.rss_bytes for each in part) / 1e6, 1) for part in parts]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: units a second."""
    if len(points) < 2:
        return 0.0
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
