"""Endurance: mixed traffic with reloads, corruption and flapping model servers; memory, descriptors, threads."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.operations.acceptance.bench import Bench
from appliance.operations.acceptance.checks import Result

SAMPLE_S = 1.0
WARM_UP = 0.3  # of the run: caches and pools fill, then the line must be flat
MAX_SLOPE_MB_PER_HOUR = 60.0
MAX_GROWTH = 8  # descriptors or threads beyond the level after the warm-up


def endurance(bench: Bench, seconds: float) -> Result:
    """Run for so long; judge memory's slope only where the run is long enough to have one (five minutes)."""
    files = {path.name: path.read_bytes() for path in bench.router.iterdir()}
    victim = max(files, key=lambda name: (name != "router.yaml", len(files[name])))
    names = list(bench.upstreams)
    samples: list[tuple[float, int, int, int]] = []
    begun = time.monotonic()
    turn = 0
    with bench.load(clients=3) as answers:
        while (elapsed := time.monotonic() - begun) < seconds:
            samples.append((elapsed, *_process(bench.process.pid)))
            match turn % 6:
                case 1:
                    bench.report("/appliance/reload", "POST")
                case 2:
                    (bench.router / victim).write_bytes(files[victim][:-1])
                case 3:
                    (bench.router / victim).write_bytes(files[victim])
                case 4:
                    bench.upstreams[names[turn // 6 % len(names)]].stop()
                case 5:
                    bench.upstreams[names[turn // 6 % len(names)]].start()
            turn += 1
            time.sleep(SAMPLE_S)
        (bench.router / victim).write_bytes(files[victim])
        if turn % 6 == 5:
            bench.upstreams[names[turn // 6 % len(names)]].start()
    failed = sum(answer.status != 200 for answer in answers)
    steady = [sample for sample in samples if sample[0] >= seconds * WARM_UP]
    slope = _slope([(at, rss / 1e6) for at, rss, _, _ in steady]) * 3600
    descriptors = steady[-1][2] - steady[0][2]
    threads = steady[-1][3] - steady[0][3]
    flat = slope <= MAX_SLOPE_MB_PER_HOUR or seconds < 300
    return Result(
        "endurance",
        "no request fails while one model server lives; memory, descriptors and threads do not grow",
        not failed and flat and descriptors <= MAX_GROWTH and threads <= MAX_GROWTH,
        {
            "seconds": round(time.monotonic() - begun), "requests": len(answers), "failed": failed,
            "disturbances": turn,
            "rss_mb": round(steady[-1][1] / 1e6, 1), "slope_mb_per_hour": round(slope, 1),
            "descriptors_growth": descriptors, "threads_growth": threads, "slope_judged": seconds >= 300,
        },
    )  # fmt: skip


def _process(pid: int) -> tuple[int, int, int]:
    """Resident bytes, open descriptors, threads."""
    folder = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return int(status["VmRSS"].split()[0]) * 1024, len(list((folder / "fd").iterdir())), int(status["Threads"])


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares: units a second."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
