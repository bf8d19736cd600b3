"""Data cleaned, split, exchanged; the report; the encoder that is looked for."""

import gzip
import json
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from appliance.artifact import from_files
from appliance.errors import TrainingError
from appliance.routers.loading import load_router
from appliance.routers.strategies import Prompts
from appliance.training import embedding, encoder_export
from appliance.training.cleaning import merge_copies, prepare_outcomes
from appliance.training.curves import aiq, by_task, cost_quality, disturbed, flip_shares, paraphrased
from appliance.training.embedding import NOWHERE, cache_directory, embed, find_encoder
from appliance.training.encoder_export import export_encoder, source_directory, write_encoder
from appliance.training.evaluate import evaluate_scores, for_router
from appliance.training.llmrouter import read_rows, write_folder
from appliance.training.outcomes import Outcome, load_dataset
from appliance.training.report import render
from appliance.training.splits import known_share, same_text_groups, sketch, unseen
from tests.support.routing import router_files
from tests.support.training import dataset, examples, rows, tiny_encoder, tiny_encoder_artifact


def outcomes(count=120, **more):
    return [Outcome.model_validate({**row, **more}) for row in rows(count)]


def test_copies_of_a_prompt_become_one_and_their_scores_the_mean():
    made = merge_copies([
        Outcome(query="What is  entropy?", scores={"a": 1.0}, propensity=0.5),
        Outcome(query="what is entropy?", scores={"a": 0.0, "b": 1.0}),
        Outcome(query="Other", scores={"a": 1.0}),
        Outcome(query="<system-reminder>noise</system-reminder>", scores={"a": 1.0}),
    ])  # fmt: skip
    assert [outcome.scores for outcome in made] == [{"a": 0.5, "b": 1.0}, {"a": 1.0}]
    assert made[0].propensity is None


def test_a_split_shares_no_prompt_and_its_files_are_the_same_each_time(tmp_path):
    first, second = (prepare_outcomes(outcomes(), tiny_encoder(), test_share=0.25) for _ in range(2))
    texts = [row.query for row in (*first.train, *first.test)]
    assert len(texts) == 120
    assert not {r.query for r in first.train} & {r.query for r in first.test}
    assert 20 < len(first.test) <= 30
    first.write(tmp_path / "a")
    second.write(tmp_path / "b")
    for name in ("train.jsonl.gz", "test.jsonl.gz", "card.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["train"]["prompts"] + card["test"]["prompts"] == 120
    for name in ("train", "test"):
        assert card[name]["data_digest"] == load_dataset(tmp_path / "a" / f"{name}.jsonl.gz").digest
    assert len(gzip.decompress((tmp_path / "a" / "train.jsonl.gz").read_bytes()).splitlines()) == len(first.train)


def test_a_split_by_time_sets_the_latest_aside():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = [row.model_copy(update={"timestamp": start + timedelta(hours=n % 28)}) for n, row in enumerate(outcomes())]
    split = prepare_outcomes(made, tiny_encoder(), by="time", test_share=0.25)
    assert max(row.timestamp for row in split.train) <= min(row.timestamp for row in split.test)
    with pytest.raises(TrainingError) as refused:
        prepare_outcomes(outcomes(), tiny_encoder(), by="time")
    assert refused.value.code == "TRAINING_ARGUMENT"


def test_too_few_prompts_are_no_data():
    with pytest.raises(TrainingError) as refused:
        prepare_outcomes(outcomes(5), tiny_encoder())
    assert refused.value.code == "TRAINING_DATA_EMPTY"


def test_llmrouters_layout_goes_out_and_comes_back(tmp_path):
    import torch

    made = outcomes(30, costs={"m0": 0.01}, latencies_ms={"m1": 1786.4494324})
    assert write_folder(made, tiny_encoder(), tmp_path / "llmrouter") == 60
    back = list(read_rows(tmp_path / "llmrouter"))
    kept = ("query", "scores", "task", "costs", "latencies_ms")
    assert [o.model_dump(include=set(kept)) for o in back] == [o.model_dump(include=set(kept)) for o in made]
    vectors = torch.load(tmp_path / "llmrouter" / "query_embeddings.pt", weights_only=True)
    assert np.allclose(vectors.numpy(), tiny_encoder().encode([o.query for o in made]))
    (tmp_path / "bad.jsonl").write_text('{"query": "x"}\n')
    with pytest.raises(TrainingError) as refused:
        list(read_rows(tmp_path / "bad.jsonl"))
    assert refused.value.code == "TRAINING_DATA"


def test_llmrouters_own_rows_tell_time_tokens_and_prices(tmp_path):
    """Fields as its data generation writes them (llmrouter/data/README.md)."""
    row = {"task_name": "gsm8k", "query": "How many?", "ground_truth": "2", "metric": "GSM8K", "choices": None,
           "task_id": None, "model_name": "m", "response": "2", "token_num": 453, "input_tokens": 449,
           "output_tokens": 4, "response_time": 1.5, "api_key_used": "", "performance": 1.0, "embedding_id": 42,
           "user_id": None}  # fmt: skip
    again = {**row, "performance": 0.0, "response_time": 2.5}
    rows = [row, again, {**row, "model_name": "n", "input_tokens": None}]
    (tmp_path / "routing_data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    prices = {name: {"size": "7B", "input_price": 0.2, "output_price": 0.3} for name in ("m", "n")}
    (tmp_path / "llm_data.json").write_text(json.dumps(prices))
    (made,) = read_rows(tmp_path)
    assert made.scores == {"m": 0.5, "n": 1.0}
    assert made.latencies_ms == {"m": 2000.0, "n": 1500.0}
    assert made.costs == {"m": pytest.approx((449 * 0.2 + 4 * 0.3) / 1e6)}
    (tmp_path / "llm_data.json").write_text('{"m": {"input_price": -1}}')
    with pytest.raises(TrainingError) as refused:
        list(read_rows(tmp_path))
    assert refused.value.code == "TRAINING_DATA"


def test_the_report_is_one_page_that_asks_nobody_and_runs_nothing():
    shown = examples()
    predicted = shown.scores + np.random.default_rng(0).random(shown.scores.shape).astype(np.float32)
    figures = evaluate_scores(predicted, shown)
    tasks = [{"task": "<script>alert(1)</script>", "prompts": 3, "accuracy": 0.5, "best_single": None, "oracle": 1.0,
              "intervals": {"accuracy": [0.4, 0.6], "best_single": [None, None], "oracle": [1, 1]}}]  # fmt: skip
    page = render(figures, title="a < b", tasks=tasks, curve=[(0, 0.2), (1, 0.9)], names="cost & score")
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", page)
    assert "&lt;script&gt;" in page
    assert "<polyline" in page
    assert "default-src 'none'" in page
    plain = render(figures, title="t", tasks=[], curve=[], names="")
    assert "No cost is known" in plain
    assert "prove nothing" not in plain
    seen = render({**figures, "seen_in_training": True}, title="t", tasks=[], curve=[], names="")
    assert seen.index("prove nothing") < seen.index("<table")


def test_the_cost_curve_rises_from_the_cheapest_to_the_best():
    actual = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], float)
    knob = cost_quality(actual + 1e-3, actual, np.array([10.0, 1.0]))
    curve = knob.curve()
    assert curve[0] == (1.0, 0.25)
    assert curve[-1][1] == 0.75
    assert 0.25 < aiq(curve) <= 0.75
    assert knob.curve(np.array([1, 1])) == [(1.0, 0.0), (10.0, 1.0)]


def test_figures_by_task_and_flips():
    shown = examples()
    table = by_task(shown.scores, shown.scores, shown.tasks, shown.groups, 0)
    for row in table:
        assert set(row["intervals"]) == {"accuracy", "best_single", "oracle"}
        assert all(low <= row[name] <= high for name, (low, high) in row["intervals"].items())
    assert {row["task"] for row in table} == {"easy", "hard"}
    assert sum(row["prompts"] for row in table) == 120
    unscored = shown.scores.copy()
    unscored[np.array(shown.tasks) == "hard", 0] = np.nan
    (hard,) = (row for row in by_task(shown.scores, unscored, shown.tasks, shown.groups, 0) if row["task"] == "hard")
    assert (hard["best_single"], hard["intervals"]["best_single"]) == (None, [None, None])
    apart = np.arange(2)
    assert flip_shares(np.eye(2), np.eye(2), apart) == (0, (0, 0))
    assert flip_shares(np.eye(2), np.eye(2)[::-1], apart) == (1, (1, 1))


def test_noise_changes_letters_and_a_paraphrase_words():
    generator = np.random.default_rng(0)
    question = "Find the total of 3 and 4. Which number is it?"
    noisy = {disturbed(question, generator) for _ in range(40)}
    assert len(noisy) > 3
    assert all(sorted(text.replace(" ", "").lower()) == sorted(question.replace(" ", "").lower()) for text in noisy)
    said = {paraphrased(question, generator) for _ in range(40)}
    assert len(said) > 3
    assert any("overall" in text for text in said)
    assert all("3 and 4" in text for text in said)
    assert disturbed("", generator) == ""
    assert paraphrased("質問です。", generator).count("質問です。") == 1


def test_data_of_other_models_is_refused_and_the_gateways_names_are_understood():
    router = load_router(from_files(router_files(labels={"m0": "served-0", "m1": "served-1"})))
    assert for_router(dataset(), router).models == ("m0", "m1")
    renamed = dataset()
    object.__setattr__(renamed, "models", tuple(name.replace("m", "served-") for name in renamed.models))
    assert for_router(renamed, router).models == ("served-0", "served-1")
    object.__setattr__(renamed, "models", ("x", "y"))
    with pytest.raises(TrainingError) as refused:
        for_router(renamed, router)
    assert refused.value.code == "TRAINING_LABELS"


def test_an_embedding_is_computed_only_once_ever(tmp_path):
    class Counting:
        digest, dimensions = tiny_encoder().digest, tiny_encoder().dimensions
        calls = 0

        def encode(self, texts):
            type(self).calls += len(texts)
            return tiny_encoder().encode(texts)

    texts = ["easy one", "hard two", "easy one"]
    first = embed(Counting(), texts, cache=tmp_path)
    second = embed(Counting(), texts, cache=tmp_path)
    assert Counting.calls == 2
    assert np.array_equal(first.embeddings, second.embeddings)
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert np.array_equal(embed(Counting(), texts, cache=tmp_path).embeddings, first.embeddings)


def test_an_account_without_a_home_remembers_nothing_and_must_name_its_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # nobody the host knows, as in a container
    cache = cache_directory({})
    assert cache == NOWHERE
    assert len(embed(tiny_encoder(), ["easy one"], cache=cache)) == 1
    with pytest.raises(TrainingError) as refused:
        find_encoder(directory=None, cache=cache)
    assert refused.value.code == "TRAINING_ENCODER"
    assert list(tmp_path.iterdir()) == []


def test_the_routers_own_encoder_is_found_by_digest_and_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = tiny_encoder_artifact().digest
    write_encoder(tiny_encoder_artifact(), tmp_path / "cache" / "encoders" / wanted)
    assert find_encoder(directory=None, cache=tmp_path / "cache", digest=wanted).digest == wanted
    given = tmp_path / "cache" / "encoders" / wanted
    assert find_encoder(directory=given, cache=tmp_path).digest == wanted
    with pytest.raises(TrainingError) as refused:
        find_encoder(directory=given, cache=tmp_path, digest="0" * 64)
    assert refused.value.code == "TRAINING_ENCODER"


def test_an_encoder_is_exported_where_none_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedding, "export_encoder", lambda progress: tiny_encoder_artifact())
    found = find_encoder(directory=None, cache=tmp_path / "cache")
    assert (tmp_path / "cache" / "encoders" / found.digest / "encoder.yaml").is_file()


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(encoder_export, "PACKAGE", "no-such-package-here")
    with pytest.raises(TrainingError) as refused:
        source_directory()
    assert refused.value.code == "TRAINING_PACKAGE"
    with pytest.raises(TrainingError) as refused:
        export_encoder(max_tokens=1)
    assert refused.value.code == "TRAINING_ARGUMENT"


def test_case_and_space_make_no_other_prompt():
    assert same_text_groups(["a", "A ", "b"]).tolist() == [0, 0, 1]


def test_near_copies_of_what_was_fitted_on_are_no_unseen_prompts():
    vectors = np.eye(6, 8, dtype=np.float32)
    known = Prompts(("one", "two"), vectors[:2])
    near = vectors[1] + 0.05 * vectors[5]
    given = Prompts(("ONE ", "two, nearly", "three", "four"), np.stack([vectors[4], near, vectors[2], vectors[3]]))
    assert unseen(given, known).tolist() == [2, 3]


def test_a_sketch_tells_how_many_prompts_were_fitted_on_whatever_stands_beside_them():
    fitted, others = ([f"{kind} {n}" for n in range(4000)] for kind in ("known", "new"))
    known = sketch(fitted)
    assert len(known) == 256 * 12
    assert known_share(known, fitted) == known_share(known, [text.upper() for text in fitted]) == 1.0
    assert 0.9 < known_share(known, [*fitted, *others[:100]]) < 1
    assert 0.3 < known_share(known, [*fitted[:2000], *others[:2000]]) < 0.7
    assert known_share(known, others) == known_share(known, []) == known_share("", others) == 0
    assert known_share(sketch(fitted[:30]), fitted[:60]) == 0.5
