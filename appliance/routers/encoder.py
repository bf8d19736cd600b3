"""The encoder: cleaned prompt text to a vector, with onnxruntime and the Rust tokenizer, from verified bytes.

The default is the int8 network in ONNX; `encoder_torch` is the alternative that a signed encoder can ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import ArtifactFiles, EncoderMetadata, encoder_metadata
from appliance.errors import RouterError
from appliance.routers.onnx_file import open_session
from appliance.routers.strategies import Floats, Prompts
from appliance.routers.token_encoder import TokenEncoder

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "prompt_vector"


class Encoder(Protocol):
    """Turns text into vectors.

    Attributes:
        digest: of the artifact; a router names the encoder it was fitted with by it.
        dimensions: length of a vector.
    """

    digest: str
    dimensions: int

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of cleaned texts, shape (n, dimensions)."""

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """The batch that a strategy scores: texts and their vectors."""


class OnnxEncoder(TokenEncoder):
    """An int8 network behind onnxruntime.

    Args:
        artifact, metadata, max_tokens: as `TokenEncoder`.
        threads: onnxruntime's, of one call.

    Raises:
        RouterError: ROUTER_NETWORK, ROUTER_ENCODER.
    """

    def __init__(self, artifact: ArtifactFiles, metadata: EncoderMetadata, *, threads: int, max_tokens: int) -> None:
        super().__init__(artifact, metadata, max_tokens=max_tokens)
        network = artifact.files[metadata.network]
        self._session = open_session(network, what=metadata.network, threads=threads, code="ROUTER_ENCODER")
        inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        if inputs != set(INPUTS) or OUTPUT not in outputs or outputs[OUTPUT][-1] not in (self.dimensions, None):
            raise RouterError(
                "ROUTER_ENCODER",
                f"the network must take {INPUTS} and give {OUTPUT} of {self.dimensions} numbers",
                inputs=sorted(inputs),
                outputs=outputs,
            )

    def run(self, ids: list[int]) -> NDArray[np.float32]:
        """The vector of one text's tokens."""
        row = np.array([ids], np.int64)
        feeds = {"input_ids": row, "attention_mask": np.ones_like(row)}
        vector: NDArray[np.float32] = np.asarray(self._session.run([OUTPUT], feeds)[0], np.float32)
        if vector.shape != (1, self.dimensions):
            raise RouterError("ROUTER_ENCODER", f"the network gave shape {vector.shape}", dimensions=self.dimensions)
        return vector.reshape(self.dimensions)


def load_encoder(artifact: ArtifactFiles, *, threads: int = 1, max_tokens: int | None = None) -> TokenEncoder:
    """Build the encoder of a *verified* artifact.

    Args:
        artifact: the verified files.
        threads: onnxruntime threads of one call; 1 where several callers share the cores.
        max_tokens: a lower limit than the artifact's, to bound latency; it changes the vectors of longer prompts.

    Raises:
        ArtifactError: ARTIFACT_MISSING, ARTIFACT_METADATA.
        RouterError: ROUTER_NETWORK for a file that is no plain self-contained network, ROUTER_ENCODER where the
            parts do not fit together, ROUTER_BACKEND where its format needs what is not installed here.
    """
    metadata = encoder_metadata(artifact)
    limit = metadata.max_tokens if max_tokens is None else max_tokens
    if not 4 <= limit <= metadata.max_tokens:
        raise RouterError("ROUTER_ENCODER", f"max_tokens {limit} is not within 4 to {metadata.max_tokens}")
    if metadata.format == "torch":
        from appliance.routers.encoder_torch import TorchEncoder

        return TorchEncoder(artifact, metadata, threads=threads, max_tokens=limit)
    return OnnxEncoder(artifact, metadata, threads=threads, max_tokens=limit)
