"""Fit a router: choose the family by nested validation, measure it on prompts it has not seen, write the artifact."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance import __version__
from appliance.artifact import METADATA_NAMES, ArtifactFiles, RouterMetadata, from_files
from appliance.errors import TrainingError
from appliance.files import sha256_hex
from appliance.routers.families.ensemble import Ensemble
from appliance.routers.loading import write_strategy_files
from appliance.routers.strategies import Strategy
from appliance.training.arithmetic import one_thread
from appliance.training.blending import crossed, shares
from appliance.training.calibrating import calibrated, crossed_calibration
from appliance.training.evaluate import evaluate_scores
from appliance.training.examples import Examples, Fitter
from appliance.training.progress import Progress, silent
from appliance.training.selection import figure_of, objective
from appliance.training.splits import KNOWN, folds, sketch
from appliance.training.writing import yaml_bytes

OUTER_FOLDS = 5

# strategy -> where its fitter lives
FITTERS: Mapping[str, str] = {
    "cluster": "appliance.training.families.cluster:ClusterFitter",
    "elo": "appliance.training.families.elo:EloFitter",
    "forest": "appliance.training.families.forest:ForestFitter",
    "knn": "appliance.training.families.knn:KnnFitter",
    "logistic": "appliance.training.families.linear:LogisticFitter",
    "matrix_factorization": "appliance.training.families.neural:MatrixFactorizationFitter",
    "mlp": "appliance.training.families.neural:MlpFitter",
    "ridge": "appliance.training.families.linear:RidgeFitter",
    "svm": "appliance.training.families.svm:SvmFitter",
    "terms": "appliance.training.families.terms:TermsFitter",
}
ENSEMBLE = "ensemble"
Splits = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
AUTO: Sequence[str] = ("forest", "knn", "terms")  # what `auto` compares, and blends


@dataclass(frozen=True)
class Fitted:
    """A fitted router and how it did on prompts it had not seen.

    Attributes:
        strategy: fitted on every example.
        hyperparameters: chosen ones.
        compared: family -> objective out of fold.
        evaluation: figures out of fold, with intervals; nested, so that no choice saw what it is measured on.
        known: sketch of the prompts fitted on (`splits.sketch`).
    """

    strategy: Strategy
    hyperparameters: Mapping[str, Any]
    compared: Mapping[str, float]
    evaluation: Mapping[str, Any]
    known: str = ""


def fitter(name: str) -> Fitter:
    """The fitter of a strategy name.

    Raises:
        TrainingError: TRAINING_ARGUMENT.
    """
    if name not in FITTERS:
        raise TrainingError(
            "TRAINING_ARGUMENT", f"no strategy {name!r} can be fitted", known=["auto", ENSEMBLE, *sorted(FITTERS)]
        )
    module, _, attribute = FITTERS[name].partition(":")
    made: Fitter = getattr(importlib.import_module(module), attribute)()
    return made


@one_thread()
def fit(examples: Examples, *, strategy: str = "auto", seed: int = 0, progress: Progress = silent) -> Fitted:
    """Fit one family, or the best of several.

    Args:
        examples: what to learn from.
        strategy: a name of `FITTERS`; `auto`, the best of `AUTO` and their blend; or `ensemble`, the blend in any case.
            The latter two are calibrated, and abstain where validation says so.
        seed: of every split and every random start.
        progress: told of each family and fold.

    Raises:
        TrainingError: TRAINING_ARGUMENT.
    """
    names = list(AUTO) if strategy in ("auto", ENSEMBLE) else [strategy]
    fitters = {name: fitter(name) for name in names}
    splits = list(folds(examples.groups, min(OUTER_FOLDS, len(np.unique(examples.groups))), seed=seed))
    unseen: dict[str, NDArray[np.float32]] = {}
    for name in names:
        unseen[name] = _out_of_fold(fitters[name], examples, splits, seed, progress)
    rows = [predict_rows for _, predict_rows in splits]
    candidates = dict(unseen)
    if len(names) > 1:
        candidates[ENSEMBLE] = crossed(unseen, examples.actual, rows)
    figure = figure_of(examples.actual)
    compared = {
        name: round(float(np.mean([objective(p[fold], examples.actual[fold], figure) for fold in rows])), 6)
        for name, p in candidates.items()
    }
    best = ENSEMBLE if strategy == ENSEMBLE else max(candidates, key=lambda name: compared[name])
    known = sketch(examples.prompts.texts)
    if len(names) == 1:
        model, chosen = fitters[best].fit(examples, seed=seed)
        return Fitted(model, chosen, compared, evaluate_scores(candidates[best], examples, seed=seed), known)
    blend = shares(unseen, examples.actual, rows) if best == ENSEMBLE else {best: 1.0}
    members: list[tuple[float, Strategy]] = []
    hyperparameters: dict[str, Any] = {}
    for name, share in blend.items():
        progress(f"fitting {name} on every prompt")
        model, chosen = fitters[name].fit(examples, seed=seed)
        members.append((share, model))
        hyperparameters[name] = {"share": share, **chosen}
    calibration = calibrated(candidates[best], examples.actual, rows)
    hyperparameters["smallest_advantage"] = calibration.smallest_advantage
    honest = crossed_calibration(candidates[best], examples.actual, rows)
    evaluation = evaluate_scores(honest, examples, seed=seed)
    return Fitted(Ensemble(examples.labels, members, calibration), hyperparameters, compared, evaluation, known)


def _out_of_fold(
    family: Fitter, examples: Examples, splits: Splits, seed: int, progress: Progress
) -> NDArray[np.float32]:
    """Scores of every prompt by models that did not see its fold, shape (n, labels)."""
    predicted = np.zeros(examples.scores.shape, np.float32)
    for number, (fit_rows, predict_rows) in enumerate(splits):
        model, _ = family.fit(examples.take(fit_rows), seed=seed)
        predicted[predict_rows] = model.scores(examples.take(predict_rows).prompts)
        progress(f"validating {family.name}", number + 1, len(splits))
    return predicted


def router_artifact(
    fitted: Fitted,
    *,
    name: str,
    version: str,
    labels: Mapping[str, str],
    encoder_digest: str,
    data_digest: str,
    created: datetime,
) -> ArtifactFiles:
    """The router's files with `router.yaml`, unsigned; equal inputs give equal bytes.

    Args:
        fitted: what `fit` gave.
        name, version: identity in the registry.
        labels: label of the data -> model name of the gateway; labels that are not named keep their own name.
        encoder_digest: of the encoder the examples were embedded with.
        data_digest: of the training data.
        created: time to record.
    """
    unknown = sorted(set(labels) - set(fitted.strategy.labels))
    if unknown:
        raise TrainingError(
            "TRAINING_ARGUMENT",
            f"the data has no model {unknown[0]!r}",
            unknown=unknown,
            models=list(fitted.strategy.labels),
        )
    files = write_strategy_files(fitted.strategy.dump())
    metadata = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "strategy": fitted.strategy.name,
        "hyperparameters": dict(fitted.hyperparameters),
        "labels": {label: labels.get(label, label) for label in fitted.strategy.labels},
        "files": {file: sha256_hex(data) for file, data in sorted(files.items())},
        "encoder_digest": encoder_digest,
        "training_data_digest": data_digest,
        "evaluation": {
            "method": "nested cross-validation",
            "compared": dict(fitted.compared),
            **fitted.evaluation,
            KNOWN: fitted.known,
        },
        "created": created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "minimum_appliance_version": __version__.partition("+")[0],
    }
    RouterMetadata.model_validate(metadata)
    return from_files({**files, METADATA_NAMES["router"]: yaml_bytes(metadata)})
