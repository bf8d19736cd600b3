"""Logged decisions of a data file, and what a router would have earned on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from appliance.artifact import ArtifactFiles
from appliance.errors import TrainingError
from appliance.routers.loading import load_router
from appliance.routers.prompt import clean
from appliance.training.embedding import embed, find_encoder, open_encoder
from appliance.training.off_policy import Logged, estimate, greedy
from appliance.training.outcomes import read_outcomes
from appliance.training.progress import Progress, silent
from appliance.training.reward_model import predicted_rewards
from appliance.training.splits import near_groups

Row = tuple[str, int, float, float]  # prompt, column, reward, propensity


def value_of(
    artifact: ArtifactFiles,
    data: Path,
    *,
    encoder_directory: Path | None,
    cache: Path,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Estimate a router's value from decisions that recorded their propensity.

    The doubly robust estimate rests on a reward model of its own, fitted on this traffic but never on the prompt it
    predicts.
    A router fitted on this very traffic is valued too high by all three; keep traffic aside.

    Args:
        artifact: the router.
        data: outcomes with one score and a propensity each; others are left out and counted.
        encoder_directory: where the encoder is, or None to find the router's own.
        cache: the user's cache.
        seed: of the bootstrap.
        progress: told of each step.

    Raises:
        TrainingError: TRAINING_DATA_EMPTY, TRAINING_ENCODER.
    """
    router = load_router(artifact)
    labels = router.metadata.labels
    column = {name: n for n, pair in enumerate(labels.items()) for name in pair}
    rows, left_out = _rows(data, column)
    if not rows:
        raise TrainingError("TRAINING_DATA_EMPTY", "no outcome has one model of the router and a propensity")
    digest = router.metadata.encoder_digest
    encoder = open_encoder(find_encoder(directory=encoder_directory, cache=cache, digest=digest, progress=progress))
    prompts = embed(encoder, [row[0] for row in rows], cache=cache, progress=progress)
    logged = Logged(
        np.array([row[1] for row in rows], np.intp),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], np.float64),
        near_groups(prompts),
    )
    seen = np.full((len(rows), len(labels)), np.nan)
    seen[np.arange(len(rows)), logged.action] = logged.reward
    expected = predicted_rewards(prompts.embeddings, seen, logged.groups, seed=seed)
    found, diagnostics = estimate(logged, greedy(router.scores(prompts)), expected, seed=seed)
    return {
        "router": f"{router.metadata.name} {router.metadata.version}",
        **{name: round(each.value, 4) for name, each in found.items()},
        "intervals": {name: [round(edge, 4) for edge in each.interval] for name, each in found.items()},
        "diagnostics": {name: round(value, 4) for name, value in diagnostics.items()},
        "left_out": left_out,
    }


def _rows(data: Path, column: dict[str, int]) -> tuple[list[Row], int]:
    rows: list[Row] = []
    left_out = 0
    for outcome, _ in read_outcomes(data):
        model, score = next(iter(outcome.scores.items()))
        prompt = clean(outcome.query)
        if len(outcome.scores) != 1 or outcome.propensity is None or model not in column or not prompt:
            left_out += 1
            continue
        rows.append((prompt, column[model], score, outcome.propensity))
    return rows, left_out
