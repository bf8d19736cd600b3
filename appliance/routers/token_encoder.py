"""What encoders over the Rust tokenizer share: text to tokens, of a long one its head and tail, one text at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import ArtifactFiles, EncoderMetadata
from appliance.errors import RouterError
from appliance.routers.strategies import Floats, Prompts

MAX_CHARACTERS_PER_TOKEN = 16  # text beyond this many characters a token can only lie in the truncated middle


class TokenEncoder(ABC):
    """An encoder over the Rust tokenizer; safe to share between threads.

    Each text runs on its own: int8 activation scales are per tensor, so that a batch-mate would change the vector.

    Args:
        artifact: the verified files.
        metadata: its `encoder.yaml`.
        max_tokens: longest input, special tokens included.

    Raises:
        RouterError: ROUTER_ENCODER where the tokenizer cannot be built.
    """

    def __init__(self, artifact: ArtifactFiles, metadata: EncoderMetadata, *, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self.digest, self.dimensions, self.max_tokens = artifact.digest, metadata.dimensions, max_tokens
        try:
            self._tokenizer = Tokenizer.from_buffer(artifact.files[metadata.tokenizer])
        except Exception as error:  # noqa: BLE001 (it raises a bare Exception)
            raise RouterError("ROUTER_ENCODER", f"the encoder cannot be built: {str(error)[:300]}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @abstractmethod
    def run(self, ids: list[int]) -> NDArray[np.float32]:
        """The vector of one text's tokens, shape (dimensions,)."""

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens included; a long one keeps its head and its tail.

        The head gets the odd token; the question is at one of the two ends.
        """
        room = self.max_tokens * MAX_CHARACTERS_PER_TOKEN
        if len(text) > 2 * room:
            text = f"{text[:room]} {text[-room:]}"
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) <= self.max_tokens:
            return ids
        tail = self.max_tokens // 2
        return ids[: self.max_tokens - tail] + ids[len(ids) - tail :]

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors of cleaned texts, shape (n, dimensions).

        Raises:
            RouterError: ROUTER_ENCODER where the network gives something else than finite numbers.
        """
        rows = np.empty((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            rows[row] = self.run(self.token_ids(text))
        if not np.isfinite(rows).all():
            raise RouterError("ROUTER_ENCODER", "the network gave NaN or infinity", encoder=self.digest)
        return rows

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """The batch that a strategy scores: texts and their vectors."""
        return Prompts(tuple(texts), self.encode(texts))
