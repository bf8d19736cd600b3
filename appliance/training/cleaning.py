"""Prepare outcomes: merge copies of a prompt, split by prompt or by time without a leak, and say what was done."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance import __version__, documents
from appliance.errors import TrainingError
from appliance.files import sha256_hex
from appliance.routers.encoder import Encoder
from appliance.routers.prompt import clean
from appliance.training.embedding import embed
from appliance.training.outcomes import MINIMUM_PROMPTS, Outcome, digest_of
from appliance.training.progress import Progress, silent
from appliance.training.splits import near_groups
from appliance.training.writing import write_directory

By = Literal["prompt", "time"]


@dataclass(frozen=True)
class Prepared:
    """Two parts that share no prompt, and the card.

    Attributes:
        train, test: outcomes, one a prompt.
        card: counts, figures and digests.
    """

    train: tuple[Outcome, ...]
    test: tuple[Outcome, ...]
    card: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Write `train.jsonl.gz`, `test.jsonl.gz` and `card.json`; the folder appears whole or not at all."""
        parts = {"train.jsonl.gz": pack(self.train), "test.jsonl.gz": pack(self.test)}
        card = {**self.card, "files": {name: {"sha256": sha256_hex(data)} for name, data in parts.items()}}
        write_directory(directory, {**parts, "card.json": documents.write_json(card)})


def merge_copies(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome a prompt: what several rows say of one model is averaged; rows of other models are joined.

    Case and white space do not make another prompt. Rows keep the order of their first appearance; the propensity of
    a merged row is gone, since it belonged to one decision.
    """
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        key = " ".join(clean(outcome.query).lower().split())
        if key:
            found.setdefault(key, []).append(outcome)
    return [rows[0] if len(rows) == 1 else _merged(rows) for rows in found.values()]


def _merged(rows: Sequence[Outcome]) -> Outcome:
    def mean(maps: Iterable[dict[str, float]]) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for each in maps:
            for model, value in each.items():
                values.setdefault(model, []).append(value)
        return {model: float(np.mean(each)) for model, each in values.items()}

    def counted(scores: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
        return {model: counts.get(model, 0.0) for model in scores}  # what is not said did not happen

    return rows[0].model_copy(
        update={
            "scores": mean(row.scores for row in rows),
            "costs": mean(row.costs for row in rows),
            "latencies_ms": mean(row.latencies_ms for row in rows),
            "first_token_ms": mean(row.first_token_ms for row in rows),
            "retries": mean(counted(row.scores, row.retries) for row in rows),
            "errors": mean(counted(row.scores, row.errors) for row in rows),
            "propensity": None,
            "lineage": " + ".join(row.lineage for row in rows if row.lineage) or None,
        }
    )


def prepare_outcomes(
    outcomes: Iterable[Outcome],
    encoder: Encoder,
    *,
    by: By = "prompt",
    test_share: float = 0.2,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Merge copies, group near copies, split.

    Args:
        outcomes: as read.
        encoder: tells near copies by their vectors.
        by: `prompt` draws groups at random; `time` sets the latest aside, without what resembles an earlier prompt.
        test_share: share of the prompts to set aside, above 0 and below 1.
        seed: of the draw.
        cache: folder of remembered embeddings.
        progress: told of the share embedded.

    Raises:
        TrainingError: TRAINING_ARGUMENT, TRAINING_DATA_EMPTY.
    """
    if not 0 < test_share < 1:
        raise TrainingError("TRAINING_ARGUMENT", f"test share {test_share} is not between 0 and 1")
    read = list(outcomes)
    rows = merge_copies(read)
    if len(rows) < MINIMUM_PROMPTS:
        raise TrainingError("TRAINING_DATA_EMPTY", f"{len(rows)} different prompts")
    prompts = embed(encoder, [clean(row.query) for row in rows], cache=cache, progress=progress)
    groups = near_groups(prompts)
    aside, left_out = (
        _by_time(rows, groups, test_share) if by == "time" else (_by_prompt(groups, test_share, seed), None)
    )
    dropped = np.zeros(len(rows), bool) if left_out is None else left_out
    train = tuple(row for row, test, drop in zip(rows, aside, dropped, strict=True) if not test and not drop)
    test = tuple(row for row, test, drop in zip(rows, aside, dropped, strict=True) if test and not drop)
    card = {
        "appliance": __version__,
        "source_digest": digest_of(read),
        "rows_read": len(read),
        "prompts": len(rows),
        "rows_merged_or_empty": len(read) - len(rows),
        "groups_of_near_copies": int((np.bincount(groups) > 1).sum()),
        "split": {"by": by, "seed": seed, "test_share": test_share, "left_out_as_near_copies": int(dropped.sum())},
        "encoder_digest": encoder.digest,
        "train": _facts(train),
        "test": _facts(test),
    }
    return Prepared(train, test, card)


def _by_prompt(groups: NDArray[np.intp], share: float, seed: int) -> NDArray[np.bool_]:
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[order]
    return np.isin(groups, order[np.cumsum(sizes) <= share * len(groups)])


def _by_time(
    rows: Sequence[Outcome], groups: NDArray[np.intp], share: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The latest rows, and which of them resemble an earlier one."""
    if any(row.timestamp is None for row in rows):
        raise TrainingError("TRAINING_ARGUMENT", "a split by time needs a timestamp in every row")
    times = np.array([row.timestamp.timestamp() if row.timestamp else 0.0 for row in rows])
    aside = times > np.quantile(times, 1 - share)
    return aside, aside & np.isin(groups, groups[~aside])


def _facts(rows: Sequence[Outcome]) -> dict[str, Any]:
    models = sorted({model for row in rows for model in row.scores})
    means = {m: round(float(np.mean([row.scores[m] for row in rows if m in row.scores])), 4) for m in models}
    return {
        "prompts": len(rows),
        "data_digest": digest_of(rows),
        "tasks": len({row.task for row in rows if row.task}),
        "mean_scores": means,
        "scored": {model: sum(model in row.scores for row in rows) for model in models},
    }


def pack(rows: Iterable[Outcome]) -> bytes:
    """Outcomes as gzipped lines with stable bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
        for line in lines(rows):
            stream.write(line)
    return buffer.getvalue()


def lines(rows: Iterable[Outcome]) -> Iterator[bytes]:
    """Outcomes as JSON lines."""
    for row in rows:
        yield row.model_dump_json(exclude_defaults=True).encode() + b"\n"
