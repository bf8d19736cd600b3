"""Two hundred reloads in a minute under load: no request fails, and every worker ends on the last router.

    python -m benchmarks.reloads --seconds 60 --per-minute 200 --workers 2

Raw numbers go to benchmarks/results/ (not in git). The short form is a test (`tests/integration/gateway`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.support.gateway import deployment, gateway
from tests.support.reloads import reload_under_load
from tests.support.routing import zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream


def main() -> None:
    """Run, write the result file, print it; exit with 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--per-minute", type=float, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reloads.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, upstream("small") as small, upstream("large") as large:
        home = Path(folder)
        here = zone(home / "zone", make_authority(home / "ca"), labels={"a": "openai/small", "b": "openai/large"})
        here.put()
        deployments = [deployment("chat", small), deployment("chat", large)]
        listen = {"workers": arguments.workers}
        with gateway(home / "gateway", deployments, listen=listen, **here.sections()) as running:
            running.wait_until(lambda: len(running.status()["workers"]) == arguments.workers)
            count = round(arguments.seconds * arguments.per_minute / 60)
            done = reload_under_load(running, here, count=count, per_minute=arguments.per_minute)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(asdict(done), indent=2))
    print(json.dumps(asdict(done), indent=2))
    raise SystemExit(bool(done.failures))


if __name__ == "__main__":
    main()
