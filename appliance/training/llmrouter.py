"""LLMRouter's layout (ulab-uiuc/LLMRouter), both ways.

A folder of `routing_data.jsonl` (one row a prompt and model: `query`, `model_name`, `performance`, `embedding_id`,
optional `task_name`, `response_time` in seconds, `input_tokens`, `output_tokens`, and our own `cost`),
`query_embeddings.pt` (a tensor, row = embedding id) and `llm_data.json` (what is known of each model: `input_price` and
`output_price`, USD a million tokens, or our own `mean_cost`). The layout knows no ids, times, retries and propensities.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel

from appliance import documents
from appliance.errors import DocumentError, TrainingError
from appliance.files import read_regular
from appliance.routers.encoder import Encoder
from appliance.routers.prompt import clean
from appliance.training.embedding import embed
from appliance.training.outcomes import Amount, Outcome, read_lines
from appliance.training.writing import write_directory

ROWS, EMBEDDINGS, MODELS = "routing_data.jsonl", "query_embeddings.pt", "llm_data.json"


class Row(BaseModel):
    """One prompt and one model."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    query: str
    model_name: Annotated[str, Field(min_length=1)]
    performance: Annotated[float, Field(ge=0, le=1)]
    embedding_id: int | None = None
    task_name: str | None = None
    cost: Amount | None = None
    response_time: Amount | None = None
    input_tokens: Amount | None = None
    output_tokens: Amount | None = None


class Price(BaseModel):
    """What a model costs, USD a million tokens."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    input_price: Amount | None = None
    output_price: Amount | None = None

    def of(self, row: Row) -> float | None:
        """What a row's tokens cost; None where that is not known."""
        if self.input_price is None or self.output_price is None:
            return None
        if row.input_tokens is None or row.output_tokens is None:
            return None
        return (row.input_tokens * self.input_price + row.output_tokens * self.output_price) / 1e6


class Models(RootModel[dict[str, Price]]):
    """`llm_data.json`: what is known of each model."""


def read_rows(path: Path) -> Iterator[Outcome]:
    """Outcomes of a file of rows, or of a folder that holds one; rows of one prompt are joined, repeated ones averaged.

    Costs are the rows' own, or those of their tokens where `llm_data.json` beside them tells prices.

    Raises:
        TrainingError: TRAINING_DATA, naming the line.
    """
    file = path / ROWS if path.is_dir() else path
    prices = _prices(file.with_name(MODELS))
    found: dict[str, list[Row]] = {}
    for number, line in read_lines(file):
        try:
            value = documents.read_json(line, what=f"{file.name} line {number}")
            row = documents.validate(Row, value, what=f"{file.name} line {number}")
        except DocumentError as error:
            raise TrainingError("TRAINING_DATA", error.cause, line=number) from None
        found.setdefault(row.query, []).append(row)
    for query, rows in found.items():
        costs = [
            (row, row.cost if row.cost is not None else prices.get(row.model_name, Price()).of(row)) for row in rows
        ]
        yield Outcome(
            query=query,
            task=rows[0].task_name,
            scores=_means((row.model_name, row.performance) for row in rows),
            costs=_means((row.model_name, cost) for row, cost in costs if cost is not None),
            latencies_ms=_means(
                (row.model_name, round(row.response_time * 1e3, 9)) for row in rows if row.response_time is not None
            ),
        )


def _means(named: Iterable[tuple[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for name, value in named:
        values.setdefault(name, []).append(value)
    return {name: each[0] if len(each) == 1 else float(np.mean(each)) for name, each in values.items()}


def _prices(path: Path) -> Mapping[str, Price]:
    if not path.is_file():
        return {}
    try:
        known = documents.read_json(read_regular(path, max_bytes=documents.MAX_BYTES), what=path.name)
        return documents.validate(Models, known, what=path.name).root
    except DocumentError as error:
        raise TrainingError("TRAINING_DATA", error.cause) from None


def write_folder(outcomes: Iterable[Outcome], encoder: Encoder, directory: Path, *, cache: Path | None = None) -> int:
    """Write the layout; return the number of rows.

    Raises:
        TrainingError: TRAINING_PACKAGE where torch is not installed.
        FileError: FILE_EXISTS.
    """
    try:
        import torch
    except ImportError:
        raise TrainingError("TRAINING_PACKAGE", "torch is not installed", package="torch") from None
    kept = list(outcomes)
    prompts = embed(encoder, [clean(outcome.query) for outcome in kept], cache=cache)
    rows = [
        {
            "query": outcome.query,
            "model_name": model,
            "performance": score,
            "embedding_id": number,
            **({"task_name": outcome.task} if outcome.task else {}),
            **({"cost": outcome.costs[model]} if model in outcome.costs else {}),
            **({"response_time": outcome.latencies_ms[model] / 1e3} if model in outcome.latencies_ms else {}),
        }
        for number, outcome in enumerate(kept)
        for model, score in outcome.scores.items()
    ]
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(prompts.embeddings.copy()), buffer)
    files = {
        ROWS: b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows),
        EMBEDDINGS: buffer.getvalue(),
        MODELS: json.dumps(_models(kept), indent=1).encode(),
    }
    write_directory(directory, files)
    return len(rows)


def _models(outcomes: list[Outcome]) -> dict[str, Any]:
    names = sorted({model for outcome in outcomes for model in outcome.scores})
    costs = {name: [o.costs[name] for o in outcomes if name in o.costs] for name in names}
    return {name: {"model": name, "mean_cost": float(np.mean(c)) if c else None} for name, c in costs.items()}
