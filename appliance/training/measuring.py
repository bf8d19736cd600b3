"""Measure a router on data it has not seen: everything that `train evaluate` and `train package` report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import ArtifactFiles, router_metadata
from appliance.errors import TrainingError
from appliance.routers.encoder import Encoder
from appliance.routers.families.ensemble import Ensemble
from appliance.routers.loading import LoadedRouter, load_router
from appliance.training.bootstrap import intervals
from appliance.training.calibrating import abstention
from appliance.training.curves import aiq, by_task, cost_quality, disturbed, flip_shares, paraphrased
from appliance.training.embedding import embed, find_encoder, open_encoder
from appliance.training.evaluate import evaluate_scores, for_router, predict
from appliance.training.examples import Examples
from appliance.training.latency import answer_latency, decision_latency, decision_times
from appliance.training.metrics import best_single, strong_curve
from appliance.training.outcomes import Dataset, load_dataset
from appliance.training.preparing import prepare
from appliance.training.progress import Progress, silent
from appliance.training.report import Curve, render
from appliance.training.splits import KNOWN, known_share, unseen

ROBUSTNESS_PROMPTS = 200
MOST_KNOWN = 0.05  # share of prompts that may stand in the training unnoticed: greetings repeat


@dataclass(frozen=True)
class Measured:
    """A router's scores on some data, and what they are worth.

    Attributes:
        report: figures, as `--json` prints them.
        predicted: shape (n, labels).
        examples: the prompts and what each model scored.
        curve: points of the cost-quality curve, empty where no cost is known.
        curve_names: what the curve's axis shows.
    """

    report: dict[str, Any]
    predicted: NDArray[np.float32]
    examples: Examples
    curve: Curve
    curve_names: str

    def html(self, title: str) -> str:
        """The report as a page."""
        return render(self.report, title=title, tasks=self.report["tasks"], curve=self.curve, names=self.curve_names)


def training_prompts(artifact: ArtifactFiles, data: Path) -> tuple[str, ...]:
    """What a router was fitted on, by the digest that it names.

    Args:
        artifact: the router.
        data: the outcomes that are said to be it.

    Raises:
        TrainingError: TRAINING_DATA, TRAINING_ARGUMENT where it was fitted on other data.
    """
    dataset, named = load_dataset(data), router_metadata(artifact).training_data_digest
    if dataset.digest != named:
        raise TrainingError(
            "TRAINING_ARGUMENT", f"the router was not fitted on {data.name}", fitted_on=named, given=dataset.digest
        )
    return dataset.with_text().queries


def measure(
    artifact: ArtifactFiles,
    data: Path,
    *,
    known: Sequence[str] | None = None,
    encoder_directory: Path | None,
    cache: Path,
    prices: Mapping[str, float] | None = None,
    robustness: bool = False,
    seed: int = 0,
    progress: Progress = silent,
) -> Measured:
    """Score every prompt of a data file and report.

    Args:
        artifact: the router.
        data: outcomes.
        known: prompts that a router was fitted on: they and their near copies are left out; None where nobody looked.
        encoder_directory: where the encoder is, or None to find the router's own by its digest.
        cache: the user's cache.
        prices: label -> cost of a request, any one unit; without it the data's own costs count.
        robustness: whether to disturb some prompts and count changed choices.
        seed: of the bootstrap and of the disturbances.
        progress: told of each step.

    Raises:
        TrainingError: TRAINING_DATA, TRAINING_LABELS, TRAINING_ENCODER, TRAINING_ARGUMENT.
        RouterError: where the router cannot be built.
    """
    router = load_router(artifact)
    dataset = for_router(load_dataset(data), router).with_text()
    given = len(dataset)
    digest = router.metadata.encoder_digest
    encoder = open_encoder(find_encoder(directory=encoder_directory, cache=cache, digest=digest, progress=progress))
    if known is not None:
        these, those = (embed(encoder, texts, cache=cache, progress=progress) for texts in (dataset.queries, known))
        dataset = dataset.take(unseen(these, those))
        if not len(dataset):
            raise TrainingError("TRAINING_DATA", f"{data.name} holds no prompt that the router was not fitted on")
    examples = prepare(dataset, encoder, cache=cache, progress=progress)
    predicted = predict(router, examples.prompts, progress=progress)
    figures = evaluate_scores(predicted, examples, seed=seed)
    same = dataset.digest == router.metadata.training_data_digest
    share = known_share(str(router.metadata.evaluation.get(KNOWN, "")), dataset.queries)
    curves, names = _curves(predicted, examples, _costs(dataset, prices))
    fixed, everything = best_single(examples.actual), np.arange(len(examples))
    report: dict[str, Any] = {
        "router": f"{router.metadata.name} {router.metadata.version}",
        "digest": artifact.digest,
        "strategy": router.metadata.strategy,
        "data_digest": dataset.digest,
        "seen_in_training": same or share > MOST_KNOWN,
        "seen_share": round(share, 4),
        "left_out": given - len(dataset) if known is not None else None,
        **figures,
        "chosen": _chosen(predicted, examples),
        "tasks": by_task(predicted, examples.actual, examples.tasks, examples.groups, fixed, seed=seed),
    }
    timed = decision_times(router, encoder, examples.prompts)
    further = [
        (decision_latency(timed), np.arange(len(timed))),
        (answer_latency(predicted, dataset.latencies_ms, fixed), examples.groups),
    ]
    calibration = router.strategy.calibration if isinstance(router.strategy, Ensemble) else None
    if calibration is not None:
        further.append((abstention(predicted, calibration), examples.groups))
    if curves is not None:
        further.append((lambda rows: {"aiq": aiq(curves(rows))}, examples.groups))
    for measured, groups in further:
        report |= {name: round(value, 4) for name, value in measured(np.arange(len(groups))).items()}
        bounds = intervals(measured, groups, seed=seed)
        report["intervals"] |= {name: [round(edge, 4) for edge in edges] for name, edges in bounds.items()}
    if robustness:
        flips, edges_of_flips = _robustness(router, encoder, examples, seed, progress)
        report |= flips
        report["intervals"] |= edges_of_flips
    return Measured(report, predicted, examples, [] if curves is None else curves(everything), names)


def _chosen(predicted: NDArray[np.float32], examples: Examples) -> dict[str, float]:
    """Share of prompts that each model would answer."""
    counts = np.bincount(np.argmax(predicted, axis=1), minlength=len(examples.labels))
    return {label: round(float(n / len(predicted)), 4) for label, n in zip(examples.labels, counts, strict=True)}


def _costs(dataset: Dataset, prices: Mapping[str, float] | None) -> NDArray[np.float64] | None:
    if prices:
        missing = [model for model in dataset.models if model not in prices]
        if missing:
            raise TrainingError("TRAINING_ARGUMENT", "--price must name every model", missing=missing)
        return np.array([prices[model] for model in dataset.models])
    known = ~np.isnan(dataset.costs)
    if not known.any(axis=0).all():
        return None
    return np.asarray(np.nanmean(dataset.costs, axis=0, dtype=np.float64))


def _curves(
    predicted: NDArray[np.float32], examples: Examples, costs: NDArray[np.float64] | None
) -> tuple[Callable[[NDArray[np.intp]], list[tuple[float, float]]] | None, str]:
    """What draws the curve of some prompts, or None where there is none; and what its axes show."""
    if costs is not None:
        return cost_quality(predicted, examples.actual, costs).curve, "mean cost of a request, and mean score"
    both = np.asarray(~np.isnan(examples.actual).any(axis=1))
    if len(examples.labels) != 2 or not both.any():
        return None, ""

    def drawn(rows: NDArray[np.intp]) -> list[tuple[float, float]]:
        rows = rows[both[rows]]
        strong, weak = (examples.actual[rows, column].astype(np.float64) for column in (0, 1))
        gain = (predicted[rows, 0] - predicted[rows, 1]).astype(np.float64)
        shares, accuracy = strong_curve(gain, weak, strong, bins=50)
        return list(zip(shares.tolist(), accuracy.tolist(), strict=True))

    return drawn, "share of strong calls, and mean score"


def _robustness(
    router: LoadedRouter, encoder: Encoder, examples: Examples, seed: int, progress: Progress
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """How often other words for the same request, or typing noise, change the favourite: shares and their intervals."""
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(examples), min(ROBUSTNESS_PROMPTS, len(examples)), replace=False)
    original = examples.prompts.take(np.asarray(rows, np.intp))
    before, found, bounds = router.scores(original), {}, {}
    for name, change in (("flips_paraphrase", paraphrased), ("flips_noise", disturbed)):
        changed = embed(encoder, [change(text, generator) for text in original.texts], progress=progress)
        share, edges = flip_shares(before, router.scores(changed), examples.groups[rows], seed=seed)
        found[name], bounds[name] = round(share, 4), [round(edge, 4) for edge in edges]
    return found, bounds
