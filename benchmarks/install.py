"""Offline installation against its peers, measured side by side in one run.

    python benchmarks/install.py [--wheelhouse DIR] [--out FILE]

Times, each from the same wheels into a fresh folder on the same file system:

- `appliance install`, whole: signature, every digest, environment, second verification, health check, activation
- of that, what pip does too, and verification: from the media to an environment with every wheel verified and installed
  (the health check after it imports the proxy cold, which compiles what it imports: pip never tries whether it runs)
- `pip install --no-index --find-links` (it compiles bytecode), with hashes required
- `uv pip install` with the same options, cold cache
- build of the release, verification of the media, the strict reader's rate, and the size of a delta

Ratios are what counts; absolute times belong to the machine printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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


def measured(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def run(*command: str, **variables: str) -> None:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheelhouse", type=Path, default=Path("vendor/wheelhouse") / TARGET)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/install.json"))
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-install-", dir="."))
    try:
        report = benchmark(work.absolute(), options.wheelhouse)
    finally:
        shutil.rmtree(work)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"{name:34} {value}")
    for name in ("media to environment / pip", "whole install / pip"):
        print(f"goal of {GOAL} for {name}: {'reached' if report[name] <= GOAL else 'MISSED'}")


def benchmark(work: Path, wheelhouse: Path) -> dict[str, Any]:
    now = datetime.now(UTC)
    create_authority(work / "ca", read_recipes(Path("ca")), development=True, now=now)
    recipe = Recipe("gateway", TARGET, work / "ca", now, wheelhouse=wheelhouse)
    build_s = measured(lambda: build_release(recipe, work / "one"))
    again = build_release(Recipe("gateway", TARGET, work / "ca", now, wheelhouse=wheelhouse, epoch=2), work / "two")
    full = work / "one"
    anchor = (work / "ca" / "anchor.json").read_bytes()
    verify_s = measured(lambda: verify_media([full], anchor, now=datetime.now(UTC)))

    steps: dict[str, float] = {}
    begun = time.perf_counter()
    conduct = Conduct(python=BASE_PYTHON, checkpoint=lambda name: steps.setdefault(name, time.perf_counter() - begun))
    install_s = measured(lambda: install([full], work / "prefix", anchor, now=datetime.now(UTC), conduct=conduct))
    prefix = Prefix(work / "prefix")
    payload = prefix.payload(prefix.active() or "")
    requirements = str(payload / "requirements.txt")

    def peer(name: str, *command: str, **variables: str) -> float:
        run(BASE_PYTHON, "-m", "venv", str(work / name))
        python = str(work / name / "bin" / "python")
        options = [
            "--no-index",
            "--find-links",
            str(payload / "wheels"),
            "--no-deps",
            "--require-hashes",
            "-r",
            requirements,
        ]
        return measured(lambda: run(*(part.format(python=python) for part in command), *options, **variables))

    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"
    cache = str(work / "uv-cache")
    uv_s = peer("uv", uv, "pip", "install", "--quiet", "--python", "{python}", "--offline", UV_CACHE_DIR=cache)
    pip_s = peer("pip", "{python}", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")

    statement = take_inventory(prefix, now=now)
    base = Inventory.model_validate(statement)
    delta = build_delta(
        [again.built.path], base, open_signer(work / "ca", "release-signer"), work / "delta", anchor=anchor, now=now
    )
    payload_mb = again.built.manifest.payload_bytes / 1e6
    extract_s = steps["extracted"] - steps["staging: manifest written"]
    environment_s = steps["environment: written down"] - steps["staged: written down"]
    return {
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
        "wheels": sum(member.path.endswith(".whl") for member in again.built.manifest.members),
        "payload MB": round(payload_mb),
        "build s": round(build_s, 1),
        "verify s": round(verify_s, 1),
        "verify MB/s": round(payload_mb / verify_s),
        "extract MB/s": round(payload_mb / extract_s),
        "install s": round(install_s, 1),
        "  extract s": round(extract_s, 1),
        "  environment s": round(environment_s, 1),
        "  health s": round(steps["healthy: written down"] - steps["verified: written down"], 1),
        "pip s": round(pip_s, 1),
        "uv s": round(uv_s, 1),
        "whole install / pip": round(install_s / pip_s, 3),
        "media to environment / pip": round(steps["verified: written down"] / pip_s, 3),
        "environment alone / pip": round(environment_s / pip_s, 3),
        "whole install / uv": round(install_s / uv_s, 2),
        "delta / full": round(delta.size_bytes / again.built.size_bytes, 5),
    }


if __name__ == "__main__":
    main()
