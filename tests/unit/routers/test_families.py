"""Every family: loads what it dumps, scores alike, refuses what is malformed."""

import itertools
import json

import numpy as np
import pytest

from appliance.artifact import from_files
from appliance.errors import RouterError
from appliance.routers.loading import LoadedRouter, load_router, read_strategy_files, read_tensors, write_strategy_files
from appliance.routers.strategies import FAMILIES, Prompts, Strategy, StrategyFiles, family, names
from appliance.training.fit import FITTERS, fit, fitter, router_artifact
from tests.support.routing import router_files
from tests.support.training import examples

FITTED = sorted(FITTERS)


@pytest.fixture(scope="module")
def fitted():
    made = {}

    def get(name):
        if name not in made:
            from appliance.training.families.forest import ForestFitter

            made[name] = (ForestFitter(trees=20) if name == "forest" else fitter(name)).fit(examples(), seed=0)[0]
        return made[name]

    return get


@pytest.mark.parametrize("name", FITTED)
def test_a_family_learns_what_the_prompt_tells(fitted, name):
    unseen = examples(60, seed=9)
    scores = fitted(name).scores(unseen.prompts)
    gain = scores[:, 0] - scores[:, 1]
    hard = np.array([task == "hard" for task in unseen.tasks])
    assert gain[hard].mean() > gain[~hard].mean()
    assert fitted(name).name == name


@pytest.mark.parametrize("name", FITTED)
def test_a_family_loads_what_it_dumps_and_scores_alike(fitted, name):
    strategy = fitted(name)
    files = read_strategy_files(write_strategy_files(strategy.dump()))
    again = family(name).load(files, strategy.labels)
    prompts = examples(60, seed=9).prompts
    assert np.array_equal(again.scores(prompts), strategy.scores(prompts))
    assert write_strategy_files(again.dump()) == write_strategy_files(strategy.dump())


@pytest.mark.parametrize("name", FITTED)
def test_a_batch_scores_as_its_prompts_one_by_one(fitted, name):
    prompts = examples(60, seed=9).prompts
    together = fitted(name).scores(prompts)
    alone = np.concatenate([fitted(name).scores(prompts.take(np.array([row]))) for row in range(len(prompts))])
    assert np.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", FITTED)
def test_a_missing_tensor_is_refused_by_every_family(fitted, name):
    files = fitted(name).dump()
    for missing in files.tensors:
        less = {key: tensor for key, tensor in files.tensors.items() if key != missing}
        with pytest.raises(RouterError) as refused:
            family(name).load(StrategyFiles(files.parameters, less), ("m0", "m1"))
        assert refused.value.code == "ROUTER_WEIGHTS"


@pytest.mark.parametrize("name", FITTED)
def test_a_tensor_with_nan_is_refused_by_every_family(fitted, name):
    files = fitted(name).dump()
    for poisoned, tensor in files.tensors.items():
        if tensor.dtype.kind != "f" or not tensor.size:
            continue
        bad = tensor.copy()
        bad.flat[0] = np.nan
        with pytest.raises(RouterError) as refused:
            family(name).load(StrategyFiles(files.parameters, {**files.tensors, poisoned: bad}), ("m0", "m1"))
        assert refused.value.code == "ROUTER_WEIGHTS"


@pytest.mark.parametrize("name", FITTED)
def test_a_parameter_that_a_family_does_not_know_is_refused(fitted, name):
    files = fitted(name).dump()
    with pytest.raises(RouterError) as refused:
        family(name).load(StrategyFiles({**files.parameters, "invented": 1}, files.tensors), ("m0", "m1"))
    assert refused.value.code == "ROUTER_PARAMETERS"


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("children", 10**6), ("children", -1), ("roots", -3), ("roots", 10**6), ("feature", 10**4)],
)
def test_a_forest_that_walks_outside_its_table_is_refused(fitted, tensor, value):
    files = fitted("forest").dump()
    bad = files.tensors[tensor].copy()
    bad.flat[0] = value
    with pytest.raises(RouterError) as refused:
        family("forest").load(StrategyFiles(files.parameters, {**files.tensors, tensor: bad}), ("m0", "m1"))
    assert refused.value.code == "ROUTER_WEIGHTS"


def test_a_forest_that_walks_in_circles_is_refused(fitted):
    files = fitted("forest").dump()
    children, feature = files.tensors["children"].copy(), files.tensors["feature"]
    inner = int(np.flatnonzero(feature >= 0)[-1])
    children[inner] = inner
    with pytest.raises(RouterError) as refused:
        family("forest").load(StrategyFiles(files.parameters, {**files.tensors, "children": children}), ("m0", "m1"))
    assert refused.value.code == "ROUTER_WEIGHTS"


def test_an_ensemble_is_the_weighted_mean_of_its_members(fitted):
    from appliance.routers.families.ensemble import Ensemble

    knn, ridge = fitted("knn"), fitted("ridge")
    prompts = examples(60, seed=9).prompts
    blend = Ensemble(("m0", "m1"), [(1.0, knn), (0.5, ridge)])
    files = read_strategy_files(write_strategy_files(blend.dump()))
    again = family("ensemble").load(files, ("m0", "m1"))
    expected = (knn.scores(prompts) + 0.5 * ridge.scores(prompts)) / 1.5
    assert np.allclose(again.scores(prompts), expected, atol=1e-6)
    nested = {"members": [{"strategy": "ensemble", "weight": 1.0, "parameters": files.parameters}]}
    with pytest.raises(RouterError) as refused:
        family("ensemble").load(StrategyFiles(nested, files.tensors), ("m0", "m1"))
    assert refused.value.code == "ROUTER_PARAMETERS"


def test_knn_names_the_neighbours_it_decided_by(fitted):
    prompts = examples(60, seed=9).prompts
    near = fitted("knn").neighbours(prompts.embeddings[0])
    assert len(near) == fitted("knn").parameters.k
    assert all(left[1] >= right[1] for left, right in itertools.pairwise(near))


def test_every_name_of_the_registry_is_a_family_of_that_name():
    assert {family(name).name for name in FAMILIES} == set(FAMILIES)
    assert set(FAMILIES) <= set(names())


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(RouterError) as refused:
        family("oracle")
    assert refused.value.code == "ROUTER_STRATEGY"
    assert "knn" in refused.value.evidence["known"]


def test_a_sites_own_family_is_found_by_its_entry_point(tmp_path, monkeypatch):
    (tmp_path / "own_router.py").write_text(
        "import numpy as np\nfrom appliance.routers.strategies import Strategy, StrategyFiles\n"
        "class First(Strategy):\n    name = 'first'\n"
        "    def scores(self, prompts):\n        return np.eye(1, 2, dtype=np.float32).repeat(len(prompts), 0)\n"
        "    @classmethod\n    def load(cls, files, labels):\n        return cls(labels)\n"
        "    def dump(self):\n        return StrategyFiles({}, {})\n"
    )
    info = tmp_path / "own_router-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-router\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[appliance.strategies]\nfirst = own_router:First\nbroken = json:loads\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "first" in names()
    strategy = family("first").load(StrategyFiles({}, {}), ("a", "b"))
    assert strategy.scores(examples(60, seed=9).prompts)[0].tolist() == [1, 0]
    with pytest.raises(RouterError) as refused:
        family("broken")
    assert refused.value.code == "ROUTER_STRATEGY"


def onnx_files(output="scores"):
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((16, 2), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["embedding", "w"], ["scores"])], "g",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])], [weights],
    )  # fmt: skip
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    return StrategyFiles({"input": "embedding", "output": output}, {"network": np.frombuffer(data, np.uint8)})


def test_a_converted_network_scores():
    prompts = examples(60, seed=9).prompts
    strategy = family("onnx").load(onnx_files(), ("m0", "m1"))
    assert np.allclose(strategy.scores(prompts)[:, 0], prompts.embeddings.sum(axis=1), atol=1e-4)
    assert read_strategy_files(write_strategy_files(strategy.dump())).parameters == onnx_files().parameters


def test_a_network_without_the_named_output_is_refused():
    with pytest.raises(RouterError) as refused:
        family("onnx").load(onnx_files(output="other"), ("m0", "m1"))
    assert refused.value.code == "ROUTER_NETWORK"


def test_a_network_that_fails_on_other_vectors_is_a_refusal_not_a_crash():
    strategy = family("onnx").load(onnx_files(), ("m0", "m1"))
    with pytest.raises(RouterError) as refused:
        strategy.scores(Prompts(("x",), np.ones((1, 3), np.float32)))
    assert refused.value.code == "ROUTER_SCORES"


def test_a_batch_needs_a_vector_for_each_text():
    with pytest.raises(RouterError) as refused:
        Prompts(("a", "b"), np.ones((1, 4), np.float32))
    assert refused.value.code == "ROUTER_INPUT"


class Odd(Strategy):
    name = "odd"
    answer: np.ndarray

    def scores(self, prompts):
        return self.answer

    @classmethod
    def load(cls, files, labels):
        return cls(labels)

    def dump(self):
        return StrategyFiles({}, {})


@pytest.mark.parametrize("answer", [np.ones((1, 3)), np.ones((2, 2)), np.array([[0.5, np.nan]])])
def test_scores_of_a_wrong_shape_or_not_finite_never_decide(answer):
    router = load_router(from_files(router_files(labels={"m0": "a", "m1": "b"})))
    odd = Odd(("m0", "m1"))
    odd.answer = answer
    with pytest.raises(RouterError) as refused:
        LoadedRouter(router.metadata, odd, router.digest).scores(examples(60, seed=9).prompts.take(np.array([0])))
    assert refused.value.code == "ROUTER_SCORES"


def test_a_family_that_fails_on_the_vectors_says_whose_fault_it_is():
    router = load_router(from_files(router_files(labels={"m0": "a", "m1": "b"})))
    narrow = Prompts(("x",), np.ones((1, 3), np.float32))
    with pytest.raises(RouterError, match="knn fails on vectors of 3 numbers") as refused:
        router.scores(narrow)
    assert refused.value.code == "ROUTER_SCORES"


def test_bytes_that_are_no_safetensors_are_refused():
    whole = write_strategy_files(StrategyFiles({}, {"a": np.ones((3, 3), np.float32)}))["weights.safetensors"]
    assert read_tensors(whole)["a"].shape == (3, 3)
    for data in (b"", b"\x80\x04.", whole[:-1], whole[:20], b"\xff" * 64):
        with pytest.raises(RouterError) as refused:
            read_tensors(data)
        assert refused.value.code == "ROUTER_WEIGHTS"


def test_a_tensor_type_that_nothing_uses_is_refused():
    from safetensors.numpy import save

    with pytest.raises(RouterError) as refused:
        read_tensors(save({"a": np.ones(3, np.float64)}))
    assert refused.value.code == "ROUTER_WEIGHTS"


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"a":1,"a":2}', b'{"a":NaN}'])
def test_parameters_that_are_no_plain_mapping_are_refused(data):
    with pytest.raises(RouterError) as refused:
        read_strategy_files({"strategy.json": data})
    assert refused.value.code == "ROUTER_PARAMETERS"


def test_a_fitted_router_becomes_an_artifact_that_loads():
    from datetime import UTC, datetime

    made = fit(examples(), strategy="ridge")
    artifact = router_artifact(
        made, name="r", version="1", labels={"m0": "served"}, encoder_digest="0" * 64, data_digest="1" * 64,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    router = load_router(artifact)
    assert dict(router.metadata.labels) == {"m0": "served", "m1": "m1"}
    assert json.loads(artifact.files["strategy.json"]) == {}
