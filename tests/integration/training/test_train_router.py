"""The training job as the unit and the container start it: one script from what was collected to a packaged router."""

import json

import pytest

from appliance.artifact import read, router_metadata
from appliance.training.encoder_export import write_encoder
from tests.support.runbooks import Desk
from tests.support.training import rows, tiny_encoder_artifact
from tests.unit.training.test_extract import lines, otlp

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path):
    prefix = tmp_path / "appliance"
    (prefix / "etc" / "training" / "traces").mkdir(parents=True)
    (prefix / "state").mkdir()
    write_encoder(tiny_encoder_artifact(), prefix / "etc" / "encoder")
    return Desk(tmp_path, prefix)


def collect(desk, made, name="week-1.jsonl"):
    """Judged traffic: one model answered each prompt, by the toss of a coin that the gateway recorded."""
    spans = []
    for number, row in enumerate(made):
        model = f"m{number % 2}"
        spans.append(otlp(
            number + 1, litellm__call_id=f"{name}-{number}", llm__routing__selected_model=model, router__propensity=0.5,
            gen_ai__input__messages=json.dumps([{"role": "user", "content": row["query"]}]),
            judge__score=float(row["scores"][model]) if model == "m1" else 0.6,
        ))  # fmt: skip
    lines(desk.prefix / "etc" / "training" / "traces" / name, spans)


def test_one_run_leaves_a_packaged_router_that_beat_the_best_single(desk):
    collect(desk, rows(400))
    said = desk.done("train-router", "default", "--strategy", "knn")
    assert "would run" in said
    assert not list(desk.prefix.glob("state/training/**/packaged"))
    said = desk.done("train-router", "default", "--strategy", "knn", "--apply")
    (packaged,) = desk.prefix.glob("state/training/default/*/packaged")
    gate = router_metadata(read(packaged)).evaluation["gate"]
    assert gate["passed"]
    assert f"next: appliance artifact sign {packaged}" in said


def test_a_router_that_does_not_earn_its_place_ends_there(desk):
    noise = [{**row, "scores": {"m0": 0, "m1": number // 2 % 2}} for number, row in enumerate(rows(200))]
    collect(desk, noise)
    run = desk("train-router", "default", "--strategy", "knn", "--apply")
    assert run.returncode == 1
    assert "TRAINING_GATE" in run.stderr
    assert not list(desk.prefix.glob("state/training/**/packaged"))


def test_without_a_source_nothing_is_begun(desk):
    run = desk("train-router", "default", "--apply")
    assert run.returncode == 1
    assert "holds no source" in run.stderr
