"""Routing quality on prompts that the router has not seen, with paired intervals.

    python benchmarks/routing_quality.py --data OUTCOMES.jsonl.gz [--strategies knn,auto] [--folds 5] [--keep DIR]
    python benchmarks/routing_quality.py --data OUTCOMES.jsonl.gz --test-share 0.3 [--seed 7]

Protocol of the first form: grouped cross-validation. Every prompt is scored once, by a router fitted on the other
folds; near copies stand in one fold; families, settings, shares and calibration are chosen within the fitting part, so
that nothing is chosen on what is measured. The scores of all folds are pooled, and differences are bootstrapped over
groups of prompts on the pooled scores. The second form sets one share aside instead.

With --keep a fold's scores are written down, and a fold that is there is not fitted again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.training.bootstrap import intervals
from appliance.training.embedding import cache_directory, find_encoder, open_encoder
from appliance.training.evaluate import evaluate_scores
from appliance.training.examples import Examples
from appliance.training.fit import fit
from appliance.training.outcomes import load_dataset
from appliance.training.preparing import prepare
from appliance.training.selection import figure_of, objective
from appliance.training.splits import folds

Rows = NDArray[np.intp]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--strategies", default="knn,auto")
    parser.add_argument("--baseline", default="knn")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, help="fit this fold alone, and keep its scores")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--test-share", type=float)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    cache = cache_directory(os.environ)
    encoder = open_encoder(find_encoder(directory=options.encoder, cache=cache))
    examples = prepare(load_dataset(options.data), encoder, cache=cache)
    splits = list(_splits(examples, options.folds, options.test_share, options.seed))
    unseen = np.sort(np.concatenate([aside for _, aside in splits]))
    print(f"{options.data.name}: {len(examples)} prompts, {len(unseen)} scored unseen, seed {options.seed}", flush=True)

    predicted = {}
    for strategy in options.strategies.split(","):
        scores = np.full(examples.scores.shape, np.nan, np.float32)
        for number, (seen, aside) in enumerate(splits):
            if options.only in (None, number):
                kept = None
                if options.keep is not None:  # named after everything that decides what stands in it
                    split = f"{options.data.stem}-{options.folds}-{options.test_share}-{options.seed}-{number}"
                    kept = options.keep / f"{strategy}-{split}.npy"
                scores[aside] = _scores(examples, strategy, (seen, aside), number, kept)
        if options.only is not None:
            continue
        predicted[strategy] = scores[unseen]
        report = evaluate_scores(predicted[strategy], examples.take(unseen))
        pair = len(examples.labels) == 2
        figures = ["apgr", "cpt50", "cpt80"] if pair else ["accuracy", "best_single", "oracle", "gap_closed"]
        values = ", ".join(f"{name} {report[name]} {report['intervals'][name]}" for name in figures)
        gain = f"over best single {report['gain_over_best_single']:+} {report['intervals']['gain_over_best_single']}"
        print(f"{strategy:12} {values}; {gain}; calibration error {report['calibration_error']}", flush=True)
        if pair and len(splits) > 1:
            each = [objective(scores[aside], examples.actual[aside], "apgr") for _, aside in splits]
            print(f"{'':12} apgr by fold {np.round(each, 4).tolist()}, mean {np.mean(each):.4f}", flush=True)

    for strategy, scores in predicted.items():
        if strategy != options.baseline and options.baseline in predicted:
            _compare(strategy, scores, options.baseline, predicted[options.baseline], examples.take(unseen))


def _splits(examples: Examples, count: int, share: float | None, seed: int) -> Iterator[tuple[Rows, Rows]]:
    if share is None:
        yield from folds(examples.groups, count, seed=seed)
        return
    names = np.unique(examples.groups)
    drawn = np.random.default_rng(seed).permutation(names)[: round(len(names) * share)]
    aside = np.isin(examples.groups, drawn)
    yield np.flatnonzero(~aside), np.flatnonzero(aside)


def _scores(
    examples: Examples, strategy: str, split: tuple[Rows, Rows], number: int, kept: Path | None
) -> NDArray[np.float32]:
    seen, aside = split
    if kept is not None and kept.exists():
        return np.asarray(np.load(kept), np.float32)
    started = time.perf_counter()
    model = fit(examples.take(seen), strategy=strategy).strategy
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    scores = model.scores(examples.take(aside).prompts)
    milliseconds = (time.perf_counter() - started) / len(aside) * 1e3
    print(f"  {strategy} {number}: fitted in {seconds:.0f} s, {milliseconds:.2f} ms a prompt", flush=True)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, scores)
    return scores


def _compare(
    strategy: str, scores: NDArray[np.float32], baseline: str, base: NDArray[np.float32], examples: Examples
) -> None:
    figure = figure_of(examples.actual)

    def difference(rows: Rows) -> dict[str, float]:
        actual = examples.actual[rows]
        return {"gain": objective(scores[rows], actual, figure) - objective(base[rows], actual, figure)}

    value = difference(np.arange(len(examples)))["gain"]
    low, high = intervals(difference, examples.groups)["gain"]
    print(f"{strategy} over {baseline}: {value:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)


if __name__ == "__main__":
    main()
