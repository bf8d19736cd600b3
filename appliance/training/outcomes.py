"""Training outcomes: what each model scored on each prompt, one JSON object a line (`.jsonl`, `.jsonl.gz`).

Fields: `query`, `scores` {model: 0..1}, optional `query_id`, `task`, `costs` {model: USD}, `latencies_ms` {model: ms},
`first_token_ms` {model: ms}, `retries` {model: attempts beyond the first}, `errors` {model: share that failed},
`timestamp` (RFC 3339), `propensity` (chance with which the logged model was chosen), `lineage` (where it was read).
Fields of other names are ignored and counted.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, TrainingError
from appliance.files import translated
from appliance.routers.prompt import clean

MAX_LINE_BYTES = 16 * 1024**2  # bytes
MINIMUM_PROMPTS = 20

Score = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Model = Annotated[str, Field(min_length=1, max_length=256)]


class Outcome(BaseModel):
    """One prompt and what each model scored on it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    query: str
    scores: Annotated[dict[Model, Score], Field(min_length=1)]
    query_id: str | None = None
    task: str | None = None
    costs: dict[Model, Amount] = {}
    latencies_ms: dict[Model, Amount] = {}
    first_token_ms: dict[Model, Amount] = {}
    retries: dict[Model, Amount] = {}
    errors: dict[Model, Score] = {}
    timestamp: datetime | None = None
    propensity: Annotated[float, Field(gt=0, le=1)] | None = None
    lineage: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Outcomes as arrays, in the order of the file.

    Attributes:
        models: sorted by mean score, best first; the order of every column.
        queries: cleaned prompt texts.
        tasks: the task of each prompt, or the empty string.
        scores: shape (n, models), 0..1, NaN where a model was not scored.
        costs: shape (n, models), USD a request, NaN where unknown.
        latencies_ms: shape (n, models), NaN where unknown.
        propensities: shape (n,), chance with which the one scored model was chosen, NaN where nobody recorded it.
        timestamps: seconds since 1970, NaN where unknown.
        digest: SHA-256 of the outcomes (canonical form), whatever file they came in.
        ignored: names of unknown fields -> how often they stood there.
    """

    models: tuple[str, ...]
    queries: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: NDArray[np.float32]
    costs: NDArray[np.float32]
    latencies_ms: NDArray[np.float32]
    propensities: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    digest: str
    ignored: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: NDArray[np.intp]) -> Dataset:
        """The rows named, as a dataset of their own (models and their order stay)."""
        return replace(
            self,
            queries=tuple(self.queries[i] for i in rows),
            tasks=tuple(self.tasks[i] for i in rows),
            scores=self.scores[rows],
            costs=self.costs[rows],
            latencies_ms=self.latencies_ms[rows],
            propensities=self.propensities[rows],
            timestamps=self.timestamps[rows],
        )

    def with_text(self) -> Dataset:
        """Without the prompts of which cleaning left nothing."""
        return self.take(np.array([row for row, query in enumerate(self.queries) if query], np.intp))

    def columns(self, models: tuple[str, ...]) -> Dataset:
        """The same prompts with these models only, in this order.

        Raises:
            TrainingError: TRAINING_LABELS.
        """
        missing = [model for model in models if model not in self.models]
        if missing:
            raise TrainingError("TRAINING_LABELS", "the data scores not all of the models", missing=missing[:20])
        order = [self.models.index(model) for model in models]
        return replace(
            self,
            models=models,
            scores=self.scores[:, order],
            costs=self.costs[:, order],
            latencies_ms=self.latencies_ms[:, order],
        )


def read_lines(path: Path, *, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Lines of a plain or gzip file, numbered from 1; a line is bounded, so that memory is.

    Raises:
        FileError: FILE_MISSING, FILE_PERMISSION, FILE_NOT_REGULAR.
        TrainingError: TRAINING_DATA for a damaged gzip stream or an endless line.
    """
    with translated(path), path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        number = 0
        while True:
            try:
                line = stream.readline(max_bytes + 1)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise TrainingError(
                    "TRAINING_DATA", f"{path.name}: damaged gzip stream: {error}", after_line=number
                ) from None
            if not line:
                return
            number += 1
            if len(line) > max_bytes:
                raise TrainingError("TRAINING_DATA", f"{path.name}: line {number} is longer than allowed", line=number)
            if line.strip():
                yield number, line


def read_outcomes(path: Path) -> Iterator[tuple[Outcome, list[str]]]:
    """Outcomes of a file, one at a time, each with the names of its unknown fields.

    Raises:
        TrainingError: TRAINING_DATA, naming the line.
    """
    for number, line in read_lines(path):
        try:
            value: Any = documents.read_json(line, what=f"{path.name} line {number}", max_bytes=MAX_LINE_BYTES)
            outcome = documents.validate(Outcome, value, what=f"{path.name} line {number}")
        except DocumentError as error:
            raise TrainingError("TRAINING_DATA", error.cause, line=number) from None
        yield outcome, [name for name in value if name not in Outcome.model_fields]


def load_dataset(path: Path) -> Dataset:
    """Read a file of outcomes into arrays.

    Raises:
        TrainingError: TRAINING_DATA, TRAINING_DATA_EMPTY.
    """
    ignored: Counter[str] = Counter()

    def outcomes() -> Iterator[Outcome]:
        for outcome, unknown in read_outcomes(path):
            ignored.update(unknown)
            yield outcome

    dataset = from_outcomes(outcomes())
    dataset.ignored.update(ignored)
    return dataset


def from_outcomes(outcomes: Iterable[Outcome]) -> Dataset:
    """Collect outcomes into arrays.

    Raises:
        TrainingError: TRAINING_DATA_EMPTY for fewer than 20 prompts or fewer than 2 models.
    """
    rows = list(outcomes)
    names = sorted({model for row in rows for model in row.scores})
    if len(rows) < MINIMUM_PROMPTS or len(names) < 2:
        raise TrainingError("TRAINING_DATA_EMPTY", f"{len(rows)} prompts, {len(names)} models", models=names[:20])
    scores = _matrix([row.scores for row in rows], names)
    mean: NDArray[np.float64] = np.asarray(np.nanmean(scores, axis=0, dtype=np.float64))
    order = sorted(range(len(names)), key=lambda column: (-mean[column], names[column]))
    models = tuple(names[column] for column in order)
    return Dataset(
        models,
        tuple(clean(row.query) for row in rows),
        tuple(row.task or "" for row in rows),
        scores[:, order],
        _matrix([row.costs for row in rows], models),
        _matrix([row.latencies_ms for row in rows], models),
        np.array([np.nan if row.propensity is None else row.propensity for row in rows], np.float64),
        np.array([_seconds(row.timestamp) for row in rows], np.float64),
        digest_of(rows),
    )


def digest_of(rows: Iterable[Outcome]) -> str:
    """SHA-256 of outcomes in their canonical form, whatever file they stand in."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(documents.write_json(row.model_dump(mode="json", exclude_defaults=True)))
    return digest.hexdigest()


def _matrix(rows: list[dict[str, float]], names: Iterable[str]) -> NDArray[np.float32]:
    return np.array([[row.get(name, np.nan) for name in names] for row in rows], np.float32)


def _seconds(timestamp: datetime | None) -> float:
    if timestamp is None:
        return float("nan")
    return (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)).timestamp()
