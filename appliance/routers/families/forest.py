"""A forest of regression trees over structure, terms and vector of a prompt.

The trees lie in one flat table; a prompt walks all of them at once, level by level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RouterError
from appliance.routers.families.terms import TermWeights
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, parameters
from appliance.routers.text_features import MAX_TERM_BITS, STRUCTURE, structure

MAX_DEPTH = 512


class ForestParameters(BaseModel):
    """Parameters of `Forest`: which features its trees split on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: Literal["structure-1+hashed-terms-1+embedding"] = "structure-1+hashed-terms-1+embedding"
    bits: Annotated[int, Field(ge=8, le=MAX_TERM_BITS)]


@dataclass(frozen=True)
class Projection:
    """The features of a prompt: its structure, its terms and its vector, each of the latter in few directions.

    Attributes:
        terms: 2**bits hashed terms onto k directions (latent semantic analysis).
        centre: shape (d,), mean vector.
        directions: shape (d, r), principal directions of the vectors.
    """

    terms: TermWeights
    centre: Floats
    directions: Floats

    @property
    def width(self) -> int:
        """Number of features."""
        return len(STRUCTURE) + int(self.terms.matrix.shape[1]) + int(self.directions.shape[1])

    def features(self, prompts: Prompts) -> Floats:
        """Shape (n, width)."""
        vectors = (prompts.embeddings - self.centre) @ self.directions
        return np.concatenate([structure(prompts.texts), self.terms.products(prompts.texts), vectors], axis=1)


@dataclass(frozen=True)
class Trees:
    """Binary trees as one table of nodes.

    Attributes:
        roots: shape (trees,), int32, the node each tree starts at.
        feature: shape (nodes,), int32, what an inner node splits on; -1 in a leaf.
        threshold: shape (nodes,), float32; a prompt goes left where its feature is at most that.
        children: shape (nodes, 2), int32, left and right; a leaf names its row of `values` first.
        values: shape (leaves, labels), float32, mean scores.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: Floats
    children: NDArray[np.int32]
    values: Floats

    def check(self, width: int) -> int:
        """Refuse tables that would walk outside themselves or in circles; return the greatest depth.

        Raises:
            RouterError: ROUTER_WEIGHTS.
        """
        nodes, leaf = len(self.feature), self.feature < 0
        inner = np.flatnonzero(~leaf)
        # a child comes after its parent, so that no walk returns
        ordered = bool((self.children[inner] > inner[:, None]).all() and (self.children[inner] < nodes).all())
        named = bool((self.children[leaf, 0] >= 0).all() and (self.children[leaf, 0] < len(self.values)).all())
        rooted = bool(len(self.roots) and (self.roots >= 0).all() and (self.roots < nodes).all())
        if not (ordered and named and rooted and (self.feature < width).all()):
            raise RouterError("ROUTER_WEIGHTS", "the forest's table names nodes, leaves or features it does not have")
        level, depth = self.roots[self.feature[self.roots] >= 0], 0
        while len(level):
            depth += 1
            if depth > MAX_DEPTH:
                raise RouterError("ROUTER_WEIGHTS", f"a tree is deeper than {MAX_DEPTH}", tensor="children")
            below = np.unique(self.children[level])
            level = below[self.feature[below] >= 0]
        return depth

    def mean(self, row: Floats, depth: int) -> Floats:
        """Mean over the trees of the leaf that one prompt falls into, shape (labels,)."""
        node = self.roots.copy()
        for _ in range(depth):
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                break
            right = (row[np.maximum(feature, 0)] > self.threshold[node]).astype(np.intp)
            node = np.where(inner, self.children[node, right], node)
        result: Floats = self.values[self.children[node, 0]].mean(axis=0)
        return result


class Forest(Strategy):
    """Mean of extremely randomised trees (Geurts, Ernst and Wehenkel 2006)."""

    name: ClassVar[str] = "forest"

    def __init__(self, labels: tuple[str, ...], projection: Projection, trees: Trees) -> None:
        super().__init__(labels)
        self.projection, self.trees = projection, trees
        self._depth = trees.check(projection.width)

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels)."""
        rows = [self.trees.mean(row, self._depth) for row in self.projection.features(prompts)]
        return np.array(rows, np.float32).reshape(len(prompts), len(self.labels))

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from its tensors and parameters."""
        bits = parameters(ForestParameters, files, cls.name).bits
        rarity = files.tensor("rarity", dtype="float32", shape=(1 << bits,))
        topics = files.tensor("topics", dtype="float32", shape=(1 << bits, None))
        centre = files.tensor("centre", dtype="float32", shape=(None,))
        directions = files.tensor("directions", dtype="float32", shape=(len(centre), None))
        feature = files.tensor("feature", dtype="int32", shape=(None,))
        trees = Trees(
            files.tensor("roots", dtype="int32", shape=(None,)),
            feature,
            files.tensor("threshold", dtype="float32", shape=(len(feature),)),
            files.tensor("children", dtype="int32", shape=(len(feature), 2)),
            files.tensor("values", dtype="float32", shape=(None, len(labels))),
        )
        return cls(labels, Projection(TermWeights(bits, rarity, topics), centre, directions), trees)

    def dump(self) -> StrategyFiles:
        """Its tensors and parameters."""
        projection, trees = self.projection, self.trees
        tensors: dict[str, NDArray[Any]] = {
            "rarity": projection.terms.rarity,
            "topics": projection.terms.matrix,
            "centre": projection.centre,
            "directions": projection.directions,
            "roots": trees.roots,
            "feature": trees.feature,
            "threshold": trees.threshold,
            "children": trees.children,
            "values": trees.values,
        }
        return StrategyFiles(ForestParameters(bits=projection.terms.bits).model_dump(), tensors)
