"""A router in a format that the zone's policy names takes over under load; in any other it is refused unnoticed."""

import io
import pickle
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml

from appliance.artifact import from_files
from appliance.files import sha256_hex
from appliance.routers.encoder import load_encoder
from appliance.routers.families.onnx import Onnx, OnnxParameters
from appliance.routers.loading import write_strategy_files
from appliance.trust import ceremony
from appliance.trust.authority import Authority
from appliance.trust.repository import Repository
from appliance.trust.store import TrustStore
from tests.support.gateway import deployment, gateway
from tests.support.reloads import Traffic
from tests.support.routing import DIMENSIONS, encoder_files, place, router_files, sign, zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = {"a": "openai/small", "b": "openai/large"}
TEXTS = ["easy what is the capital", "easy the", "hard prove the theorem", "hard of"] * 4
BEST = ["a", "a", "b", "b"] * 4


def vectors() -> np.ndarray:
    return load_encoder(from_files(encoder_files())).encode(TEXTS)


def estimator():
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(vectors(), BEST)


def linear() -> tuple[np.ndarray, np.ndarray]:
    """Weights (labels, d) and bias of the same decision."""
    fitted = estimator()
    return np.concatenate([-fitted.coef_, fitted.coef_]), np.concatenate([-fitted.intercept_, fitted.intercept_])


def as_onnx() -> tuple[str, dict[str, bytes]]:
    from onnx import TensorProto, helper, numpy_helper

    weights, bias = linear()
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["embedding", "w", "b"], ["scores"])], "router",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIMENSIONS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in (("w", weights.T), ("b", bias))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    network = np.frombuffer(model.SerializeToString(), np.uint8)
    return "onnx", write_strategy_files(Onnx(("a", "b"), network, OnnxParameters()).dump())


def as_pickle() -> tuple[str, dict[str, bytes]]:
    return "logistic", {"model.pkl": pickle.dumps(estimator())}


def as_skops() -> tuple[str, dict[str, bytes]]:
    import skops.io

    return "logistic", {"model.skops": skops.io.dumps(estimator())}


def as_torch() -> tuple[str, dict[str, bytes]]:
    import torch

    weights, bias = linear()
    buffer = io.BytesIO()
    torch.save({"0.weight": torch.tensor(weights).float(), "0.bias": torch.tensor(bias).float()}, buffer)
    return "mlp", {"model.pt": buffer.getvalue()}


def signed(here, made: tuple[str, dict[str, bytes]], version: str):
    """An artifact around a model in any format."""
    strategy, content = made
    metadata = yaml.safe_load(router_files(labels=LABELS, version=version)["router.yaml"])
    metadata |= {"strategy": strategy, "hyperparameters": {}}
    metadata["files"] = {name: sha256_hex(data) for name, data in content.items()}
    files = {**content, "router.yaml": yaml.safe_dump(metadata, sort_keys=False).encode()}
    return sign(files, here.authority.signer("import-officer"))


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Two workers of a zone whose policy names our formats and skops."""
    home = tmp_path_factory.mktemp("formats")
    here = zone(home / "zone", make_authority(home / "ca"), labels=LABELS)
    here.put()
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large)],
            listen={"workers": 2},
            **here.sections(
                router={"canaries": [{"prompt": "easy the", "label": "a"}, {"prompt": "hard of", "label": "b"}]}
            ),
        ) as running,
    ):
        running.wait_until(lambda: len(running.status()["workers"]) == 2, what="both workers")
        yield running, here


def takes_over(running, here, artifact) -> None:
    place(artifact, here.router_directory)

    def serves() -> bool:
        found = running.status()
        return found["converged"] and found["routers"]["default"]["digests"] == [artifact.digest]

    running.wait_until(serves, what=f"{sorted(artifact.files)} serves on every worker")


def is_refused(running, code: str) -> None:
    """Wait until every worker has refused what lies there, as a whole (a copy in progress has other faults)."""

    def refused() -> bool:
        problems = [worker["routers"]["default"]["problem"] for worker in running.status()["workers"]]
        return [problem["code"] for problem in problems if problem] == [code, code]

    running.wait_until(refused, what=code)


def names_formats(here, *formats: str) -> None:
    """Let the zone sign a policy with these formats, and the host take it over."""
    authority = Authority.open(here.authority.path)
    policy = Repository(authority).policy().model_copy(update={"model_formats": formats})
    ceremony.set_policy(authority, policy, now=datetime.now(UTC))
    TrustStore.open(here.directory / "trust").refresh(here.authority.repository, now=datetime.now(UTC))


def test_onnx_and_skops_and_by_a_signed_policy_pickle_and_torch_take_over_under_load(serving):
    running, here = serving
    with Traffic(running) as traffic:
        takes_over(running, here, signed(here, as_onnx(), "2.0.0"))
        takes_over(running, here, signed(here, as_skops(), "2.1.0"))
        good = running.status()["routers"]["default"]["digests"]
        pickled = signed(here, as_pickle(), "2.2.0")
        place(pickled, here.router_directory)
        is_refused(running, "TRUST_FORMAT")
        assert running.status()["routers"]["default"]["digests"] == good, "the skops router has gone on"

        names_formats(here, "onnx", "safetensors", "json", "skops", "pickle", "torch")
        takes_over(running, here, pickled)  # the same bytes, by the new policy alone
        for prompt, wanted in (("easy the first", "small"), ("hard of all", "large")):
            assert running.chat(prompt).headers["x-appliance-deployment"] == wanted
        takes_over(running, here, signed(here, as_torch(), "2.3.0"))
        takes_over(running, here, signed(here, as_onnx(), "2.4.0"))
        running.wait_until(lambda: traffic.answers > 20, what="traffic")
    assert traffic.failures == []


def test_a_pickle_that_runs_something_is_refused_although_it_is_signed_and_the_policy_lets_pickles_in(
    serving, tmp_path
):
    running, here = serving
    names_formats(here, "onnx", "safetensors", "json", "skops", "pickle")
    takes_over(running, here, signed(here, as_pickle(), "3.0.0"))

    class Runs:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'pwned')!r}, 'w')",)

    place(signed(here, ("logistic", {"model.pkl": pickle.dumps(Runs())}), "3.1.0"), here.router_directory)
    is_refused(running, "ROUTER_MODEL_IMPORT")
    assert not (tmp_path / "pwned").exists()
    assert running.chat("hard of all").headers["x-appliance-deployment"] == "large", "the good one serves on"
