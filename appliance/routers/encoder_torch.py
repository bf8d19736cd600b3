"""The alternative encoder backend: the original sentence-transformers weights under torch, fp32, outside the default.

Some four times slower than the int8 export and half a gigabyte heavier; for zones that must serve the very network a
team has evaluated. torch and transformers are imported only when a signed encoder asks for it, and the network is built
from the verified bytes: no path, no hub, no code that comes with a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance import documents
from appliance.artifact import ArtifactFiles, EncoderMetadata
from appliance.errors import ApplianceError, RouterError
from appliance.routers.token_encoder import TokenEncoder

CONFIG_NAME = "config.json"
ARCHITECTURES = frozenset({"bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "camembert", "electra"})


class TorchEncoder(TokenEncoder):
    """A transformer with mean or CLS pooling, as sentence-transformers computes it.

    Args:
        artifact: the verified files; beside network and tokenizer `config.json`, the architecture.
        metadata: its `encoder.yaml`.
        threads: torch's threads, of the whole process.
        max_tokens: longest input.

    Raises:
        RouterError: ROUTER_BACKEND where torch or transformers are not installed; ROUTER_ENCODER where the parts do
            not fit together.
    """

    def __init__(self, artifact: ArtifactFiles, metadata: EncoderMetadata, *, threads: int, max_tokens: int) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise RouterError(
                "ROUTER_BACKEND", f"this encoder needs torch: {str(error)[:200]}", package=error.name, format="torch"
            ) from None
        super().__init__(artifact, metadata, max_tokens=max_tokens)
        torch.set_num_threads(threads)
        # for the process, too: oneDNN writes machine code and runs it, which `MemoryDenyWriteExecute` forbids
        # (pytorch#143651); torch's own functions give the same vectors to 2e-7, in no more time
        torch.backends.mkldnn.enabled = False
        self._torch, self._pooling, self._normalize = torch, metadata.pooling, metadata.normalize
        config = _config(artifact, metadata)
        try:
            from safetensors.torch import load

            models: Any = transformers.AutoModel
            self._network = models.from_config(transformers.AutoConfig.for_model(**config), trust_remote_code=False)
            missing, _ = self._network.load_state_dict(load(artifact.files[metadata.network]), strict=False)
        except Exception as error:  # noqa: BLE001 (torch and transformers raise their own)
            raise RouterError("ROUTER_ENCODER", f"the encoder cannot be built: {str(error)[:300]}") from None
        # a pooler is not used, and positions are computed; any other tensor that is missing would be random
        lacking = [name for name in missing if not name.startswith("pooler.") and not name.endswith("position_ids")]
        if lacking or self._network.config.hidden_size != self.dimensions:
            raise RouterError(
                "ROUTER_ENCODER", "the weights do not fill the network that config.json describes", missing=lacking[:10]
            )
        self._network.eval()

    def run(self, ids: list[int]) -> NDArray[np.float32]:
        """The vector of one text's tokens."""
        with self._torch.inference_mode():
            row = self._torch.tensor([ids])
            hidden = self._network(input_ids=row, attention_mask=self._torch.ones_like(row)).last_hidden_state[0]
            vector = hidden.mean(dim=0) if self._pooling == "mean" else hidden[0]
            if self._normalize:
                vector = self._torch.nn.functional.normalize(vector, dim=0)
            return np.asarray(vector.numpy(), np.float32)


def _config(artifact: ArtifactFiles, metadata: EncoderMetadata) -> Mapping[str, Any]:
    if CONFIG_NAME not in artifact.files:
        raise RouterError("ROUTER_ENCODER", f"an encoder of the format {metadata.format} needs {CONFIG_NAME}")
    try:
        config = documents.read_json(artifact.files[CONFIG_NAME], what=CONFIG_NAME)
    except ApplianceError as error:
        raise RouterError("ROUTER_ENCODER", error.cause, **error.evidence) from None
    if not isinstance(config, dict) or config.get("model_type") not in ARCHITECTURES or "auto_map" in config:
        raise RouterError(
            "ROUTER_ENCODER", f"{CONFIG_NAME} names no architecture that is known here", known=sorted(ARCHITECTURES)
        )
    return config
