"""Extraction at scale: spans and spend objects made, joined and written; rows a second and peak memory.

python benchmarks/extraction.py [--calls 1000000] [--out benchmarks/results/extraction.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

from appliance.registry.directory import DirectoryStore
from appliance.training.extract.redaction import load_redactor
from appliance.training.extract.run import Sources, extract

PER_OBJECT = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    options = parser.parse_args()
    calls: int = options.calls
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        traces, spend = Path(folder) / "traces.jsonl", Path(folder) / "spend" / "logs"
        spend.mkdir(parents=True)
        with traces.open("w") as stream:
            for number in range(calls):
                stream.write(span(number))
        for start in range(0, calls, PER_OBJECT):
            rows = [row(number) for number in range(start, min(start + PER_OBJECT, calls))]
            (spend / f"{start:09}.jsonl").write_text("\n".join(rows))
        started = time.perf_counter()
        sources = Sources([traces], None, (DirectoryStore(spend.parent), "logs/"))
        card = extract(sources, Path(folder) / "outcomes.jsonl", redact=load_redactor(None))
        seconds = time.perf_counter() - started
    figures = {
        "calls": calls,
        "joined": card["joined"],
        "seconds": round(seconds, 1),
        "rows_per_second": round(2 * calls / seconds),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def span(number: int) -> str:
    messages = json.dumps([{"role": "user", "content": f"What is the square of {number}? Please explain each step."}])
    values = {
        "litellm.call_id": f"call-{number}",
        "gen_ai.request.model": f"m{number % 5}",
        "gen_ai.input.messages": messages,
    }
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]
    attributes.append({"key": "judge.score", "value": {"doubleValue": number % 3 / 2}})
    record = {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "startTimeUnixNano": str(10**18 + number),
        "endTimeUnixNano": str(10**18 + number + 10**9),
        "attributes": attributes,
    }
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [record]}]}]}) + "\n"


def row(number: int) -> str:
    return json.dumps(
        {"id": f"chatcmpl-{number}", "litellm_call_id": f"call-{number}", "response_cost": 0.001, "model": "m"}
    )


if __name__ == "__main__":
    main()
