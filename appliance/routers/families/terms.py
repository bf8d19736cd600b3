"""Linear regression on hashed words and word pairs, weighted by how rare they are."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, parameters
from appliance.routers.text_features import MAX_TERM_BITS, hashed_terms


class TermsParameters(BaseModel):
    """Parameters of `Terms`: which text features it was fitted on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: Literal["hashed-terms-1"] = "hashed-terms-1"
    bits: Annotated[int, Field(ge=8, le=MAX_TERM_BITS)]


class TermWeights:
    """Turns a text into a unit-length sparse row and multiplies it with a matrix; shared by `terms` and `forest`.

    Args:
        bits: columns are 2**bits.
        rarity: shape (2**bits,), inverse document frequency; 0 for terms to ignore.
        matrix: shape (2**bits, k).
    """

    def __init__(self, bits: int, rarity: Floats, matrix: Floats) -> None:
        self.bits, self.rarity, self.matrix = bits, rarity, matrix

    def product(self, text: str) -> Floats:
        """The row of one text times the matrix, shape (k,)."""
        columns, values = hashed_terms(text, bits=self.bits)
        weighted = values * self.rarity[columns]
        length = float(np.sqrt(weighted @ weighted))
        if length < 1e-9:
            return np.zeros(self.matrix.shape[1], np.float32)
        return np.asarray((weighted / np.float32(length)) @ self.matrix[columns], np.float32)

    def products(self, texts: tuple[str, ...]) -> Floats:
        """Rows of several texts, shape (n, k)."""
        return np.array([self.product(text) for text in texts], np.float32).reshape(len(texts), self.matrix.shape[1])


class Terms(Strategy):
    """Ridge regression of the scores on hashed terms; looks at the text, not at the vector."""

    name: ClassVar[str] = "terms"

    def __init__(self, labels: tuple[str, ...], terms: TermWeights, bias: Floats) -> None:
        super().__init__(labels)
        self.terms, self.bias = terms, bias

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels)."""
        return self.terms.products(prompts.texts) + self.bias

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `rarity`, `weights`, `bias` and its parameters."""
        bits = parameters(TermsParameters, files, cls.name).bits
        rarity = files.tensor("rarity", dtype="float32", shape=(1 << bits,))
        weights = files.tensor("weights", dtype="float32", shape=(1 << bits, len(labels)))
        bias = files.tensor("bias", dtype="float32", shape=(len(labels),))
        return cls(labels, TermWeights(bits, rarity, weights), bias)

    def dump(self) -> StrategyFiles:
        """Tensors `rarity`, `weights`, `bias`; parameters."""
        tensors = {"rarity": self.terms.rarity, "weights": self.terms.matrix, "bias": self.bias}
        return StrategyFiles(TermsParameters(bits=self.terms.bits).model_dump(), tensors)
