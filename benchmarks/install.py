"""Offline installation against its peers, measured side by side in one run.

    python benchmarks/install.py [--wheelhouse DIR] [--out FILE] [--profile NAME] [--rounds N] [--settle SECONDS]

Each is a command of its own, from the same wheels into a fresh folder on the same file system, timed from its start to
its end (wall clock, and processor time of it and its children, which a busy machine disturbs less):

- `appliance install`, the whole: signature, every digest, environment, every digest again from the disk, health check
  (the proxy imported for the first time, which compiles what it imports), activation, and one more look in place
- `pip install --no-index --find-links` with hashes required: it unpacks the wheels and compiles all of them
- `uv pip install` with the same options and an empty cache: it unpacks the wheels and compiles nothing

pip and uv end where the step `environment` ends: neither knows who made the wheels, tries whether they work, or
switches anything. So the whole is compared, and beside it that step alone, which is the same job.

With several rounds the three take turns and medians count. Before each everything is written to the disk, so that
nobody waits for another's files; `--settle` rests as well, for file systems that are slow to make files where many were
deleted within the last minute (ext4 without a journal).

Also: build of the release, verification of the media, the strict reader's rate, and a delta's size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.bundle.delta import build_delta
from appliance.bundle.install import install, verify_media
from appliance.bundle.inventory import Inventory, take_inventory
from appliance.bundle.recipe import Recipe, build_release
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from appliance.trust.ceremony import create_authority
from appliance.trust.profiles import read_recipes
from appliance.trust.signing import open_signer

GOAL = 0.25  # of pip's time
TARGET = "cp311-manylinux_x86_64"
BASE_PYTHON = getattr(sys, "_base_executable", sys.executable)
UPGRADES = {  # what an upgrade changes -> how the names of its files begin
    "the appliance": ("wheels/llm_routing_appliance-", "requirements.txt", "evidence/"),
    "LiteLLM as well": ("wheels/llm_routing_appliance-", "requirements.txt", "evidence/", "wheels/litellm", "locks/"),
}
APPLIANCE = [sys.executable, "-c", "from appliance.cli.main import main; main()"]


@dataclass(frozen=True)
class Took:
    """Wall-clock and processor seconds."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.cpu:.1f} cpu)"


def measured(action: Callable[[], object]) -> Took:
    begun, before = time.perf_counter(), _cpu()
    action()
    return Took(time.perf_counter() - begun, _cpu() - before)


def _median(found: list[Took]) -> Took:
    return sorted(found, key=lambda took: took.wall)[len(found) // 2]


def _cpu() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def run(*command: str, **variables: str) -> None:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheelhouse", type=Path, default=Path("vendor/wheelhouse") / TARGET)
    parser.add_argument("--profile", default="gateway")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/install.json"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--settle", type=float, default=0.0, help="seconds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the clearing away
    options.out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="install-", dir=options.out.parent))
    try:
        report = benchmark(work.absolute(), options.wheelhouse, options.profile, options.rounds, options.settle)
    finally:
        shutil.rmtree(work)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"{name:34} {value}")
    for name in ("whole install / pip", "environment / pip"):
        print(f"goal of {GOAL} for {name}: {'reached' if report[name] <= GOAL else 'MISSED'}")


def benchmark(work: Path, wheelhouse: Path, profile: str, rounds: int, settle_s: float) -> dict[str, Any]:
    now = datetime.now(UTC)
    create_authority(work / "ca", read_recipes(Path("ca")), development=True, now=now)
    anchor = (work / "ca" / "anchor.json").read_bytes()
    recipe = Recipe(profile, TARGET, work / "ca", now, wheelhouse=wheelhouse)
    building = measured(lambda: build_release(recipe, work / "one"))
    again = build_release(Recipe(profile, TARGET, work / "ca", now, wheelhouse=wheelhouse, epoch=2), work / "two")
    verifying = measured(lambda: verify_media([work / "one"], anchor, now=datetime.now(UTC)))
    steps = _steps(work, anchor)
    payload = work / "steps" / "current" / "payload"

    def settled(action: Callable[[], object]) -> Took:
        os.sync()
        time.sleep(settle_s)
        return measured(action)

    def peer(name: str, *command: str, **variables: str) -> Took:
        shutil.rmtree(work / name, ignore_errors=True)
        run(BASE_PYTHON, "-m", "venv", str(work / name))
        python = str(work / name / "bin" / "python")
        wheels = ["--no-index", "--find-links", str(payload / "wheels"), "--no-deps", "--require-hashes"]
        given = [*wheels, "-r", str(payload / "requirements.txt")]
        return settled(lambda: run(*(part.format(python=python) for part in command), *given, **variables))

    def ours() -> None:
        trust = ["--trust", str(work / "ca" / "anchor.json")]
        run(*APPLIANCE, "install", str(work / "one"), "--prefix", str(work / "prefix"), *trust)

    loads = [os.getloadavg()[0]]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"
    cache = work / "uv-cache"
    took: dict[str, list[Took]] = {"whole": [], "uv": [], "pip": []}
    for _ in range(rounds):
        for folder in (work / "prefix", cache):
            shutil.rmtree(folder, ignore_errors=True)
        took["whole"].append(settled(ours))
        took["uv"].append(
            peer("uv", uv, "pip", "install", "--quiet", "--python", "{python}", "--offline", UV_CACHE_DIR=str(cache))
        )
        took["pip"].append(peer("pip", "{python}", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"))
    whole, with_uv, with_pip = (_median(each) for each in took.values())
    loads.append(os.getloadavg()[0])

    inventory = take_inventory(Prefix(work / "steps"), now=now)
    deltas = {
        name: _delta_bytes(work, inventory, again.built.path, anchor, changed) for name, changed in UPGRADES.items()
    }
    payload_mb = again.built.manifest.payload_bytes / 1e6
    environment = steps["environment"]
    return {
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "load average before and after": [round(load, 1) for load in loads],
        "profile": profile,
        "wheels": sum(member.path.endswith(".whl") for member in again.built.manifest.members),
        "payload MB": round(payload_mb),
        "build s": str(building),
        "verify s": str(verifying),
        "verify MB/s": round(payload_mb / verifying.wall),
        "extract MB/s": round(payload_mb / steps["extract"].wall),
        "rounds": [str(each) for each in took["whole"]] if rounds > 1 else 1,
        "install s": str(whole),
        **{f"  {name} s": str(took) for name, took in steps.items()},
        "pip s": str(with_pip),
        "uv s": str(with_uv),
        "whole install / pip": round(whole.wall / with_pip.wall, 3),
        "whole install / pip, processor": round(whole.cpu / with_pip.cpu, 3),
        "environment / pip": round(environment.wall / with_pip.wall, 3),
        "whole install / uv": round(whole.wall / with_uv.wall, 2),
        "environment / uv": round(environment.wall / with_uv.wall, 2),
        **{f"delta / full, {name}": round(size / again.built.size_bytes, 4) for name, size in deltas.items()},
    }


def _delta_bytes(work: Path, inventory: dict[str, Any], full: Path, anchor: bytes, changed: tuple[str, ...]) -> int:
    """Size of a delta to `full` for a zone whose files that begin so are of an older release."""
    members = [
        {**member, "sha256": "0" * 64} if member["path"].startswith(changed) else member
        for member in inventory["members"]
    ]
    base = Inventory.model_validate({**inventory, "members": members})
    signer = open_signer(work / "ca", "release-signer")
    return build_delta([full], base, signer, work / "delta", anchor=anchor, now=datetime.now(UTC)).size_bytes


def _steps(work: Path, anchor: bytes) -> dict[str, Took]:
    """What each step of an installation takes, told by its checkpoints."""
    at: dict[str, tuple[float, float]] = {"begun": (time.perf_counter(), _cpu())}
    conduct = Conduct(
        python=BASE_PYTHON, checkpoint=lambda name: at.setdefault(name, (time.perf_counter(), _cpu())) and None
    )
    install([work / "one"], work / "steps", anchor, now=datetime.now(UTC), conduct=conduct)
    ends = {
        "authenticate": "staging: manifest written",
        "extract": "staged: written down",
        "environment": "environment: written down",
        "verify again": "verified: written down",
        "health": "healthy: written down",
        "activate and look": "confirmed: written down",
    }
    found, before = {}, at["begun"]
    for name, end in ends.items():
        found[name] = Took(at[end][0] - before[0], at[end][1] - before[1])
        before = at[end]
    return found


if __name__ == "__main__":
    main()
