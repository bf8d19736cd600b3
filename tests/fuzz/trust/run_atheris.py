"""Coverage-guided fuzzing: `python -m tests.fuzz.trust.run_atheris bundle -max_total_time=600`.

The names are those of `targets.py`; `all` takes the target from each input's first byte. A finding is written as
`crash-*` into the working folder, as libFuzzer does, and ends the run with another exit code than 0.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["appliance.trust", "appliance.documents", "appliance.artifact"]):
    from tests.fuzz.trust.targets import Target, targets


def main() -> None:
    """Fuzz the target named by the first argument; the rest are libFuzzer's."""
    folder = Path(tempfile.mkdtemp())  # libFuzzer ends the process itself: nothing after `Fuzz` is run
    known = targets(folder)
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in {"all", *known}:
        raise SystemExit(f"name a target: all, {', '.join(known)}")
    chosen = list(known.values()) if name == "all" else [known[name]]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, target in enumerate(chosen):
        target.try_one(target.original)
        (corpus / f"original-{number}").write_bytes(bytes([number]) * (name == "all") + target.original)

    def try_one(data: bytes) -> None:
        if name == "all":
            target, data = _named_by(data, chosen), data[1:]
        else:
            target = chosen[0]
        target.try_one(data)

    atheris.Setup([*sys.argv, str(corpus)], try_one)
    atheris.Fuzz()


def _named_by(data: bytes, chosen: list[Target]) -> Target:
    return chosen[(data[0] if data else 0) % len(chosen)]


if __name__ == "__main__":
    main()
