"""Routing quality on prompts set aside: every strategy named, on the same split, with paired intervals.

    python benchmarks/routing_quality.py --data OUTCOMES.jsonl.gz [--strategies knn,auto] [--test-share 0.3] [--seed 7]

The split is by groups of near copies, so that no prompt stands on both sides. Nothing is chosen on the test part.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from appliance.training.bootstrap import intervals
from appliance.training.embedding import cache_directory, find_encoder, open_encoder
from appliance.training.evaluate import evaluate_scores
from appliance.training.fit import fit
from appliance.training.outcomes import load_dataset
from appliance.training.preparing import prepare
from appliance.training.selection import objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--strategies", default="knn,auto")
    parser.add_argument("--baseline", default="knn")
    parser.add_argument("--test-share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    cache = cache_directory(os.environ)
    encoder = open_encoder(find_encoder(directory=options.encoder, cache=cache))
    examples = prepare(load_dataset(options.data), encoder, cache=cache)
    names = np.unique(examples.groups)
    drawn = np.random.default_rng(options.seed).permutation(names)[: round(len(names) * options.test_share)]
    aside = np.isin(examples.groups, drawn)
    seen, unseen = examples.take(np.flatnonzero(~aside)), examples.take(np.flatnonzero(aside))
    print(
        f"{options.data.name}: {len(seen)} prompts to fit on, {len(unseen)} set aside, seed {options.seed}", flush=True
    )

    predicted = {}
    for strategy in options.strategies.split(","):
        started = time.perf_counter()
        model = fit(seen, strategy=strategy).strategy
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        predicted[strategy] = model.scores(unseen.prompts)
        milliseconds = (time.perf_counter() - started) / len(unseen) * 1e3
        report = evaluate_scores(predicted[strategy], unseen)
        figures = ["apgr", "cpt50", "cpt80"] if len(unseen.labels) == 2 else ["accuracy", "gap_closed"]
        values = ", ".join(f"{name} {report[name]} {report['intervals'][name]}" for name in figures)
        gain = f"over best single {report['gain_over_best_single']:+} {report['intervals']['gain_over_best_single']}"
        print(f"{strategy:12} {values}; {gain}; fit {seconds:.0f} s, {milliseconds:.2f} ms a prompt", flush=True)

    if options.baseline in predicted:
        base = predicted[options.baseline]
        for strategy, scores in predicted.items():
            if strategy == options.baseline:
                continue

            def difference(rows: np.ndarray, scores: np.ndarray = scores) -> dict[str, float]:
                actual = unseen.scores[rows]
                return {"gain": objective(scores[rows], actual) - objective(base[rows], actual)}

            value = difference(np.arange(len(unseen)))["gain"]
            low, high = intervals(difference, unseen.groups)["gain"]
            print(f"{strategy} over {options.baseline}: {value:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)


if __name__ == "__main__":
    main()
