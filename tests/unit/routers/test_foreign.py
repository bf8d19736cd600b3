"""Models in other formats: read from bytes by pinned lists, and only where a policy names the format."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml

from appliance.artifact import ArtifactFiles, RouterMetadata
from appliance.errors import RouterError
from appliance.files import sha256_hex
from appliance.routers import foreign, skops_file, torch_file
from appliance.routers.loading import load_router
from appliance.routers.strategies import Prompts

LABELS = ("small", "medium", "large")
ALL = ("skops", "pickle", "torch")
RNG = np.random.default_rng(5)
POINTS = RNG.normal(size=(60, 6)).astype(np.float32)
BEST = np.array(LABELS)[POINTS[:, :3].argmax(axis=1)]


def artifact(**files: bytes) -> ArtifactFiles:
    content = {name.replace("_", "."): data for name, data in files.items()}
    metadata = RouterMetadata(
        schema_version=1, name="default", version="1.0.0", strategy="knn", hyperparameters={"activation": "relu"},
        labels={label: f"{label}-model" for label in LABELS},
        files={name: sha256_hex(data) for name, data in content.items()}, encoder_digest="0" * 64,
        training_data_digest="1" * 64, evaluation={}, created="2026-11-23T12:00:00Z",
        minimum_appliance_version="0.1.0",
    )  # fmt: skip
    document = yaml.safe_dump(metadata.model_dump(mode="json"), sort_keys=False).encode()
    return ArtifactFiles({**content, "router.yaml": document}, None)


def prompts(points=POINTS) -> Prompts:
    return Prompts(tuple(str(n) for n in range(len(points))), points)


def estimators():
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC, LinearSVC

    outcomes = (BEST[:, None] == np.array(LABELS)[None, :]).astype(np.float32)
    for estimator in (
        KNeighborsClassifier(5, n_jobs=2), KNeighborsClassifier(5, algorithm="kd_tree"), LogisticRegression(),
        LinearSVC(), SVC(probability=True, random_state=1), MLPClassifier((8,), max_iter=30, random_state=1),
    ):  # fmt: skip
        yield estimator.fit(POINTS, BEST)
    yield Ridge().fit(POINTS, outcomes)


def code(files: dict[str, bytes], formats=ALL) -> str:
    with pytest.raises(RouterError) as refused:
        load_router(artifact(**files), formats=formats).scores(prompts())
    return refused.value.code


@pytest.mark.filterwarnings("ignore")
def test_an_estimator_scores_alike_from_skops_from_a_pickle_and_as_it_was_fitted():
    import skops.io

    for estimator in estimators():
        ask = getattr(estimator, "predict_proba", None) or getattr(estimator, "decision_function", estimator.predict)
        wanted = np.asarray(ask(POINTS), np.float32)
        if hasattr(estimator, "classes_"):
            wanted = wanted[:, [list(estimator.classes_).index(label) for label in LABELS]]
        for files in ({"model_pkl": pickle.dumps(estimator)}, {"model_skops": skops.io.dumps(estimator)}):
            router = load_router(artifact(**files), formats=ALL)
            np.testing.assert_allclose(router.scores(prompts()), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "float16"])
def test_a_state_dict_is_read_without_torch_as_torch_reads_it(kind):
    import torch

    state = {
        "0.weight": torch.randn(5, 6),
        "0.bias": torch.zeros(5),
        "2.weight": torch.randn(5, 3).T,
        "2.bias": torch.ones(3),
    }
    state = {name: value.to(getattr(torch, kind)) for name, value in state.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    read = torch_file.read_state_dict(buffer.getvalue(), what="model.pt")
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.to(torch.float32).numpy())
    router = load_router(artifact(model_pt=buffer.getvalue()), formats=ALL)
    hidden = np.maximum(POINTS @ read["0.weight"].T + read["0.bias"], 0)
    logits = hidden @ read["2.weight"].T + read["2.bias"]
    np.testing.assert_allclose(router.scores(prompts()), 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_no_format_opens_unless_a_policy_names_it(kind):
    suffix = {name: suffix for suffix, name in foreign.FORMATS.items()}[kind]
    files = {f"model_{suffix[1:]}": b"anything"}
    assert code(files, formats=[each for each in ALL if each != kind]) == "ROUTER_FORMAT"
    assert code(files, formats=()) == "ROUTER_FORMAT"
    assert code(files, formats=[kind]) == "ROUTER_MODEL"


class Runs:
    """A pickle that executes."""

    def __init__(self, call, *arguments):
        self._reduced = (call, arguments)

    def __reduce__(self):
        return self._reduced


@pytest.mark.parametrize(
    "payload", [Runs(os.system, "touch PWNED"), Runs(eval, "1"), Runs(getattr, "a", "b"), Runs(np.load, "x.npy")]
)
def test_a_signed_pickle_that_would_run_something_is_refused_before_it_does(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code({"model_pkl": pickle.dumps(payload)}) == "ROUTER_MODEL_IMPORT"
    assert not list(tmp_path.iterdir())


def test_a_state_dict_that_would_run_something_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Runs(os.system, "touch PWNED")))
    assert code({"model_pt": buffer.getvalue()}) == "ROUTER_MODEL_IMPORT"
    assert not list(tmp_path.iterdir())


def reschemed(data: bytes, change) -> bytes:
    """A skops file with another schema."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(members["schema.json"])
    change(schema)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**members, "schema.json": json.dumps(schema).encode()}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ridge_skops() -> bytes:
    import skops.io
    from sklearn.linear_model import Ridge

    return skops.io.dumps(Ridge().fit(POINTS, POINTS[:, :3]))


def hide(schema, **node):
    schema["content"]["content"]["alpha"] = {"__id__": 1, "content": {}, **node}


@pytest.mark.parametrize(
    "node",
    [
        {"__module__": "posix", "__class__": "system", "__loader__": "FunctionNode"},
        {"__module__": "builtins", "__class__": "eval", "__loader__": "FunctionNode"},
        {"__module__": "builtins", "__class__": "method", "__loader__": "MethodNode"},
        {"__module__": "operator", "__class__": "methodcaller", "__loader__": "OperatorFuncNode"},
        {"__module__": "functools", "__class__": "partial", "__loader__": "PartialNode"},
        {"__module__": "sklearn.ensemble._forest", "__class__": "RandomForestClassifier", "__loader__": "ObjectNode"},
        {"__module__": "sklearn.linear_model._ridge", "__class__": "Ridge", "__loader__": "MethodNode"},  # 2025-54412
        {"__module__": "builtins", "__class__": "str"},
    ],
)
def test_skops_builds_nothing_outside_the_pinned_list_not_even_what_skops_trusts(node, ridge_skops):
    assert load_router(artifact(model_skops=ridge_skops), formats=ALL).scores(prompts()).shape == (60, 3)
    assert code({"model_skops": reschemed(ridge_skops, lambda s: hide(s, **node))}) == "ROUTER_MODEL_IMPORT"


@pytest.mark.parametrize("protocol", [0, 1, 3, True, "2", None])
def test_skops_of_another_protocol_is_refused(protocol, ridge_skops):
    changed = reschemed(ridge_skops, lambda schema: schema.update(protocol=protocol))
    assert code({"model_skops": changed}) == "ROUTER_MODEL"


def test_skops_below_the_safe_version_or_missing_is_refused_with_the_profile_that_has_it(monkeypatch, ridge_skops):
    monkeypatch.setattr(skops_file, "version", lambda _: "0.12.4")
    assert code({"model_skops": ridge_skops}) == "ROUTER_BACKEND"
    monkeypatch.setitem(sys.modules, "sklearn.linear_model._ridge", None)  # not importable
    assert code({"model_pkl": b"\x80\x04\x8c\x1bsklearn.linear_model._ridge\x8c\x05Ridge\x93."}) == "ROUTER_BACKEND"


def estimator_bytes(change) -> bytes:
    from sklearn.linear_model import LogisticRegression

    made = LogisticRegression().fit(POINTS, BEST)
    change(made)
    return pickle.dumps(made)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model_pkl": b""}, "ROUTER_MODEL"),
        ({"model_pkl": b"\x80\x04N."}, "ROUTER_MODEL"),  # None predicts nothing
        ({"model_pkl": pickle.dumps(np.arange(3))}, "ROUTER_MODEL"),
        ({"model_pkl": estimator_bytes(lambda _: None) + b"more"}, "ROUTER_MODEL"),
        ({"model_pkl": estimator_bytes(lambda m: setattr(m, "classes_", np.array(["a", "b", "c"])))}, "ROUTER_MODEL"),
        ({"model_pkl": estimator_bytes(lambda m: setattr(m, "coef_", np.ones((3, 9))))}, "ROUTER_SCORES"),
        ({"model_pkl": estimator_bytes(lambda m: setattr(m, "coef_", m.coef_ * np.nan))}, "ROUTER_SCORES"),
        ({"model_pkl": b"\x80\x04N.", "model_pt": b""}, "ROUTER_MODEL"),
        ({"model_skops": b"PK"}, "ROUTER_MODEL"),
        ({"model_pt": b"PK\x03\x04"}, "ROUTER_MODEL"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_is_no_router_of_these_labels_is_refused_by_name(files, expected):
    assert code(files) == expected


def state_dict(shape, strides, *, offset=0, length=12, numbers=12, top="archive", **members: bytes) -> bytes:
    """A `.pt` file with one tensor of any shape over a storage of `numbers` float32."""

    def integers(values) -> bytes:
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    program = (
        b"\x80\x02}(X\x08\x00\x00\x000.weightctorch._utils\n_rebuild_tensor_v2\n("
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuI%d\ntQ" % length
        + b"I%d\n" % offset + integers(shape) + integers(strides) + b"tRu."
    )  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{top}/data.pkl", program)
        archive.writestr(f"{top}/data/0", np.arange(numbers, dtype=np.float32).tobytes())
        for name, data in members.items():
            archive.writestr(f"{top}/{name}", data)
    return buffer.getvalue()


def test_a_tensor_is_laid_over_its_storage_by_its_strides():
    read = torch_file.read_state_dict(state_dict((2, 6), (6, 1)), what="model.pt")
    np.testing.assert_array_equal(read["0.weight"], np.arange(12).reshape(2, 6))
    read = torch_file.read_state_dict(state_dict((3, 2), (1, 3), offset=4), what="model.pt")
    np.testing.assert_array_equal(read["0.weight"], np.arange(4, 10).reshape(2, 3).T)


@pytest.mark.parametrize(
    "data",
    [
        state_dict((2, 6), (6, 1), offset=1),
        state_dict((2, 6), (6, 1), offset=-1),
        state_dict((2, 6), (-6, 1)),
        state_dict((3, 6), (6, 1)),
        state_dict((100_000, 100_000), (0, 0)),
        state_dict((2,), (6, 1)),
        state_dict((2, 6), (6, 1), length=13),
        state_dict((2, 6), (6, 1), numbers=11),
        state_dict((2, 6), (6, 1), byteorder=b"big"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(data):
    with pytest.raises(RouterError) as refused:
        torch_file.read_state_dict(data, what="model.pt")
    assert refused.value.code == "ROUTER_MODEL"


def test_a_compressed_state_dict_that_would_unfold_in_memory_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10_000_000)
    assert code({"model_pt": buffer.getvalue()}) == "ROUTER_MODEL"


def shared(times: int, numbers: int) -> bytes:
    """A state dict of many tensors over one storage, each named and read anew."""
    buffer = io.BytesIO()
    program = b"\x80\x02}("
    for number in range(times):
        name = b"%d.weight" % number
        program += b"X" + len(name).to_bytes(4, "little") + name + b"ctorch._utils\n_rebuild_tensor_v2\n("
        program += b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        program += b"I%d\ntQI0\n(I%d\nt(I1\nttR" % (numbers, numbers)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program + b"u.")
        archive.writestr("archive/data/0", np.ones(numbers, np.float32).tobytes())
    return buffer.getvalue()


def test_tensors_that_share_a_storage_do_not_multiply_a_file_in_memory():
    assert len(torch_file.read_state_dict(shared(2, 100_000), what="model.pt")) == 2
    with pytest.raises(RouterError) as refused:
        torch_file.read_state_dict(shared(500, 100_000), what="model.pt")
    assert refused.value.code == "ROUTER_MODEL"
    assert "many times" in refused.value.cause


@pytest.mark.parametrize("times", [1, 40])
def test_a_skops_file_that_would_unfold_in_memory_is_refused(times, ridge_skops):
    """One array that shrinks to nothing in the archive, or one that the schema names again and again."""
    size = 20 * 1024**2 if times == 1 else 1024**2

    def repeat(schema):
        node = {"__module__": "numpy", "__class__": "ndarray", "__loader__": "NdArrayNode", "type": "numpy"}
        nodes = [{**node, "__id__": 1000 + n, "file": "big.npy"} for n in range(times)]
        schema["content"]["content"] |= {f"a{n}": one for n, one in enumerate(nodes)}

    buffer = io.BytesIO(reschemed(ridge_skops, repeat))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.npy", b"\0" * size)
    with pytest.raises(RouterError) as refused:
        skops_file.check(buffer.getvalue(), what="model.skops")
    assert refused.value.code == "ROUTER_MODEL"
    assert "many times" in refused.value.cause
    skops_file.check(ridge_skops, what="model.skops")


def test_neither_torch_nor_scikit_learn_is_imported_until_a_router_needs_it():
    program = (
        "import sys; from appliance.routers import loading; import appliance.gateway.loading;"
        "print(sorted({'torch', 'sklearn', 'skops', 'joblib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "[]"
