"""Coverage-guided fuzzing of one parser: `python -m tests.fuzz.trust.run_atheris bundle -max_total_time=600`.

The names are those of `targets.py`. A finding is written as `crash-*` beside the working folder, as libFuzzer does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["appliance.trust", "appliance.documents"]):
    from tests.fuzz.trust.targets import targets


def main() -> None:
    """Fuzz the target named by the first argument; the rest are libFuzzer's."""
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
        if name not in known:
            raise SystemExit(f"name a target: {', '.join(known)}")
        target = known[name]
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        (corpus / "original").write_bytes(target.original)
        atheris.Setup([*sys.argv, str(corpus)], target.try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
