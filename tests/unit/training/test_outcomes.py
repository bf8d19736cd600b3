"""Training data: read strictly, streamed, in an order that does not depend on the file."""

import gzip
import json

import numpy as np
import pytest

from appliance.errors import FileError, TrainingError
from appliance.training.outcomes import load_dataset, read_outcomes
from tests.support.training import NINE, PAIR, rows, write


def test_plain_and_gzipped_lines_are_the_same_data(tmp_path):
    plain = write(tmp_path / "a.jsonl", rows(30))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_dataset(plain).digest == load_dataset(packed).digest


def test_models_stand_best_first():
    data = load_dataset(NINE)
    means = np.nanmean(data.scores, axis=0)
    assert (np.diff(means) <= 1e-6).all()
    assert len(data.models) == 9
    assert load_dataset(PAIR).models[0] == "gpt-4-1106-preview"


def test_a_model_without_a_score_is_unknown_and_not_zero(tmp_path):
    made = rows(30)
    del made[0]["scores"]["m1"]
    assert np.isnan(load_dataset(write(tmp_path / "a.jsonl", made)).scores[0, 1])


def test_fields_that_nobody_knows_are_counted(tmp_path):
    made = [{**row, "mood": 1} for row in rows(30)]
    assert load_dataset(write(tmp_path / "a.jsonl", made)).ignored == {"mood": 30}


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", '{"query": "x"}', '{"query": "x", "scores": {}}', '{"query": "x", "scores": {"m": 1.5}}',
        '{"query": "x", "scores": {"m": NaN}}', '{"query": "x", "query": "y", "scores": {"m": 1}}',
        '{"query": 3, "scores": {"m": 1}}', '{"query": "x", "scores": {"m": 1}, "costs": {"m": -1}}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_outcome_is_refused_by_its_number(tmp_path, line):
    path = write(tmp_path / "a.jsonl", rows(30))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(TrainingError) as refused:
        load_dataset(path)
    assert refused.value.code == "TRAINING_DATA"
    assert refused.value.evidence["line"] == 31


def test_a_damaged_gzip_is_refused(tmp_path):
    packed = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(write(tmp_path / "a.jsonl", rows(200)).read_bytes())
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError) as refused:
        load_dataset(packed)
    assert refused.value.code == "TRAINING_DATA"


def test_too_little_to_learn_from_is_refused(tmp_path):
    for made in (rows(10), rows(30, models=1)):
        with pytest.raises(TrainingError) as refused:
            load_dataset(write(tmp_path / "a.jsonl", made))
        assert refused.value.code == "TRAINING_DATA_EMPTY"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError) as refused:
        load_dataset(tmp_path / "none.jsonl")
    assert refused.value.code == "FILE_MISSING"


def test_outcomes_are_streamed(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(30))
    stream = read_outcomes(path)
    first, unknown = next(stream)
    assert first.query == json.loads(path.read_text().splitlines()[0])["query"]
    assert unknown == []
