"""Two thousand streaming clients in turn, each with a connection of its own: every one gets its whole stream.

    python -m benchmarks.streams --count 2000 --at-once 16

Raw numbers go to benchmarks/results/ (not in git). The short form is a test (`tests/integration/gateway`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from tests.support.gateway import deployment, gateway
from tests.support.routing import zone
from tests.support.streams import stream_in_turn
from tests.support.trust import make_authority
from tests.support.upstream import upstream


def main() -> None:
    """Run, write the result file, print it; exit with 1 where a stream did not come whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/streams.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, upstream("small") as small, upstream("large") as large:
        home = Path(folder)
        here = zone(home / "zone", make_authority(home / "ca"), labels={"a": "openai/small", "b": "openai/large"})
        here.put()
        deployments = [deployment("chat", small), deployment("chat", large)]
        with gateway(home / "gateway", deployments, **here.sections()) as running:
            start = time.monotonic()
            faults = stream_in_turn(running, arguments.count, words=small.words, at_once=arguments.at_once)
            seconds = time.monotonic() - start
    result = {"count": arguments.count, "seconds": round(seconds, 1), "faults": faults}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
