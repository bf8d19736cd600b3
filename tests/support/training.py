"""Small training data whose best choice follows from the prompt, and the tiny encoder to fit it with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from appliance.artifact import ArtifactFiles, from_files
from appliance.routers.encoder import TokenEncoder, load_encoder
from appliance.training.examples import Examples
from appliance.training.outcomes import Dataset, Outcome, from_outcomes
from appliance.training.preparing import prepare
from tests.support.routing import WORDS, encoder_files

SAMPLES = Path(__file__).parents[1] / "data"
PAIR = SAMPLES / "routing_outcomes.sample.jsonl.gz"
NINE = SAMPLES / "routing_outcomes_nine_models.sample.jsonl.gz"


def rows(count: int = 120, *, seed: int = 0, models: int = 2) -> list[dict[str, object]]:
    """Prompts that begin with `easy` (every model is right) or `hard` (only the first is), with some noise."""
    generator = np.random.default_rng(seed)
    made: list[dict[str, object]] = []
    for number in range(count):
        hard = bool(generator.random() < 0.5)
        words = " ".join(generator.choice(WORDS[3:], 6))
        scores = {f"m{m}": int((m == 0 or not hard) != (generator.random() < 0.1)) for m in range(models)}
        query = f"{'hard' if hard else 'easy'} {words} {number}"
        made.append({"query_id": str(number), "query": query, "task": "hard" if hard else "easy", "scores": scores})
    return made


def write(path: Path, made: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@cache
def tiny_encoder_artifact() -> ArtifactFiles:
    return from_files(encoder_files())


@cache
def tiny_encoder() -> TokenEncoder:
    return load_encoder(tiny_encoder_artifact())


def dataset(count: int = 120, *, seed: int = 0, models: int = 2) -> Dataset:
    return from_outcomes(Outcome.model_validate(row) for row in rows(count, seed=seed, models=models))


@cache
def examples(count: int = 120, *, seed: int = 0, models: int = 2) -> Examples:
    return prepare(dataset(count, seed=seed, models=models), tiny_encoder(), cache=None)
