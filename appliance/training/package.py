"""The gate before a router may leave the training zone: it beats what serves now, with confidence, or says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from appliance.artifact import METADATA_NAMES, ArtifactFiles, from_files
from appliance.errors import TrainingError
from appliance.routers.loading import load_router
from appliance.training.bootstrap import intervals
from appliance.training.selection import figure_of, objective
from appliance.training.writing import yaml_bytes

MINIMUM_CONFIDENCE = 0.5


@dataclass(frozen=True)
class Verdict:
    """What the gate measured.

    Attributes:
        passed: whether the lower end of the interval is above zero, on prompts that were set aside.
        against: `best_single`, or the digest of the current router.
        figure: what was compared: `apgr` for two models, else `accuracy`.
        gain: the candidate's figure less the baseline's.
        interval: of the gain, at `confidence`.
        confidence: coverage of the interval.
        prompts: how many the figures rest on.
        seen_in_training: whether the router was fitted on these prompts, or on many of them: the figures prove nothing.
        left_out: prompts of the data that the router had been fitted on; None where nobody has looked.
    """

    passed: bool
    against: str
    figure: str
    gain: float
    interval: tuple[float, float]
    confidence: float
    prompts: int
    seen_in_training: bool = False
    left_out: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """As `router.yaml` and `--json` show it."""
        return {
            "passed": self.passed,
            "against": self.against,
            "figure": self.figure,
            "gain": round(self.gain, 4),
            "interval": [round(edge, 4) for edge in self.interval],
            "confidence": self.confidence,
            "prompts": self.prompts,
            "seen_in_training": self.seen_in_training,
            "left_out": self.left_out,
        }


def judge(
    candidate: NDArray[np.floating],
    actual: NDArray[np.floating],
    groups: NDArray[np.intp],
    *,
    baseline: NDArray[np.floating] | None,
    against: str = "best_single",
    confidence: float = 0.95,
    seed: int = 0,
    seen: bool = False,
    left_out: int | None = None,
) -> Verdict:
    """Compare a candidate with what serves now, on the same resampled prompts.

    The figure is that of `figure_of`. Under APGR a fixed choice is a point of the curve, and the chord between
    weak and strong (0.5) is what any coin reaches, so that the baseline of a pair without a current router is 0.5.

    Args:
        candidate: shape (n, labels), scores.
        actual: shape (n, labels), 0..1.
        groups: shape (n,), copies of a prompt.
        baseline: scores of the current router, or None for the best fixed choice.
        against: what to call the baseline.
        confidence: coverage of the two-sided interval.
        seed: of the bootstrap.
        seen: whether the candidate was fitted on these prompts; then no figure lets it pass.
        left_out: how many prompts were, and are not among these; None where nobody has looked.

    Raises:
        TrainingError: TRAINING_ARGUMENT.
    """
    if not MINIMUM_CONFIDENCE <= confidence < 1:
        raise TrainingError("TRAINING_ARGUMENT", f"confidence {confidence} is not within {MINIMUM_CONFIDENCE} to 1")
    figure = figure_of(actual)
    fixed = np.zeros(actual.shape)
    fixed[:, int(np.argmax(np.nanmean(actual, axis=0)))] = 1.0

    def gain(rows: NDArray[np.intp]) -> Mapping[str, float]:
        if baseline is not None:
            other = objective(baseline[rows], actual[rows], figure)
        else:
            other = 0.5 if figure == "apgr" else objective(fixed[rows], actual[rows], figure)
        return {"gain": objective(candidate[rows], actual[rows], figure) - other}

    value = gain(np.arange(len(actual)))["gain"]
    low, high = intervals(gain, groups, seed=seed, level=confidence)["gain"]
    passed = low > 0 and not seen
    return Verdict(passed, against, figure, value, (low, high), confidence, len(actual), seen, left_out)


def package(router: ArtifactFiles, verdict: Verdict, *, override: str | None = None) -> ArtifactFiles:
    """The router with the gate's verdict on record in `router.yaml`, ready for `appliance artifact sign`.

    Args:
        router: the fitted router; a signature on it is dropped, since the metadata changes.
        verdict: of `judge`.
        override: who lets it pass in spite of the verdict, and why; it stands in the metadata for ever.

    Raises:
        TrainingError: TRAINING_GATE where it does not pass and nobody answers for it.
    """
    reason = (override or "").strip()
    if not verdict.passed and not reason:
        cause = f"the router does not beat {verdict.against} with confidence"
        if verdict.seen_in_training:
            cause = (
                "the router was fitted on much of this data (--fitted-on leaves that out): the figures prove nothing"
            )
        raise TrainingError("TRAINING_GATE", cause, **_evidence(verdict))
    name = METADATA_NAMES["router"]
    metadata = yaml.safe_load(router.files[name])
    metadata["evaluation"] = {**metadata["evaluation"], "gate": verdict.as_dict()}
    if not verdict.passed:
        metadata["evaluation"]["gate"]["override"] = reason
    packaged = from_files({**router.files, name: yaml_bytes(metadata)})
    load_router(packaged)
    return packaged


def _evidence(verdict: Verdict) -> dict[str, Any]:
    return {key: value for key, value in verdict.as_dict().items() if key != "passed"}
