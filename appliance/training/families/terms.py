"""Fit `terms`: ridge regression on hashed words, and the term statistics that `forest` shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.routers.families.terms import Terms, TermWeights
from appliance.routers.strategies import Floats, Strategy
from appliance.routers.text_features import hashed_terms
from appliance.training.examples import Examples
from appliance.training.selection import best_by_folds

BITS = 16
SHRINKAGES = (10.0, 30.0)
SEEN_AT_LEAST = 2  # prompts that hold a term; rarer ones tell nothing


class TermsFitter:
    """Linear regression on TF-IDF of hashed words and pairs."""

    name = "terms"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Choose the penalty by cross-validation, then fit on everything."""
        chosen = best_by_folds(examples, SHRINKAGES, _build, seed=seed)
        return _build(examples, chosen), {"shrinkage": chosen, "bits": BITS}


def counts(texts: Sequence[str], bits: int = BITS) -> Any:
    """Damped counts of hashed terms, a sparse matrix of shape (n, 2**bits)."""
    from scipy.sparse import csr_array

    rows = [hashed_terms(text, bits=bits) for text in texts]
    starts = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    columns = np.concatenate([columns for columns, _ in rows]).astype(np.int32)
    values = np.concatenate([values for _, values in rows])
    return csr_array((values, columns, starts), shape=(len(texts), 1 << bits), dtype=np.float32)


def rarity(matrix: Any) -> Floats:
    """Smoothed inverse document frequency, shape (2**bits,); 0 for terms that too few prompts hold."""
    frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
    weights = np.log((1 + matrix.shape[0]) / (1 + frequency)) + 1
    return np.where(frequency >= SEEN_AT_LEAST, weights, 0).astype(np.float32)


def weighted(matrix: Any, weights: Floats) -> Any:
    """Rows of unit length, each term weighted by its rarity, as `TermWeights.product` builds them."""
    from scipy.sparse import diags_array

    scaled = matrix @ diags_array(weights)
    length = np.sqrt(np.asarray(scaled.multiply(scaled).sum(axis=1)).ravel())
    return (diags_array((1 / np.maximum(length, 1e-9)).astype(np.float32)) @ scaled).tocsr()


def _build(examples: Examples, shrinkage: float) -> Terms:
    from sklearn.linear_model import Ridge

    matrix = counts(examples.prompts.texts)
    weights = rarity(matrix)
    design, target = weighted(matrix, weights), examples.filled()
    models = [Ridge(alpha=shrinkage, solver="sparse_cg", tol=1e-4).fit(design, column) for column in target.T]
    coefficients: NDArray[np.float32] = np.stack([model.coef_ for model in models], axis=1).astype(np.float32)
    bias = np.array([model.intercept_ for model in models], np.float32)
    return Terms(examples.labels, TermWeights(BITS, weights, coefficients), bias)
