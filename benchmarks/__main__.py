"""`make bench`: every benchmark that prints ratios against peers, one after the other; exit 1 where one did not run.

    python -m benchmarks [NAME]...

The others measure what has no peer and are run by name: docs/benchmarks.md.
"""

from __future__ import annotations

import subprocess
import sys

PEERS = ("knn", "verification", "encoder", "gateway", "install")


def main(names: list[str]) -> int:
    """Run each in a process of its own, so that none is measured with what another has imported."""
    failed = []
    for name in names or PEERS:
        print(f"==> {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"did not run to their end: {', '.join(failed)}; what each needs is in docs/benchmarks.md")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
