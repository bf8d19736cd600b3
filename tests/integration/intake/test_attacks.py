"""Malicious and malformed models: each refused with its code, nothing executed, nothing left behind."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from appliance.cli.main import app
from appliance.errors import ApplianceError
from appliance.intake.examination import EncoderTrial, RouterTrial
from appliance.intake.sandbox import Limits
from tests.support import intake, routing
from tests.support.artifacts import signed, write
from tests.support.intake import Desk
from tests.support.trust import DevelopmentAuthority, make_authority

CANARY = Path(f"/tmp/appliance-canary-{os.getpid()}")  # what every payload would make, if it ran


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentAuthority:
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def desk(tmp_path: Path, authority: DevelopmentAuthority) -> Desk:
    return Desk(tmp_path, authority)


def test_the_canary_sings_when_a_payload_runs() -> None:
    """The twin of all the rest: the same payload, loaded as an unwary reader would, leaves its file."""
    CANARY.unlink(missing_ok=True)
    pickle.loads(pickle.dumps(system(), protocol=4))
    assert CANARY.exists()
    CANARY.unlink()


class Gadget:
    """A call that a pickle makes when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def system() -> Gadget:
    return Gadget(os.system, f"touch {CANARY}")


def honest() -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(1).fit(*intake.training_set())


def raw(*opcodes: bytes) -> bytes:
    return b"\x80\x04" + b"".join(opcodes) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def assembled() -> bytes:
    """os.system by STACK_GLOBAL, its two names fetched from the memo."""
    call = text(f"touch {CANARY}") + b"\x85R"
    return raw(text("posix"), b"\x94", text("system"), b"\x94", b"00", b"h\x00", b"h\x01", b"\x93", call)


def made_up() -> bytes:
    """STACK_GLOBAL over a name that only exists at run time (the result of a call)."""
    return raw(b"cnumpy\ndtype\n", text("f4"), b"\x85R", text("system"), b"\x93")


def in_array() -> bytes:
    array = np.empty(1, dtype=object)
    array[0] = system()
    estimator = honest()
    estimator.classes_ = array
    return pickle.dumps(estimator, protocol=4)


def pipeline() -> bytes:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer

    steps = [("a", FunctionTransformer(os.system)), ("b", honest())]
    return pickle.dumps(Pipeline(steps), protocol=4)


def joblib_dump() -> bytes:
    import joblib

    buffer = io.BytesIO()
    joblib.dump(honest(), buffer)
    return buffer.getvalue()


def huge_array() -> bytes:
    """numpy's own rebuilding function, asked for eight terabytes."""
    return raw(
        b"cnumpy._core.multiarray\n_reconstruct\n",
        b"(cnumpy\nndarray\n",
        b"\x8a\x06\0\0\0\0\0\x01\x85",
        b"C\x01b",
        b"tR",
    )


def deep() -> bytes:
    return raw(b"(" * 3000, b"l" * 3000)


PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "reduce-os-system": (lambda: pickle.dumps(system(), protocol=4), "INTAKE_PICKLE_IMPORT"),
    "reduce-protocol-0": (lambda: pickle.dumps(system(), protocol=0), "INTAKE_PICKLE_FORM"),
    "reduce-protocol-2": (lambda: pickle.dumps(system(), protocol=2), "INTAKE_PICKLE_IMPORT"),
    "eval": (lambda: pickle.dumps(Gadget(eval, f"open({str(CANARY)!r}, 'w')"), protocol=4), "INTAKE_PICKLE_IMPORT"),
    "exec": (lambda: pickle.dumps(Gadget(exec, "import os"), protocol=4), "INTAKE_PICKLE_IMPORT"),
    "names-from-the-memo": (assembled, "INTAKE_PICKLE_IMPORT"),
    "name-made-at-run-time": (made_up, "INTAKE_PICKLE_IMPORT"),
    "old-opcode-inst": (lambda: raw(b"(S'touch'\niposix\nsystem\n"), "INTAKE_PICKLE_FORM"),
    "old-opcode-obj": (lambda: raw(b"(cposix\nsystem\n", text("true"), b"o"), "INTAKE_PICKLE_FORM"),
    "extension-registry": (lambda: raw(b"\x82\x01"), "INTAKE_PICKLE_FORM"),
    "persistent-id": (lambda: raw(text("x"), b"Q"), "INTAKE_PICKLE_FORM"),
    "nested-pickle": (
        lambda: pickle.dumps(Gadget(pickle.loads, pickle.dumps(system())), protocol=4),
        "INTAKE_PICKLE_IMPORT",
    ),
    "gzip": (lambda: gzip.compress(pickle.dumps(system())), "INTAKE_PICKLE_FORM"),
    "bzip2": (lambda: bz2.compress(pickle.dumps(system())), "INTAKE_PICKLE_FORM"),
    "xz": (lambda: lzma.compress(pickle.dumps(system())), "INTAKE_PICKLE_FORM"),
    "zlib": (lambda: zlib.compress(pickle.dumps(system())), "INTAKE_PICKLE_FORM"),
    "zip-around-it": (lambda: archive(("model.pkl", pickle.dumps(system()))), "INTAKE_PICKLE_FORM"),
    "joblib": (joblib_dump, "INTAKE_PICKLE_FORM"),
    "second-stream": (
        lambda: pickle.dumps(honest(), protocol=4) + pickle.dumps(system(), protocol=4),
        "INTAKE_PICKLE_FORM",
    ),
    "hidden-in-an-object-array": (in_array, "INTAKE_PICKLE_IMPORT"),
    "pipeline-with-a-function": (pipeline, "INTAKE_PICKLE_IMPORT"),
    "numpy-runstring": (
        lambda: raw(b"cnumpy.testing._private.utils\nrunstring\n", text("import os"), b"}\x86R"),
        "INTAKE_PICKLE_IMPORT",
    ),
    "allowed-module-other-name": (
        lambda: raw(b"cnumpy\nload\n", text("/etc/passwd"), b"\x85R"),
        "INTAKE_PICKLE_IMPORT",
    ),
    "cut-short": (lambda: pickle.dumps(honest(), protocol=4)[:-40], "INTAKE_PICKLE_FORM"),
    "empty": (lambda: b"", "INTAKE_PICKLE_FORM"),
}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that is this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def outcome(desk: Desk, source: Path, trial: RouterTrial | EncoderTrial | None = None, **more: Any) -> str:
    """Examine; the code of the refusal. Nothing may have run, and nothing may be left but the journal."""
    CANARY.unlink(missing_ok=True)
    with pytest.raises(ApplianceError) as info:
        desk.border.examine(source, trial or RouterTrial(intake.probe()), **more)
    assert not CANARY.exists(), "something was executed"
    assert list(Path(tempfile.gettempdir()).iterdir()) == [], "a temporary file was left behind"
    cases = desk.root / "border" / "cases"
    assert list(cases.iterdir()) == [], "something was left behind"
    assert desk.registry.versions() == []
    last = desk.border.journal.verify().lines[-1]
    assert (last.event, last.details["code"]) == ("refused", info.value.code)
    return info.value.code


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_pickle_is_refused_unopened(desk: Desk, name: str) -> None:
    make, code = PICKLES[name]
    assert outcome(desk, desk.hand_in(intake.router({"model.pkl": make()}))) == code


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as out:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = mode << 16
            out.writestr(info, data)
    return buffer.getvalue()


def torch_save(value: Any, **options: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def state() -> dict[str, Any]:
    import torch

    return {"0.weight": torch.zeros(3, 8), "0.bias": torch.zeros(3)}


def module() -> Any:
    import torch

    return torch.nn.Linear(8, 3)


def with_gadget() -> bytes:
    """An honest archive whose data.pkl was exchanged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(torch_save(state()))) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            data = pickle.dumps(system(), protocol=2) if info.filename.endswith("data.pkl") else old.read(info)
            new.writestr(info.filename, data)
    return buffer.getvalue()


def unlisted() -> bytes:
    """A gadget's archive before an honest one: who reads from the front meets it, the directory does not name it."""
    gadget = archive(("m/data.pkl", pickle.dumps(system(), protocol=2)))
    buffer = io.BytesIO(gadget[: gadget.find(b"PK\x01\x02")])
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(io.BytesIO(torch_save(state()))) as old, zipfile.ZipFile(buffer, "a") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return buffer.getvalue()


def elsewhere() -> bytes:
    """A member that its directory looks for beyond every file's end."""
    data = bytearray(archive(("m/data.pkl", PLAIN), ("m/version", b"3")))
    last = data.rfind(b"PK\x01\x02")
    extra = struct.pack("<HHQ", 1, 8, 2**63 + 1)
    data[last + 30 : last + 32] = struct.pack("<H", len(extra))
    data[last + 42 : last + 46] = b"\xff" * 4
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", struct.unpack("<I", data[end + 12 : end + 16])[0] + len(extra))
    data[end:end] = extra
    return bytes(data)


def renamed() -> bytes:
    """A member that lies under another name than its directory has for it."""
    return archive(("m/data.pkl", PLAIN)).replace(b"m/data.pkl", b"m/code.pkl", 1)


PLAIN = pickle.dumps({}, protocol=2)
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip-slip": (lambda: archive(("m/data.pkl", PLAIN), ("../../tmp/evil", b"x")), "INTAKE_TORCH_FORM"),
    "absolute-member": (lambda: archive(("m/data.pkl", PLAIN), ("/tmp/evil", b"x")), "INTAKE_TORCH_FORM"),
    "symlink-member": (
        lambda: archive(("m/data.pkl", PLAIN), ("m/data/0", b"/etc"), mode=0o120777),
        "INTAKE_TORCH_FORM",
    ),
    "member-twice": (lambda: archive(("m/data.pkl", PLAIN), ("m/data.pkl", PLAIN)), "INTAKE_TORCH_FORM"),
    "two-archives-in-one": (lambda: archive(("m/data.pkl", PLAIN), ("n/data.pkl", PLAIN)), "INTAKE_TORCH_FORM"),
    "compressed-bomb": (
        lambda: archive(("m/data.pkl", PLAIN), ("m/data/0", bytes(10**6)), compression=zipfile.ZIP_DEFLATED),
        "INTAKE_TORCH_FORM",
    ),
    "prefix-before-the-archive": (lambda: b"#!/bin/sh\n" + archive(("m/data.pkl", PLAIN)), "INTAKE_TORCH_FORM"),
    "bytes-after-the-archive": (lambda: archive(("m/data.pkl", PLAIN)) + b"more", "INTAKE_TORCH_FORM"),
    "member-that-no-directory-names": (unlisted, "INTAKE_TORCH_FORM"),
    "member-beyond-every-end": (elsewhere, "INTAKE_TORCH_FORM"),
    "member-of-two-names": (renamed, "INTAKE_TORCH_FORM"),
    "torchscript-code": (lambda: archive(("m/data.pkl", PLAIN), ("m/code/a.py", b"x")), "INTAKE_TORCH_FORM"),
    "old-format": (lambda: torch_save(state(), _use_new_zipfile_serialization=False), "INTAKE_TORCH_FORM"),
    "gadget-in-data-pkl": (with_gadget, "INTAKE_PICKLE_IMPORT"),
    "whole-module": (lambda: torch_save(module()), "INTAKE_PICKLE_IMPORT"),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_torch_file_is_refused_unopened(desk: Desk, name: str) -> None:
    make, code = ARCHIVES[name]
    assert outcome(desk, desk.hand_in(intake.router({"model.pt": make()}, hyperparameters={}))) == code


def skops_with(change: Callable[[dict[str, Any]], None] | None = None, *more: tuple[str, bytes]) -> bytes:
    """An honest skops file, its schema changed."""
    import skops.io

    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(honest()))) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "schema.json" and change is not None:
                schema = json.loads(data)
                change(schema)
                data = json.dumps(schema).encode()
            new.writestr(info.filename, data)
        for name, data in more:
            new.writestr(name, data)
    return buffer.getvalue()


def node(module: str, name: str, loader: str) -> Callable[[dict[str, Any]], None]:
    return lambda schema: schema.update({"__module__": module, "__class__": name, "__loader__": loader})


SKOPS: dict[str, Callable[[], bytes]] = {
    "function": lambda: skops_with(node("os", "system", "FunctionNode")),
    "type-of-another-module": lambda: skops_with(node("subprocess", "Popen", "ObjectNode")),
    "method": lambda: skops_with(node("builtins", "getattr", "MethodNode")),
    "class-through-another-loader": lambda: skops_with(node("sklearn.neighbors", "KNeighborsClassifier", "TypeNode")),
    "old-protocol": lambda: skops_with(lambda schema: schema.update({"protocol": 0})),
    "member-twice": lambda: skops_with(None, ("schema.json", b"{}")),
    "member-that-nobody-reads": lambda: skops_with(None, ("../../evil.pkl", pickle.dumps(system(), protocol=4))),
    "prefix-before-the-archive": lambda: b"#!/bin/sh\n" + skops_with(),
    "no-archive": lambda: b"PK\x03\x04 and no more",
    "a-pickle-by-another-name": lambda: pickle.dumps(system(), protocol=4),
}


@pytest.mark.parametrize("name", SKOPS)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_skops_file_is_refused_unopened(desk: Desk, name: str) -> None:
    assert outcome(desk, desk.hand_in(intake.router({"model.skops": SKOPS[name]()}))) == "INTAKE_FORMAT"


def tensors(header: dict[str, Any] | bytes, body: bytes, length: int | None = None) -> bytes:
    raw_header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw_header) if length is None else length) + raw_header + body


def one(name: str, begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


TENSORS: dict[str, bytes] = {
    "header-longer-than-the-file": tensors({}, b"", length=2**40),
    "overlapping-tensors": tensors({**one("a", 0, 8, [2]), **one("b", 4, 12, [2])}, bytes(12)),
    "size-against-shape": tensors(one("a", 0, 8, [2**30]), bytes(8)),
    "bytes-nobody-describes": tensors(one("a", 0, 8, [2]), bytes(8) + b"hidden"),
    "gap-between-tensors": tensors({**one("a", 0, 8, [2]), **one("b", 16, 24, [2])}, bytes(24)),
    "key-twice": tensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "unknown-type": tensors(one("a", 0, 8, [2], dtype="OBJ"), bytes(8)),
    "negative-offset": tensors(one("a", -8, 0, [2]), b""),
    "no-header": b"\0\0",
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_lying_safetensors_header_is_refused(desk: Desk, name: str) -> None:
    payload = {**intake.knn_payload(), "weights.safetensors": TENSORS[name]}
    assert outcome(desk, desk.hand_in(intake.router(payload))) == "INTAKE_TENSORS_FORM"


def network(
    *, external: bool = False, grows: bool = False, loops: bool = False, throws_dice: bool = False, trains: bool = False
) -> bytes:
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 3], np.zeros((8, 3), np.float32).tobytes(), raw=True)
    if external:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", "../../../etc/passwd"
    nodes = [helper.make_node("MatMul", ["embedding", "w"], ["scores"])]
    initializers = [weight]
    if grows:
        shape = helper.make_tensor("shape", TensorProto.INT64, [2], [200_000, 200_000])
        initializers.append(shape)
        nodes = [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["embedding", "w"], ["product"]),
            helper.make_node("Add", ["product", "sum"], ["scores"]),
        ]
    if loops:
        nodes = [helper.make_node("Loop", ["", "", "embedding"], ["scores"])]
    if throws_dice:
        nodes = [
            helper.make_node("MatMul", ["embedding", "w"], ["product"]),
            helper.make_node("RandomNormalLike", ["product"], ["scores"]),
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 3])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if trains:
        model.training_info.add().initialization.initializer.add().data_location = TensorProto.EXTERNAL
    return bytes(model.SerializeToString())


def two_faced() -> bytes:
    """Decides well among many prompts; asked about one, as gateways ask, it sends everything to one model."""
    from onnx import TensorProto, helper, numpy_helper

    one, zero = np.array([1], np.int64), np.array([0], np.int64)
    given = {"w": np.eye(8, 3, dtype=np.float32), "one": one, "zero": zero, "last": np.float32([[0, 0, 1]])}
    nodes = [
        helper.make_node("MatMul", ["embedding", "w"], ["honest"]),
        helper.make_node("Shape", ["embedding"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Greater", ["rows", "one"], ["many"]),
        helper.make_node("Where", ["many", "honest", "last"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_router(data: bytes) -> dict[str, bytes]:
    from appliance.routers.loading import write_strategy_files
    from appliance.routers.strategies import StrategyFiles

    files = StrategyFiles({"input": "embedding", "output": "scores"}, {"network": np.frombuffer(data, np.uint8)})
    return intake.router(write_strategy_files(files), strategy="onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "codes"),
    [
        pytest.param(lambda: network(external=True), {"ROUTER_NETWORK"}, id="external-data"),
        pytest.param(lambda: network(loops=True), {"ROUTER_NETWORK"}, id="loop"),
        pytest.param(lambda: network(throws_dice=True), {"ROUTER_NETWORK"}, id="dice"),
        pytest.param(lambda: network(trains=True), {"ROUTER_NETWORK"}, id="external-data-for-training"),
        pytest.param(two_faced, {"INTAKE_BEHAVIOUR"}, id="another-answer-to-one-than-to-many"),
        pytest.param(lambda: b"\x08\x07not a network", {"ROUTER_NETWORK"}, id="no-network"),
        pytest.param(
            lambda: network(grows=True),
            {"ROUTER_SCORES", "ROUTER_NETWORK", "INTAKE_CONVERSION", "INTAKE_CONVERSION_KILLED"},
            id="grows-to-160-gigabytes",
        ),
    ],
)
def test_a_hostile_network_is_refused(desk: Desk, make: Callable[[], bytes], codes: set[str]) -> None:
    assert outcome(desk, desk.hand_in(onnx_router(make()))) in codes


def test_an_onnx_file_beside_the_weights_is_looked_into(desk: Desk) -> None:
    payload = {**intake.knn_payload(), "extra.onnx": network(external=True)}
    assert outcome(desk, desk.hand_in(intake.router(payload))) == "INTAKE_FORMAT"


def nan_weights() -> dict[str, bytes]:
    points, _ = intake.training_set()
    return intake.knn_payload(points=np.where(np.arange(points.size).reshape(points.shape) == 5, np.nan, points))


BEHAVIOURS: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "nan-weights": (lambda: intake.router(nan_weights()), "ROUTER_WEIGHTS"),
    "wrong-dimensions": (
        lambda: intake.router(intake.knn_payload(points=np.ones((120, 5), np.float32))),
        "INTAKE_DIMENSIONS",
    ),
    "another-encoder": (lambda: intake.router(intake.knn_payload(), encoder_digest="f" * 64), "INTAKE_DIMENSIONS"),
    "everything-to-one-model": (
        lambda: intake.router(intake.knn_payload(outcomes=np.tile(np.float32([0, 0, 1]), (120, 1)))),
        "INTAKE_BEHAVIOUR",
    ),
    "one-model-and-no-other": (
        lambda: intake.router(
            intake.knn_payload(outcomes=np.ones((120, 1), np.float32)), labels={"large": "large-model"}
        ),
        "INTAKE_BEHAVIOUR",
    ),
    "unknown-strategy": (lambda: intake.router(intake.knn_payload(), strategy="os-system"), "ROUTER_STRATEGY"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_router_that_cannot_or_should_not_decide_is_refused(desk: Desk, name: str) -> None:
    make, code = BEHAVIOURS[name]
    assert outcome(desk, desk.hand_in(make())) == code


@pytest.mark.slow
def test_an_allowed_function_asked_for_too_much_memory_is_held(desk: Desk) -> None:
    code = outcome(desk, desk.hand_in(intake.router({"model.pkl": huge_array()})))
    assert code in {"INTAKE_CONVERSION", "INTAKE_CONVERSION_KILLED", "INTAKE_SCANNER"}


YAMLS: dict[str, bytes] = {
    "python-tag": f"!!python/object/apply:os.system ['touch {CANARY}']\n".encode(),
    "anchors": b"a: &a [1,1]\nb: *a\n",
    "key-twice": b"schema_version: 1\nschema_version: 1\n",
    "not-a-mapping": b"- 1\n",
    "unknown-key": None,  # type: ignore[dict-item]
    "not-utf-8": b"\xff\xfe",
    "to-the-base-of-sixty": b"schema_version: " + b"1:" * 300 + b"1.0\n",
    "no-number": b"schema_version: .nan\n",
}


@pytest.mark.parametrize("name", YAMLS)
def test_hostile_metadata_is_refused(desk: Desk, name: str) -> None:
    files = intake.router(intake.knn_payload())
    files["router.yaml"] = YAMLS[name] or files["router.yaml"] + b"run: true\n"
    assert outcome(desk, desk.hand_in(files)) == "ARTIFACT_METADATA"


@pytest.mark.parametrize("mark", ["\n", "\x1b[2J", "\u202e", "\u200b", "\0"], ids=ascii)
def test_a_model_name_that_is_not_shown_as_it_is_is_refused(desk: Desk, mark: str) -> None:
    names = {"small": f"small-model{mark} approved", "medium": "medium-model", "large": "large-model"}
    assert outcome(desk, desk.hand_in(intake.router(intake.knn_payload(), labels=names))) == "ARTIFACT_METADATA"


def test_a_file_whose_name_is_no_text_is_refused_and_written_down(desk: Desk) -> None:
    source = desk.hand_in(intake.router(intake.knn_payload()))
    (Path(os.fsdecode(os.fsencode(source) + b"/\xff.json"))).write_text("{}")
    assert outcome(desk, source) == "FILE_UNSAFE_NAME"


@pytest.mark.parametrize("name", ["plugin.so", "setup.py", "model.joblib", "model.h5", "weights.npy", "run.sh"])
def test_a_kind_of_file_that_is_not_admitted_is_refused(desk: Desk, name: str) -> None:
    source = desk.hand_in(intake.router({**intake.knn_payload(), name: b"\x7fELF"}))
    assert outcome(desk, source) in {"INTAKE_FORMAT", "TRUST_FORMAT"}


def test_a_binary_that_calls_itself_a_readme_is_refused(desk: Desk) -> None:
    source = desk.hand_in(intake.router({**intake.knn_payload(), "README.md": b"\x7fELF\0\0"}))
    assert outcome(desk, source) == "INTAKE_FORMAT"


def test_an_unsigned_router_is_refused(desk: Desk) -> None:
    assert outcome(desk, desk.hand_in_unsigned(intake.router(intake.knn_payload()))) == "ARTIFACT_UNSIGNED"


def test_a_router_that_another_role_signed_is_refused(desk: Desk) -> None:
    source = desk.hand_in(intake.router(intake.knn_payload()), role="import-officer")
    assert outcome(desk, source) == "TRUST_ROLE"


def test_a_router_of_another_authority_is_refused(desk: Desk, tmp_path: Path) -> None:
    foreign = make_authority(tmp_path / "foreign")
    artifact = signed(intake.router(intake.knn_payload()), foreign.signer("producer"))
    assert outcome(desk, write(artifact, desk.root / "media" / "router")).startswith("TRUST_")


@pytest.mark.parametrize("name", ["weights.safetensors", "router.yaml", "artifact.sigstore.json"])
def test_a_file_changed_after_signing_is_refused(desk: Desk, name: str) -> None:
    source = desk.hand_in(intake.router(intake.knn_payload()))
    data = bytearray((source / name).read_bytes())
    data[len(data) // 2] ^= 1
    (source / name).write_bytes(bytes(data))
    assert outcome(desk, source).startswith(("TRUST_", "ARTIFACT_", "DOCUMENT_"))


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo], ids=["symlink", "fifo"])
def test_links_and_pipes_are_not_followed(desk: Desk, make: Callable[[Path], None]) -> None:
    source = desk.hand_in(intake.router(intake.knn_payload()))
    make(source / "extra.json")
    assert outcome(desk, source) == "FILE_NOT_REGULAR"


def test_a_folder_of_too_many_files_is_refused(desk: Desk) -> None:
    source = desk.hand_in(intake.router(intake.knn_payload()))
    for number in range(70):
        (source / f"{number}.json").write_text("{}")
    assert outcome(desk, source) == "FILE_TOO_LARGE"


def encoder_network(kind: str) -> bytes:
    """The tests' own encoder, its network spoilt in one way."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load_from_string(routing.encoder_files()["encoder.onnx"])
    [table] = [one for one in model.graph.initializer if one.name == "table"]
    values = numpy_helper.to_array(table).copy()
    if kind == "nan":
        values[1:] = np.nan
    elif kind == "constant":
        values[:] = 1.0
    elif kind == "half":
        values = values[:, :8]
    table.CopyFrom(numpy_helper.from_array(values, "table"))
    if kind == "external":
        table.ClearField("raw_data")
        table.data_location = TensorProto.EXTERNAL
        entry = table.external_data.add()
        entry.key, entry.value = "location", "/etc/passwd"
    return bytes(model.SerializeToString())


def tokenizer_with(pattern: str) -> bytes:
    """The tests' own tokenizer, splitting by a pattern."""
    value = json.loads(routing.encoder_files()["tokenizer.json"])
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": False}
    value["pre_tokenizer"] = split
    return json.dumps(value).encode()


def described(**changes: Any) -> bytes:
    return yaml.safe_dump({**yaml.safe_load(routing.encoder_files()["encoder.yaml"]), **changes}).encode()


ENCODERS: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "external-data": (lambda: {"encoder.onnx": encoder_network("external")}, "INTAKE_FORMAT"),
    "nan-weights": (lambda: {"encoder.onnx": encoder_network("nan")}, "ROUTER_ENCODER"),
    "one-vector-for-everything": (lambda: {"encoder.onnx": encoder_network("constant")}, "INTAKE_BEHAVIOUR"),
    "other-dimensions": (lambda: {"encoder.onnx": encoder_network("half")}, "ROUTER_ENCODER"),
    "length-that-it-has-not": (lambda: {"encoder.yaml": described(normalize=True)}, "INTAKE_BEHAVIOUR"),
    "tokenizer-regex-bomb": (lambda: {"tokenizer.json": tokenizer_with("(a+)+$|(a|aa)+b")}, "INTAKE_CONVERSION_KILLED"),
    "tokenizer-that-is-none": (lambda: {"tokenizer.json": b'{"model": {"type": "Shell"}}'}, "ROUTER_ENCODER"),
    "tokenizer-key-twice": (lambda: {"tokenizer.json": b'{"version": "1.0", "version": "1.0"}'}, "INTAKE_FORMAT"),
    "pickle-beside": (lambda: {"model.pkl": pickle.dumps(honest(), protocol=4)}, "INTAKE_FORMAT"),
    "second-network": (lambda: {"spare.onnx": routing.encoder_files()["encoder.onnx"]}, "INTAKE_FORMAT"),
    "name-of-a-path": (lambda: {"encoder.yaml": described(name="../../channels")}, "REGISTRY_NAME"),
    "unknown-key": (lambda: {"encoder.yaml": described(run="true")}, "ARTIFACT_METADATA"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_a_hostile_encoder_is_refused(desk: Desk, name: str) -> None:
    make, code = ENCODERS[name]
    source = desk.hand_in({**routing.encoder_files(), **make()})
    assert outcome(desk, source, EncoderTrial(WORDED), limits=Limits(cpu_seconds=5)) == code


WORDED = [f"{word} {n}" for n, word in enumerate(("easy", "hard", "what", "prove", "theorem") * 8)]


def test_the_suite_is_as_large_as_promised() -> None:
    named = len(PICKLES) + len(ARCHIVES) + len(TENSORS) + len(BEHAVIOURS) + len(YAMLS) + len(ENCODERS) + len(SKOPS)
    assert named >= 75


LINES = b'{"query":"a"}\n' * 1000
PACKED = gzip.compress(LINES, mtime=0)
PROMPTS = {
    "half a file": (PACKED[: len(PACKED) // 2], "DOCUMENT_MALFORMED"),
    "no gzip at all": (LINES, "DOCUMENT_MALFORMED"),
    "another checksum": (PACKED[:-8] + b"\x00\x01\x02\x03" + PACKED[-4:], "DOCUMENT_MALFORMED"),
    "other bits within": (PACKED[:20] + bytes([PACKED[20] ^ 255]) + PACKED[21:], "DOCUMENT_MALFORMED"),
    "a line without an end": (gzip.compress(b"a" * 5_000_000, mtime=0), "DOCUMENT_TOO_LARGE"),
    "in order, beside an encoder that is not": (PACKED, "ARTIFACT_UNSIGNED"),  # the honest twin: read, and on
}


@pytest.mark.parametrize("name", PROMPTS)
def test_recorded_prompts_are_refused_that_are(name: str, tmp_path: Path, authority: DevelopmentAuthority) -> None:
    data, code = PROMPTS[name]
    (tmp_path / "prompts.jsonl.gz").write_bytes(data)
    source = write({"encoder.yaml": b""}, tmp_path / "encoder")
    authority.store(tmp_path / "trust")
    places = ["--trust", str(tmp_path / "trust"), "--border", str(tmp_path / "border")]
    asked = ["artifact", "admit", str(source), "--prompts", str(tmp_path / "prompts.jsonl.gz"), *places, "--json"]
    result = CliRunner().invoke(app, asked)
    assert json.loads(result.stdout)["error"]["code"] == code
