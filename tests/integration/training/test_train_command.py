"""`appliance train` as a data scientist types it, with the real model and real outcomes."""

import gzip
import itertools
import json

import pytest
from typer.testing import CliRunner

from appliance.artifact import read, router_metadata
from appliance.cli.main import app
from appliance.errors import TrainingError
from appliance.routers.loading import load_router
from appliance.training.encoder_export import Fidelity, export_encoder, write_encoder
from tests.support.training import NINE, PAIR

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    write_encoder(export_encoder(), folder)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def train(home, tmp_path, monkeypatch):
    """Type a command, in this process: to import what trains takes longer than most of what is typed."""
    monkeypatch.chdir(tmp_path)
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}

    def run(*arguments, status=0):
        done = CliRunner().invoke(app, ["train", *map(str, arguments), "--json"], env=environment)
        assert done.exit_code == status, f"{done.output}\n{done.exception!r}"
        return json.loads(done.stdout)

    return run


def test_the_encoders_export_is_the_same_each_time_and_close_to_the_original(encoder):
    first = read(encoder)
    again = export_encoder()
    assert again.digest == first.digest
    names = b"site-packages", b"/home/", b"/root/"
    assert not [name for name in names if name in first.files["network.onnx"]]


def test_an_export_that_strays_from_the_original_is_refused():
    with pytest.raises(TrainingError) as refused:
        export_encoder(fidelity=Fidelity(mean=0.9999))
    assert refused.value.code == "TRAINING_FIDELITY"
    assert refused.value.evidence["cosine_mean"] > 0.98


def first(count, sample, folder):
    """The first rows of a sample: embedding them all takes longer than everything else."""
    with gzip.open(sample, "rt") as rows:
        (folder / "sample.jsonl").write_text("".join(itertools.islice(rows, count)))
    return folder / "sample.jsonl"


def test_from_data_to_a_gated_router(train, encoder, tmp_path):
    split = train("prepare", "--data", first(600, PAIR, tmp_path), "--out", "split", "--encoder", encoder)
    assert split["train"]["prompts"] > 400
    options = ("--encoder", encoder, "--strategy", "knn", "--label", "gpt-4-1106-preview=openai/strong")
    fitted = train("fit", "--data", "split/train.jsonl.gz", "--out", "router", *options)
    assert fitted["strategy"] == "knn"
    again = train("fit", "--data", "split/train.jsonl.gz", "--out", "again", *options, "--name", "train")
    assert again["digest"] == fitted["digest"]
    report = train("evaluate", "router", "--data", "split/test.jsonl.gz", "--encoder", encoder, "--report", "page.html")
    figures = ("accuracy", "best_single", "oracle", "gap_closed", "apgr", "cpt20", "cpt50", "cpt80")
    for figure in figures:
        low, high = report["intervals"][figure]
        assert low <= report[figure] <= high, figure
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert report["seen_in_training"] is False
    refused = train(
        "package", "router", "--data", "split/test.jsonl.gz", "--out", "signed", "--current", "again",
        "--encoder", encoder, status=1,
    )  # fmt: skip
    assert refused["error"]["code"] in ("TRAINING_GATE", "TRAINING_ENCODER")
    packaged = train(
        "package", "router", "--data", "split/test.jsonl.gz", "--out", "signed", "--encoder", encoder,
        "--override", "E. Noether, first pilot",
    )  # fmt: skip
    metadata = router_metadata(read(tmp_path / "signed"))
    assert metadata.labels["gpt-4-1106-preview"] == "openai/strong"
    assert metadata.evaluation["gate"]["prompts"] == report["prompts"]
    assert load_router(read(tmp_path / "signed")).digest == packaged["digest"]


def test_nine_models_with_every_default(train, encoder, tmp_path):
    sample = first(250, NINE, tmp_path)
    fitted = train("fit", "--data", sample, "--out", "router", "--encoder", encoder)
    assert set(fitted["evaluation"]["compared"]) == {"forest", "knn", "terms", "ensemble"}
    report = train("evaluate", "router", "--data", sample, "--encoder", encoder)
    assert report["seen_in_training"] is True
    assert len(report["chosen"]) == 9


def test_a_folder_that_is_there_is_never_overwritten(train, encoder, tmp_path):
    fit = ("fit", "--data", first(100, PAIR, tmp_path), "--out", "router", "--encoder", encoder, "--strategy", "ridge")
    train(*fit)
    refused = train(*fit, status=1)
    assert refused["error"]["code"] == "FILE_EXISTS"
    refused = train("fit", "--data", PAIR, "--out", "other", "--strategy", "oracle", status=1)
    assert refused["error"]["code"] == "TRAINING_ARGUMENT"
