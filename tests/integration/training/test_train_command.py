"""`appliance train` as a data scientist types it, with the real model and real outcomes."""

import gzip
import itertools
import json
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from appliance.artifact import read, router_metadata
from appliance.cli.main import app
from appliance.errors import TrainingError
from appliance.registry.postgres import parameters
from appliance.routers.loading import load_router
from appliance.training.encoder_export import Fidelity, export_encoder, write_encoder
from tests.integration.training.test_spend_postgres import TABLE
from tests.support.guides import Guide, filled
from tests.support.jaeger import Trace, jaeger
from tests.support.training import NINE, PAIR
from tests.support.trust import make_authority
from tests.unit.training.test_extract import lines, otlp

pytestmark = [pytest.mark.slow, pytest.mark.server]


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
    assert report["left_out"] is None
    # a file that is the training data and the set aside prompts in one is neither: what was seen is left out
    with gzip.open(tmp_path / "both.jsonl.gz", "wb") as both:
        both.write(
            b"".join(gzip.decompress((tmp_path / f"split/{part}.jsonl.gz").read_bytes()) for part in ("train", "test"))
        )
    train_file = ("--fitted-on", "split/train.jsonl.gz", "--encoder", encoder)
    again = train("evaluate", "router", "--data", "both.jsonl.gz", *train_file)
    assert (again["left_out"], again["prompts"]) == (split["train"]["prompts"], report["prompts"])
    assert again["accuracy"] == report["accuracy"]
    for data, given, code in (("train", "train", "TRAINING_DATA"), ("test", "test", "TRAINING_ARGUMENT")):
        asked = ("--data", f"split/{data}.jsonl.gz", "--fitted-on", f"split/{given}.jsonl.gz", "--encoder", encoder)
        assert train("evaluate", "router", *asked, status=1)["error"]["code"] == code
    refused = train(
        "package", "router", "--data", "split/test.jsonl.gz", "--out", "signed", "--current", "again",
        "--encoder", encoder, status=1,
    )  # fmt: skip
    assert refused["error"]["code"] in ("TRAINING_GATE", "TRAINING_ENCODER")
    # nobody has to name the training data for the gate to know it: the router carries a sketch of its prompts
    hidden = train("package", "router", "--data", "both.jsonl.gz", "--out", "signed", "--encoder", encoder, status=1)
    assert hidden["error"]["code"] == "TRAINING_GATE"
    assert hidden["error"]["evidence"]["seen_in_training"] is True
    packaged = train(
        "package", "router", "--data", "both.jsonl.gz", "--out", "signed", *train_file,
        "--override", "E. Noether, first pilot",
    )  # fmt: skip
    metadata = router_metadata(read(tmp_path / "signed"))
    assert metadata.labels["gpt-4-1106-preview"] == "openai/strong"
    assert metadata.training_data_digest == split["train"]["data_digest"]
    assert metadata.evaluation["gate"]["prompts"] == report["prompts"]
    assert metadata.evaluation["gate"]["left_out"] == split["train"]["prompts"]
    assert load_router(read(tmp_path / "signed")).digest == packaged["digest"]


def test_nine_models_with_every_default(train, encoder, tmp_path):
    sample = first(250, NINE, tmp_path)
    fitted = train("fit", "--data", sample, "--out", "router", "--encoder", encoder)
    assert set(fitted["evaluation"]["compared"]) == {"forest", "knn", "terms", "ensemble"}
    report = train("evaluate", "router", "--data", sample, "--encoder", encoder)
    assert report["seen_in_training"] is True
    assert len(report["chosen"]) == 9
    refused = train("package", "router", "--data", sample, "--out", "packaged", "--encoder", encoder, status=1)
    assert refused["error"]["code"] == "TRAINING_GATE"
    assert "fitted on" in refused["error"]["cause"]


def test_a_folder_that_is_there_is_never_overwritten(train, encoder, tmp_path):
    fit = ("fit", "--data", first(100, PAIR, tmp_path), "--out", "router", "--encoder", encoder, "--strategy", "ridge")
    train(*fit)
    refused = train(*fit, status=1)
    assert refused["error"]["code"] == "FILE_EXISTS"
    refused = train("fit", "--data", PAIR, "--out", "other", "--strategy", "oracle", status=1)
    assert refused["error"]["code"] == "TRAINING_ARGUMENT"


# the guide, typed as it stands there

START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
COMMAND = Path(sys.executable).with_name("appliance")
TASKS = {  # each model is good at one of them
    "fast": "Translate the word number {} into French, please.",
    "deep": "Prove by induction that the sum of the first {} odd numbers is a square.",
}


def judged(number: int, task: str, model: str) -> dict:
    """A span of a call that was judged."""
    prompt = json.dumps([{"role": "user", "content": TASKS[task].format(number)}])
    score = 0.9 if task == model else 0.2
    named = {"litellm__call_id": f"call-{number}", "gen_ai__request__model": model, "gen_ai__input__messages": prompt}
    return otlp(number, **named, judge__score=score)


@pytest.fixture
def here(tmp_path, encoder, monkeypatch):
    """The data scientist's folder: an authority, the project's encoder, and nothing else."""
    monkeypatch.chdir(tmp_path)
    make_authority(tmp_path / "ca" / "authority")
    shutil.copytree(encoder, tmp_path / "vendor" / "models" / "encoder")
    return tmp_path


def sources(here: Path, authority, database, server) -> None:
    """The four files that the page names beside the traces."""
    certificate, key, ca = authority.issue("training", client=True).write(here, "client")
    told = {"url": f"https://127.0.0.1:{server.port}", "service": "litellm", "ca_file": str(ca),
            "since": START.isoformat(), "client_certificate": str(certificate), "client_key": str(key)}  # fmt: skip
    (here / "jaeger.yaml").write_text(yaml.safe_dump({"jaeger": told}))
    settings = database.settings(here)
    (here / "spend.yaml").write_text(yaml.safe_dump({"postgres": settings.model_dump(mode="json", exclude_none=True)}))
    with psycopg.connect(**parameters(settings), autocommit=True) as connection:
        connection.execute(TABLE)
        connection.execute('TRUNCATE public."LiteLLM_SpendLogs"')
        connection.execute(
            'INSERT INTO public."LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", "endTime", model, '
            "metadata, status) VALUES ('chatcmpl-1', 'acompletion', 0.004, now(), now(), 'fast', %s, 'success')",
            (Jsonb({"litellm_call_id": "call-1"}),),
        )
    (here / "objects").mkdir()
    (here / "objects" / "2.json").write_text(
        json.dumps({"id": "chatcmpl-2", "litellm_call_id": "call-2", "spend": 0.5})
    )
    (here / "s3.yaml").write_text(yaml.safe_dump({"registry": {"home": "directory", "path": str(here / "objects")}}))


def test_the_guide_from_spans_and_spend_logs_to_a_signed_router(here, authority, database):
    guide = Guide("data-scientist", {"HOME": str(here), "XDG_CACHE_HOME": str(here / "cache")})
    tasks = list(TASKS)
    spans = [judged(n, tasks[n % 2], tasks[n // 2 % 2]) for n in range(1, 41)]
    lines(here / "live.jsonl", spans[:20])
    lines(here / "jaeger.json", spans[20:])
    question = json.dumps([{"role": "user", "content": TASKS["fast"].format(99)}])
    attributes = {"litellm.call_id": "call-99", "gen_ai.request.model": "fast", "gen_ai.input.messages": question,
                  "judge.score": 1.0}  # fmt: skip
    with jaeger([Trace(f"{99:032x}", int(START.timestamp() * 1e6) + 10**9, attributes)],
                *authority.issue("127.0.0.1").write(here, "jaeger")) as server:  # fmt: skip
        sources(here, authority, database, server)
        card = guide.type("appliance train extract")
    assert card["written"] == 41
    assert card["read"]["spend_rows_read"] == card["read"]["spend_objects_read"] == 1
    with gzip.open("outcomes.jsonl.gz", "rt") as rows:
        assert len(rows.readlines()) == 41

    for name, numbers in (("outcomes", range(100, 340)), ("other", range(400, 520))):  # both models' answers known
        with gzip.open(f"{name}.jsonl.gz", "wt") as rows:
            for number in numbers:
                task = tasks[number % 2]
                scores = {model: 0.9 if model == task else 0.2 for model in TASKS}
                rows.write(json.dumps({"query": TASKS[task].format(number), "scores": scores}) + "\n")
    assert guide.type("appliance train fit")["evaluation"]["compared"]
    report = guide.type("appliance train evaluate")
    assert report["accuracy"] > report["best_single"]
    assert "<svg" in (here / "page.html").read_text()
    guide.type("appliance train package")
    gate = router_metadata(read(here / "candidate")).evaluation["gate"]
    assert (gate["prompts"], gate["left_out"]) == (report["prompts"], 0)
    signed = guide.type("appliance artifact sign")
    assert signed["digest"] == read(here / "candidate").digest
    guide.type("appliance explain", {"CODE": "TRAINING_GATE"})

    certificate, key, ca = authority.issue("127.0.0.1").write(here, "server")
    named = {
        "live.jsonl": here / "received.jsonl",
        "ADDRESS": "127.0.0.1",
        "--certificate C": f"--certificate {certificate}",
        "--key K": f"--key {key}",
        "--client-ca CA": f"--client-ca {ca}",
    }
    line = filled(guide.line("appliance train receive"), named)
    receiver = subprocess.Popen(
        [COMMAND, *line.split()[1:], "--http-port", "0", "--grpc-port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert receiver.stdout is not None
        first = receiver.stdout.readline()
        assert "127.0.0.1" in first, first
    finally:
        receiver.send_signal(signal.SIGTERM)
    assert receiver.wait(200) == 0
    guide.all_typed({})
