"""Splits that do not leak: copies and near copies of a prompt stay on one side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from appliance.routers.strategies import Prompts

NEAR = 0.97  # cosine above which two prompts count as one
BLOCK = 1024


def near_groups(prompts: Prompts, *, threshold: float = NEAR) -> NDArray[np.intp]:
    """Group prompts that are copies, or whose vectors nearly coincide (transitively).

    Args:
        prompts: n prompts with unit-length vectors.
        threshold: cosine above which two prompts belong together.

    Returns:
        Shape (n,), group numbers 0, 1, ... in order of first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    vectors = prompts.embeddings / np.maximum(np.linalg.norm(prompts.embeddings, axis=1, keepdims=True), 1e-12)
    count = len(prompts)
    left, right = [np.arange(count)], [np.arange(count)]
    for start in range(0, count, BLOCK):
        rows, columns = np.nonzero(vectors[start : start + BLOCK] @ vectors[start:].T >= threshold)
        left.append(rows + start)
        right.append(columns + start)
    rows, columns = np.concatenate(left), np.concatenate(right)
    links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    return np.asarray(labels, np.intp)


def folds(groups: NDArray[np.intp], count: int, *, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Cross-validation by group: (rows to fit on, rows to predict), `count` times, nearly equal in size.

    Args:
        groups: shape (n,).
        count: number of folds.
        seed: of the shuffle.
    """
    generator = np.random.default_rng(seed)
    names, sizes = np.unique(groups, return_counts=True)
    order = generator.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large groups first, so that folds even out
    load = np.zeros(count)
    fold_of = np.zeros(int(names.max()) + 1, np.intp)
    for group in order:
        target = int(np.argmin(load))
        fold_of[names[group]] = target
        load[target] += sizes[group]
    assigned = fold_of[groups]
    for fold in range(count):
        yield np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
