"""From a data file to examples: read, embed, group copies."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from appliance.errors import TrainingError
from appliance.routers.encoder import Encoder
from appliance.training.arithmetic import one_thread
from appliance.training.embedding import embed
from appliance.training.examples import Examples
from appliance.training.outcomes import MINIMUM_PROMPTS, Dataset
from appliance.training.progress import Progress, silent
from appliance.training.reward_model import is_logged, predicted_rewards, pseudo_outcomes
from appliance.training.splits import near_groups

MINIMUM_DIFFERENT = 5  # groups of near copies; each fold needs one


@one_thread()
def prepare(dataset: Dataset, encoder: Encoder, *, cache: Path | None, progress: Progress = silent) -> Examples:
    """Embed a dataset and group copies of prompts.

    Args:
        dataset: outcomes; prompts without text are left out.
        encoder: the encoder that will serve.
        cache: folder of remembered embeddings.
        progress: told of the share embedded.

    Raises:
        TrainingError: TRAINING_DATA_EMPTY.
    """
    dataset = dataset.with_text()
    if len(dataset) < MINIMUM_PROMPTS:
        raise TrainingError("TRAINING_DATA_EMPTY", f"only {len(dataset)} prompts hold text")
    prompts = embed(encoder, dataset.queries, cache=cache, progress=progress)
    groups, estimated = near_groups(prompts), None
    different = len(np.unique(groups))
    if different < MINIMUM_DIFFERENT:
        raise TrainingError(
            "TRAINING_DATA_EMPTY", f"of {len(dataset)} prompts only {different} are no copies of another"
        )
    if is_logged(dataset.scores):
        expected = predicted_rewards(prompts.embeddings, dataset.scores, groups)
        estimated = pseudo_outcomes(dataset.scores, dataset.propensities, expected)
    return Examples(dataset.models, prompts, dataset.scores, groups, dataset.tasks, estimated)


def default_name(data: Path) -> str:
    """A router name made of the data file's name."""
    slug = re.sub(r"[^a-z0-9]+", "-", data.name.split(".")[0].lower()).strip("-")
    return slug[:64].strip("-") or "router"


def default_version(created: datetime, data_digest: str) -> str:
    """A version that tells the data apart: day of creation and the beginning of the data's digest."""
    return f"{created:%Y%m%d}-{data_digest[:8]}"


def default_created(data: Path, environment: dict[str, str]) -> datetime:
    """The time to record: SOURCE_DATE_EPOCH, or when the data was last changed, so that equal inputs give equal bytes.

    Raises:
        TrainingError: TRAINING_ARGUMENT.
    """
    epoch = environment.get("SOURCE_DATE_EPOCH")
    try:
        seconds = int(epoch) if epoch else int(data.stat().st_mtime)
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise TrainingError("TRAINING_ARGUMENT", f"SOURCE_DATE_EPOCH {epoch!r} is not a time") from None
