"""Measure a router on data it has not seen: everything that `train evaluate` and `train package` report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import ArtifactFiles, router_metadata
from appliance.errors import TrainingError
from appliance.routers.encoder import Encoder
from appliance.routers.loading import LoadedRouter, load_router
from appliance.training.curves import aiq, by_task, cost_quality, disturbed, flips
from appliance.training.embedding import embed, find_encoder, open_encoder
from appliance.training.evaluate import evaluate_scores, for_router, predict
from appliance.training.examples import Examples
from appliance.training.latency import answer_latency, decision_latency
from appliance.training.metrics import best_single, strong_curve
from appliance.training.outcomes import Dataset, load_dataset
from appliance.training.preparing import prepare
from appliance.training.progress import Progress, silent
from appliance.training.report import Curve, render
from appliance.training.splits import unseen

ROBUSTNESS_PROMPTS = 200


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
    return dataset.queries


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
        known: prompts that a router was fitted on, which are left out; None where nobody has looked.
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
    if known is not None:
        dataset = dataset.take(unseen(dataset.queries, known))
        if not len(dataset):
            raise TrainingError("TRAINING_DATA", f"{data.name} holds no prompt that the router was not fitted on")
    digest = router.metadata.encoder_digest
    encoder = open_encoder(find_encoder(directory=encoder_directory, cache=cache, digest=digest, progress=progress))
    examples = prepare(dataset, encoder, cache=cache, progress=progress)
    predicted = predict(router, examples.prompts, progress=progress)
    figures = evaluate_scores(predicted, examples, seed=seed)
    curve, names = _curve(predicted, examples, _costs(dataset, prices))
    report: dict[str, Any] = {
        "router": f"{router.metadata.name} {router.metadata.version}",
        "digest": artifact.digest,
        "strategy": router.metadata.strategy,
        "data_digest": dataset.digest,
        "seen_in_training": dataset.digest == router.metadata.training_data_digest,
        "left_out": given - len(dataset) if known is not None else None,
        **figures,
        "chosen": _chosen(predicted, examples),
        "tasks": by_task(predicted, examples.actual, examples.tasks, best_single(examples.actual)),
    }
    report |= answer_latency(predicted, dataset.latencies_ms, best_single(examples.actual))
    report |= decision_latency(router, encoder, examples.prompts)
    if curve:
        report["aiq"] = round(aiq(list(curve)), 4)
    if robustness:
        report["flips"] = _robustness(router, encoder, examples, seed, progress)
    return Measured(report, predicted, examples, curve, names)


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


def _curve(predicted: NDArray[np.float32], examples: Examples, costs: NDArray[np.float64] | None) -> tuple[Curve, str]:
    if costs is not None:
        return cost_quality(predicted, examples.actual, costs), "mean cost of a request, and mean score"
    both = ~np.isnan(examples.actual).any(axis=1)
    if len(examples.labels) != 2 or not both.any():
        return [], ""
    strong, weak = (examples.actual[both, column].astype(np.float64) for column in (0, 1))
    gain = (predicted[both, 0] - predicted[both, 1]).astype(np.float64)
    shares, accuracy = strong_curve(gain, weak, strong, bins=50)
    return list(zip(shares.tolist(), accuracy.tolist(), strict=True)), "share of strong calls, and mean score"


def _robustness(
    router: LoadedRouter, encoder: Encoder, examples: Examples, seed: int, progress: Progress
) -> dict[str, Any]:
    """How often a small change of the wording changes the favourite."""
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(examples), min(ROBUSTNESS_PROMPTS, len(examples)), replace=False)
    original = examples.prompts.take(np.asarray(rows, np.intp))
    changed = embed(encoder, [disturbed(text, generator) for text in original.texts], progress=progress)
    share = flips(router.scores(original), router.scores(changed))
    return {"prompts": len(rows), "share": round(share, 4)}
