"""Every routing family decides real requests, each in a group of its own, beside a family that the site brought."""

from datetime import UTC, datetime
from types import MappingProxyType

import numpy as np
import pytest
import yaml

from appliance.artifact import from_files
from appliance.files import sha256_hex
from appliance.routers.encoder import load_encoder
from appliance.routers.families.ensemble import Ensemble
from appliance.routers.families.linear import MatrixFactorization
from appliance.routers.families.mlp import Mlp
from appliance.routers.families.onnx import Onnx, OnnxParameters
from appliance.routers.loading import write_strategy_files
from appliance.routers.strategies import FAMILIES, Strategy
from appliance.training.examples import Examples
from appliance.training.fit import Fitted, fitter, router_artifact
from tests.support.gateway import deployment, gateway
from tests.support.routing import DIMENSIONS, encoder_files, place, router_files, sign, zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = MappingProxyType({"a": "openai/small", "b": "openai/large"})
OWN = "first_letter"
OWN_MODULE = f"""
import numpy as np
from appliance.routers.strategies import Strategy, StrategyFiles

class FirstLetter(Strategy):
    name = "{OWN}"
    def scores(self, prompts):
        return np.array([[t[0] == "e", t[0] == "h"] for t in prompts.texts], np.float32)
    @classmethod
    def load(cls, files, labels):
        return cls(labels)
    def dump(self):
        return StrategyFiles({{}}, {{}})
"""


def examples() -> Examples:
    """Easy prompts, which the small model does better, and hard ones that only the large one can."""
    ends = ("what is the capital", "the", "of the capital", "what", "is", "theorem", "prove the", "of what is")
    texts = tuple(f"{kind} {end}" for kind in ("easy", "hard") for end in ends for _ in range(3))
    scores = np.array([[1.0, 0.2] if text.startswith("easy") else [0.0, 1.0] for text in texts], np.float32)
    prompts = load_encoder(from_files(encoder_files())).prompts(texts)
    return Examples(tuple(LABELS), prompts, scores, np.arange(len(texts)), ("",) * len(texts))


def network() -> bytes:
    """An ONNX graph of the same decision: the vector's first number tells easy from hard."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.zeros((DIMENSIONS, 2), np.float32)
    weights[0] = 1.0, -1.0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["embedding", "w"], ["scores"])], "router",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIMENSIONS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return model


def made(strategy: str) -> Strategy:
    """Fitted, but for the families whose fitters need torch or that have none."""
    labels, first = tuple(LABELS), np.eye(DIMENSIONS, 1, dtype=np.float32)
    sides, none = np.array([[1, -1]], np.float32), np.zeros(2, np.float32)
    match strategy:
        case "onnx":
            return Onnx(labels, np.frombuffer(network(), np.uint8), OnnxParameters())
        case "ensemble":
            return Ensemble(labels, [(1, made("knn")), (3, made("ridge"))])
        case "matrix_factorization":
            return MatrixFactorization(labels, first, sides, none)
        case "mlp":
            return Mlp(labels, [(first @ sides, none), (np.eye(2, dtype=np.float32), none)])
    return fitter(strategy).fit(examples(), seed=0)[0]


def artifact(strategy: str, encoder_digest: str) -> dict[str, bytes]:
    if strategy == OWN:
        metadata = yaml.safe_load(router_files(labels=dict(LABELS))["router.yaml"])
        files = write_strategy_files(made("knn").dump())
        metadata |= {"strategy": OWN, "files": {name: sha256_hex(data) for name, data in files.items()}}
        return {**files, "router.yaml": yaml.safe_dump(metadata).encode()}
    whole = router_artifact(
        Fitted(made(strategy), {}, {}, {}), name="any", version="1", labels=LABELS, encoder_digest=encoder_digest,
        data_digest="1" * 64, created=datetime.now(UTC),
    )  # fmt: skip
    return dict(whole.files)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A gateway with a group and a router for every strategy name, and a package of the site's own."""
    home = tmp_path_factory.mktemp("strategies")
    here = zone(home / "zone", make_authority(home / "ca"), labels=dict(LABELS))
    signer = here.authority.signer("import-officer")
    digest = from_files(here.encoder).digest
    site = home / "site"
    (site / "own_router-1.dist-info").mkdir(parents=True)
    (site / "own_router.py").write_text(OWN_MODULE)
    (site / "own_router-1.dist-info/entry_points.txt").write_text(
        f"[appliance.strategies]\n{OWN} = own_router:FirstLetter\n"
    )
    (site / "own_router-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: own-router\nVersion: 1\n")
    names = [*FAMILIES, OWN]
    for name in names:
        place(sign(artifact(name, digest), signer), home / "routers" / name)
    sections = here.sections()
    sections["routing"] |= {
        "routers": {name: {"directory": str(home / "routers" / name)} for name in names},
        "groups": {f"by-{name}": {"router": name} for name in names},
    }
    with upstream("small") as small, upstream("large") as large:
        deployments = [
            deployment(f"by-{name}", one, id_=f"{name}-{one.name}") for name in names for one in (small, large)
        ]
        with gateway(home / "gateway", deployments, environment={"PYTHONPATH": str(site)}, **sections) as running:
            yield running


@pytest.mark.parametrize("strategy", [*FAMILIES, OWN])
def test_every_strategy_name_routes_its_own_group(served, strategy):
    found = served.status()["routers"][strategy]
    assert found["serving"], found["problem"]
    for prompt, best in (("easy what is the", "small"), ("hard theorem of", "large")):
        answer = served.chat(prompt, model=f"by-{strategy}")
        assert answer.headers["x-appliance-routing"] == f"ml:{strategy}; success; best_score"
        assert answer.headers["x-appliance-deployment"] == f"{strategy}-{best}"
    asked = {"request_id": answer.headers["x-appliance-request-id"]}
    told = served.client.get("/appliance/why", params=asked).json()["decisions"][0]
    if strategy in {"knn", "elo", "ensemble"}:
        assert told["neighbours"][0]["outcomes"] == {"a": 0.0, "b": 1.0}
        assert told["neighbours"][0]["cosine"] > 0.9
    else:
        assert (told["neighbours"], told["no_neighbours"]) == (None, f"{strategy} remembers no prompts")
