"""Splits that do not leak: copies and near copies of a prompt stay on one side."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.routers.strategies import Prompts

NEAR = (0.97, 0.99, 0.999)  # cosine above which two prompts count as one; the stricter ones where prompts lie dense
LARGEST_SHARE = 0.1  # of all prompts; a larger group is a chain of neighbours, not a set of copies
BLOCK = 1024
KNOWN = "fitted_on_sketch"  # where a router's evaluation holds the sketch of its prompts
SKETCH = 256  # prompts that a sketch names
DIGITS = 12  # of each, hexadecimal


def near_groups(prompts: Prompts) -> NDArray[np.intp]:
    """Group prompts that are copies, or whose vectors nearly coincide (transitively).

    Where even the strictest threshold chains a tenth of the prompts together, only exact copies are grouped.

    Args:
        prompts: n prompts.

    Returns:
        Shape (n,), group numbers 0, 1, ... in order of first appearance.
    """
    for threshold in NEAR:
        labels = _components(prompts, threshold)
        if np.bincount(labels).max() <= max(2, LARGEST_SHARE * len(prompts)):
            return labels
    return same_text_groups(prompts.texts)


def same_text_groups(texts: Sequence[str]) -> NDArray[np.intp]:
    """Group exact copies but for case, white space, width and invisible characters; shape (n,)."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(_plain(text), len(seen)) for text in texts], np.intp)


def unseen(prompts: Prompts, known: Prompts) -> NDArray[np.intp]:
    """The rows of `prompts` that are no copies and no near copies of any that is known."""
    vectors = np.concatenate([prompts.embeddings, known.embeddings])
    groups = near_groups(Prompts((*prompts.texts, *known.texts), vectors))
    return np.flatnonzero(~np.isin(groups[: len(prompts)], groups[len(prompts) :]))


def sketch(texts: Sequence[str]) -> str:
    """What tells whether other prompts are these, small enough to travel with a router: the smallest of their digests.

    A bottom-k sketch (Broder 1997): of the sketch, the same share stands elsewhere as of all these prompts.

    Returns:
        At most 256 digests of twelve digits, ascending, written without a gap.
    """
    return "".join(sorted(_digests(texts))[:SKETCH])


def known_share(known: str, texts: Sequence[str]) -> float:
    """The share of `texts` that stood among the prompts of a sketch, estimated from those the sketch can tell of."""
    smallest = {known[start : start + DIGITS] for start in range(0, len(known), DIGITS)}
    digests = _digests(texts)
    if len(smallest) == SKETCH:
        digests = {digest for digest in digests if digest <= max(smallest)}
    return len(digests & smallest) / len(digests) if digests else 0.0


def _digests(texts: Sequence[str]) -> set[str]:
    return {hashlib.sha256(_plain(text).encode("utf-8", "replace")).hexdigest()[:DIGITS] for text in texts}


def _plain(text: str) -> str:
    """A text by which copies are told: case, space, width and invisible characters make no other prompt.

    Powers and digits become one (NFKC), so that it groups prompts and merges none.
    """
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(text.lower().split())


def _components(prompts: Prompts, threshold: float) -> NDArray[np.intp]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    vectors = prompts.embeddings / np.maximum(np.linalg.norm(prompts.embeddings, axis=1, keepdims=True), 1e-12)
    count = len(prompts)
    copies = same_text_groups(prompts.texts)
    first = np.unique(copies, return_index=True)[1][copies]  # every copy is linked to its first appearance
    left, right = [np.arange(count), np.arange(count)], [np.arange(count), first]
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
