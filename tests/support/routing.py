# ruff: noqa: E501 (tables and small programs read better in one line)
"""A real, tiny encoder and KNN routers that choose by a prompt's first words; signed, for gateway tests.

The encoder is an ONNX network like the real one (ids and mask in, `prompt_vector` out), with a word-level vocabulary:
prompts that begin with `easy` and with `hard` lie far apart. `work` adds matrix products, to make it slow on purpose.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from appliance.artifact import SIGNATURE_NAME, ArtifactFiles, from_files
from appliance.files import sha256_hex
from appliance.routers.encoder import load_encoder
from appliance.routers.families.knn import Knn, KnnParameters
from appliance.routers.loading import write_strategy_files
from appliance.trust.signing import Signer
from tests.support.trust import DevelopmentAuthority

WORDS = ("[UNK]", "easy", "hard", "what", "prove", "the", "is", "theorem", "capital", "of")
DIMENSIONS = 16
CREATED = "2026-11-23T12:00:00Z"


@cache
def encoder_files(work: int = 0) -> dict[str, bytes]:
    """An unsigned encoder artifact.

    Args:
        work: matrix products of 512x512 a call (2 to 3 ms each on one core of a small machine).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = np.random.default_rng(7).standard_normal((len(WORDS), DIMENSIONS)).astype(np.float32) * 0.1
    table[1, 0], table[2, 0] = 4.0, -4.0  # easy, hard
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"], axis=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis2"], ["mask3"]),
        helper.make_node("Mul", ["vectors", "mask3"], ["kept"]),
        helper.make_node("ReduceMean", ["kept", "axis1"], ["mean"], keepdims=0),
    ]
    weights = {"table": table, "axis2": np.array([2], np.int64), "axis1": np.array([1], np.int64)}
    if work:
        weights["square"] = np.eye(512, dtype=np.float32)
        # depends on the input, so that it cannot be folded away
        nodes += [
            helper.make_node("ReduceMean", ["mean", "axis1"], ["scalar"], keepdims=1),
            helper.make_node("Mul", ["square", "scalar"], ["m0"]),
            *(helper.make_node("MatMul", [f"m{n}", "square"], [f"m{n + 1}"]) for n in range(work)),
            helper.make_node("ReduceMean", [f"m{work}", "axes01"], ["burnt"], keepdims=1),
            helper.make_node("Mul", ["burnt", "zero"], ["nothing"]),
            helper.make_node("Add", ["mean", "nothing"], ["prompt_vector"]),
        ]
        weights |= {"axes01": np.array([0, 1], np.int64), "zero": np.zeros((1, 1), np.float32)}
    else:
        nodes.append(helper.make_node("Identity", ["mean"], ["prompt_vector"]))
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("prompt_vector", TensorProto.FLOAT, ["batch", DIMENSIONS])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    metadata = {
        "schema_version": 1, "name": "tiny", "format": "onnx", "network": "encoder.onnx", "tokenizer": "tokenizer.json",
        "dimensions": DIMENSIONS, "max_tokens": 128, "pooling": "mean", "normalize": False,
        "source": {"package": "tests"}, "fidelity": {"compared": 0},
    }  # fmt: skip
    return {
        "encoder.onnx": model.SerializeToString(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "encoder.yaml": yaml.safe_dump(metadata, sort_keys=False).encode(),
    }


def router_files(
    *, labels: dict[str, str], version: str = "1.0.0", encoder: dict[str, bytes] | None = None, swapped: bool = False
) -> dict[str, bytes]:
    """An unsigned KNN router: `easy ...` goes to the first label, `hard ...` to the second.

    Args:
        labels: label -> model name or deployment id; two of them.
        version: in its metadata.
        encoder: files of the encoder it is fitted with.
        swapped: the other way round.
    """
    files = encoder if encoder is not None else encoder_files()
    loaded = load_encoder(from_files(files))
    texts = ["easy what is the capital", "easy the", "hard prove the theorem", "hard of"]
    outcomes = np.array([[1, 0.2], [1, 0.2], [0.1, 0.9], [0.1, 0.9]], np.float32)
    if swapped:
        outcomes = outcomes[:, ::-1].copy()
    strategy = Knn(tuple(labels), loaded.encode(texts), outcomes, KnnParameters(k=2))
    content = write_strategy_files(strategy.dump())
    metadata: dict[str, Any] = {
        "schema_version": 1, "name": "default", "version": version, "strategy": "knn", "hyperparameters": {"k": 2},
        "labels": labels, "files": {name: sha256_hex(data) for name, data in content.items()},
        "encoder_digest": loaded.digest, "training_data_digest": "1" * 64, "evaluation": {}, "created": CREATED,
        "minimum_appliance_version": "0.1.0",
    }  # fmt: skip
    return {**content, "router.yaml": yaml.safe_dump(metadata, sort_keys=False).encode()}


def sign(files: dict[str, bytes], signer: Signer) -> ArtifactFiles:
    """The artifact with its signature."""
    return from_files({**files, SIGNATURE_NAME: signer.sign_artifact(files)})


def place(artifact: ArtifactFiles, folder: Path) -> None:
    """Put an artifact into a folder as an operator's copy does: file by file, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = dict(artifact.files)
    if artifact.signature is not None:
        wanted[SIGNATURE_NAME] = artifact.signature
    for stale in folder.iterdir():
        if stale.name not in wanted:
            stale.unlink()
    for name, data in wanted.items():
        (folder / name).write_bytes(data)


@dataclass(frozen=True)
class Zone:
    """What a gateway finds in its zone: trust, an encoder, a folder for a router.

    Attributes:
        directory: holds all of it.
        authority: signs.
        labels: of its routers.
        encoder: files of its encoder.
    """

    directory: Path
    authority: DevelopmentAuthority
    labels: dict[str, str]
    encoder: dict[str, bytes]

    @property
    def router_directory(self) -> Path:
        """Where the gateway looks for its router."""
        return self.directory / "router"

    def artifact(self, *, role: str = "import-officer", **options: Any) -> ArtifactFiles:
        """A signed router for this zone."""
        return sign(router_files(labels=self.labels, encoder=self.encoder, **options), self.authority.signer(role))

    def put(self, **options: Any) -> ArtifactFiles:
        """Sign a router and place it where the gateway looks."""
        made = self.artifact(**options)
        place(made, self.router_directory)
        return made

    def sections(self, *, group: str = "chat", router: dict[str, Any] | None = None, **routing: Any) -> dict[str, Any]:
        """Sections of appliance.yaml."""
        settings = {"directory": str(self.router_directory), "poll_interval_s": 0.1, **(router or {})}
        return {
            "trust": {"store": str(self.directory / "trust")},
            "routing": {
                "deadline_ms": 500,  # the machine of the tests is busy; the deadline has tests of its own
                "encoders": [str(self.directory / "encoder")],
                "routers": {"default": settings},
                "groups": {group: {"strategy": "ml", "router": "default"}},
                **routing,
            },
        }


def zone(directory: Path, authority: DevelopmentAuthority, *, labels: dict[str, str], work: int = 0) -> Zone:
    """A zone with trust store and encoder; the router is placed by `put`."""
    made = Zone(directory, authority, labels, encoder_files(work))
    directory.mkdir(parents=True, exist_ok=True)
    authority.store(directory / "trust")
    place(sign(made.encoder, authority.signer("release-signer")), directory / "encoder")
    return made


def prompts(count: int, kind: str = "easy") -> list[str]:
    """Different prompts of one kind."""
    return [f"{kind} what is the capital of number {json.dumps(n)}" for n in range(count)]
