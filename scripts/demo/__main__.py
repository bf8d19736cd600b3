"""`make demo`: from source to a routed request in a sealed room, with the commands an operator would type.

Everything it makes lies in `.demo/` and in the ignored folders of `ca/` and `vendor/`; a second run reuses what is
there. `DEMO_SMALL_URL` and `DEMO_LARGE_URL` point it at OpenAI-compatible servers of yours.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from scripts.demo.bridges import bridged_upstreams
from scripts.demo.narrate import Commands, say, step, summary
from scripts.demo.sealed_room import choose_guard, dismiss

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".demo"
AUTHORITY = ROOT / "ca" / "authority"
ENCODER = WORK / "encoder"
ROUTER = WORK / "router"
RELEASE = WORK / "release"
OUTCOMES = ROOT / "tests" / "data" / "routing_outcomes.sample.jsonl.gz"
PROFILE, TARGET = "gateway", "cp311-manylinux_x86_64"
# what the training data calls its two models -> the deployments of the demo's gateway
LABELS = {"mixtral-8x7b-instruct": "small", "gpt-4-1106-preview": "large"}


def main() -> int:
    """Run the eight steps; 0 where all held."""
    begun = time.monotonic()
    WORK.mkdir(exist_ok=True)
    command = Commands(ROOT, path=Path(sys.executable).parent)
    appliance = "appliance"

    with step(1, "Environment and a development authority"):
        say(f"environment .venv: Python {sys.version.split()[0]}, torch on the CPU")
        if (AUTHORITY / "anchor.json").exists():
            say("ca/authority is there; keeping it (remove the folder for a new one)")
        else:
            command(appliance, "ca", "init", "--development", "--out", AUTHORITY)

    with step(2, "Wheels and the embedding model, every hash checked"):
        command(appliance, "vendor", "fetch", "--profile", PROFILE, "--target", TARGET)
        command(appliance, "vendor", "audit", f"vendor/wheelhouse/{TARGET}")

    with step(3, "The encoder: all-MiniLM-L6-v2 to int8 ONNX, compared with the original"):
        key = digest_of(
            [
                *(ROOT / "vendor" / "models.yaml", AUTHORITY / "anchor.json"),
                *(*source("training/encoder_export.py"), *source("registry/admitted.py")),
            ]
        )

        def export() -> None:
            command(appliance, "train", "export-encoder", "--out", ENCODER)
            command(appliance, "artifact", "sign", ENCODER, "--role", "release-signer")

        made_once(ENCODER, key, export)

    with step(4, "A KNN router from real outcomes, measured and signed"):
        key = digest_of(
            [
                *(OUTCOMES, *source("training"), *source("routers"), *source("registry/admitted.py")),
                *(ENCODER / "encoder.yaml", AUTHORITY / "anchor.json"),
            ]
        )

        def fit() -> None:
            labels = [word for label, name in LABELS.items() for word in ("--label", f"{label}={name}")]
            command(
                *(appliance, "train", "fit", "--data", OUTCOMES, "--strategy", "knn", "--name", "demo"),
                *("--encoder", ENCODER, "--out", ROUTER, *labels),
            )
            command(appliance, "artifact", "sign", ROUTER, "--role", "import-officer")

        made_once(ROUTER, key, fit)

    with step(5, "The release: manifest, signature, plain tar, the same bytes each time"):
        key = digest_of(
            [
                *ROOT.glob("appliance/**/*.py"),
                *ROOT.glob("bundle/**/*"),
                ENCODER / "artifact.sigstore.json",
                ROUTER / "artifact.sigstore.json",
                ROOT / "vendor/requirements/gateway.lock",
            ]
        )

        def build() -> None:
            command(
                *(appliance, "bundle", "build", "--profile", PROFILE, "--target", TARGET, "--out", RELEASE),
                *("--wheelhouse", f"vendor/wheelhouse/{TARGET}", "--encoder", ENCODER, "--router", ROUTER),
                env={"SOURCE_DATE_EPOCH": commit_time()},
            )

        made_once(RELEASE, key, build)

    guard = choose_guard()
    result = WORK / "result.json"
    result.unlink(missing_ok=True)
    try:
        with bridged_upstreams(WORK, os.environ) as bridges:
            environment = {**os.environ, "DEMO_GUARD": guard.name, "DEMO_SEALED": "1" if guard.sealed else ""}
            sealed = [*guard.prefix, sys.executable, "-m", "scripts.demo.sealed", str(WORK), json.dumps(bridges)]
            status = subprocess.run(sealed, cwd=ROOT, env=environment, check=False).returncode
    finally:
        dismiss(guard)
    if not result.exists():
        return status or 1
    rows = json.loads(result.read_text())
    summary([*rows, ("took", f"{time.monotonic() - begun:.0f} s")])
    return status


def made_once(target: Path, key: str, make: Callable[[], None]) -> None:
    """Make a folder unless it stands there, made from the very same inputs."""
    stamp = target.with_name(f"{target.name}.made-from")
    if target.exists() and stamp.exists() and stamp.read_text() == key:
        say(f"{target.relative_to(ROOT)} is there, made from the same inputs")
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    make()
    stamp.write_text(key)


def source(place: str) -> Iterable[Path]:
    """The source files of a room or module of the package."""
    path = ROOT / "appliance" / place
    return [path] if path.suffix else path.rglob("*.py")


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, whatever their order."""
    listing = sorted(
        f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files if path.is_file()
    )
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


def commit_time() -> str:
    """Seconds since 1970 of the last commit, so that a release of the same source has the same bytes."""
    found = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or str(int(time.time()))


if __name__ == "__main__":
    sys.exit(main())
