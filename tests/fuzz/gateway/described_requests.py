"""Make requests from the API's description against a running gateway: a process of its own, and a command.

Hypothesis draws texts and numbers also from the constants of whatever local modules are imported. In a process that has
run other tests the cases would depend on which; here nothing is imported but this.

    APPLIANCE_KEY=sk-... python -m tests.fuzz.gateway.described_requests http://127.0.0.1:4000 --examples 5000 --seed 7

Prints one JSON line an operation: how often which status came, and the requests that ended in an error of the server.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
from pathlib import Path

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

SCHEMA = schemathesis.openapi.from_path(Path(__file__).with_name("openapi.yaml"))
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}
SHARE = {"POST /v1/chat/completions": 1.0}  # of the examples; the others have little that can be wrong
OTHERS = 0.1
LIMIT_S = 120  # seconds for one answer


def requests(label: str):
    """Requests that fit the description, and, where it demands anything, some that do not."""
    operation = OPERATIONS[label]
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    demanding = operation.body or label == "GET /appliance/decisions"
    return fitting | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) if demanding else fitting


def run(url: str, key: str, label: str, *, examples: int, seed: int | None) -> dict:
    """Make the requests of one operation; the same ones every time where no seed is given."""
    statuses: collections.Counter[int] = collections.Counter()
    broken: list[dict] = []

    @settings(
        max_examples=max(1, round(examples * SHARE.get(label, OTHERS))),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=seed is None,
    )
    @given(case=requests(label))
    def ask(case) -> None:
        response = case.call(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=LIMIT_S)
        statuses[response.status_code] += 1
        if response.status_code >= 500:
            broken.append({"status": response.status_code, "answer": response.text[:500], "as": case.as_curl_command()})

    (ask if seed is None else hypothesis.seed(seed)(ask))()
    return {"operation": label, "statuses": dict(sorted(statuses.items())), "broken": broken}


def main() -> int:
    """Run every operation, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--examples", type=int, default=150, help="for the largest operation; a tenth for the others")
    parser.add_argument("--seed", type=int, help="other requests than those of the suite")
    parser.add_argument("--only", choices=sorted(OPERATIONS))
    chosen = parser.parse_args()
    failed = False
    for label in [chosen.only] if chosen.only else sorted(OPERATIONS):
        found = run(chosen.url, os.environ["APPLIANCE_KEY"], label, examples=chosen.examples, seed=chosen.seed)
        failed = failed or bool(found["broken"])
        print(json.dumps(found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
