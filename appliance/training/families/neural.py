"""Fit `mlp` and `matrix_factorization` with torch: one thread, a fixed seed, so that equal inputs give equal bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import TrainingError
from appliance.routers.families.linear import MatrixFactorization
from appliance.routers.families.mlp import Mlp
from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.selection import best_by_folds

SETTINGS = ((12, 0.05), (12, 0.3), (24, 0.05))  # epochs, weight decay
SEARCH_PROMPTS = 2000
BATCH = 128
HIDDEN = 128
RANK = 32
DROPOUT = 0.4
LEARNING_RATE = 2e-3
SCALE = 8.0  # unit-length vectors have entries near 0.05: the network sees them near 0.4
AGREEMENT = 1e-4  # largest difference of a score, torch against the exported form


class MlpFitter:
    """One hidden layer; the tasks of the data, where it names them, as a second thing to learn (Caruana 1997)."""

    name = "mlp"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Choose epochs and weight decay by validation on some of the prompts, train and export.

        Raises:
            TrainingError: TRAINING_PACKAGE, TRAINING_AGREEMENT.
        """
        model, (epochs, weight_decay) = _searched(examples, _mlp, seed)
        return model, {"hidden": HIDDEN, "epochs": epochs, "dropout": DROPOUT, "weight_decay": weight_decay}


class MatrixFactorizationFitter:
    """A low-rank bilinear form of prompt and model."""

    name = "matrix_factorization"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Choose epochs and weight decay by validation on some of the prompts, train and export.

        Raises:
            TrainingError: TRAINING_PACKAGE, TRAINING_AGREEMENT.
        """
        model, (epochs, weight_decay) = _searched(examples, _factors, seed)
        return model, {"rank": RANK, "epochs": epochs, "weight_decay": weight_decay}


Setting = tuple[int, float]
Network = Callable[[Examples, Setting, int], tuple[Strategy, NDArray[np.float32]]]


def _searched(examples: Examples, network: Network, seed: int) -> tuple[Strategy, Setting]:
    chosen = best_by_folds(
        examples, SETTINGS, lambda some, setting: network(some, setting, seed)[0], seed=seed,
        rounds=1, at_most=SEARCH_PROMPTS,
    )  # fmt: skip
    model, expected = network(examples, chosen, seed)
    _agree(model, examples, expected)
    return model, chosen


def _mlp(examples: Examples, setting: Setting, seed: int) -> tuple[Strategy, NDArray[np.float32]]:
    """The network as it serves, and what torch makes of the examples, shape (n, labels)."""
    torch = _torch()
    with _deterministic(torch, seed):
        hidden = torch.nn.Linear(examples.prompts.embeddings.shape[1], HIDDEN)
        drop = torch.nn.Dropout(DROPOUT)
        trunk = torch.nn.Sequential(torch.nn.Dropout(DROPOUT / 2), hidden, torch.nn.ReLU(), drop)
        head = torch.nn.Linear(HIDDEN, len(examples.labels))
        expected = _train(torch, examples, trunk, head, HIDDEN, setting)
    layers = [(_array(hidden.weight).T * SCALE, _array(hidden.bias)), (_array(head.weight).T, _array(head.bias))]
    return Mlp(examples.labels, [(np.ascontiguousarray(w, np.float32), b) for w, b in layers]), expected


def _factors(examples: Examples, setting: Setting, seed: int) -> tuple[Strategy, NDArray[np.float32]]:
    """As `_mlp`."""
    torch = _torch()
    with _deterministic(torch, seed):
        projection = torch.nn.Linear(examples.prompts.embeddings.shape[1], RANK, bias=False)
        head = torch.nn.Linear(RANK, len(examples.labels))
        trunk = torch.nn.Sequential(torch.nn.Dropout(DROPOUT / 2), projection)
        expected = _train(torch, examples, trunk, head, RANK, setting)
    parts = (_array(projection.weight).T * np.float32(SCALE), _array(head.weight).T, _array(head.bias))
    return MatrixFactorization(examples.labels, *(np.ascontiguousarray(part, np.float32) for part in parts)), expected


def _train(torch: Any, examples: Examples, trunk: Any, head: Any, width: int, setting: Setting) -> NDArray[np.float32]:
    """Minimise the cross-entropy of the scores (and of the tasks); return the trained scores, shape (n, labels)."""
    epochs, weight_decay = setting
    inputs = torch.from_numpy(np.ascontiguousarray(examples.prompts.embeddings)) * SCALE
    known = torch.from_numpy(~np.isnan(examples.scores))
    target = torch.from_numpy(np.nan_to_num(examples.scores))
    tasks = sorted(set(examples.tasks))
    task = torch.tensor([tasks.index(name) for name in examples.tasks])
    task_head = torch.nn.Linear(width, len(tasks))
    parameters = [*trunk.parameters(), *head.parameters(), *task_head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * (-(-len(inputs) // BATCH)))
    for _ in range(epochs):
        trunk.train()
        for rows in torch.randperm(len(inputs)).split(BATCH):
            hidden = trunk(inputs[rows])
            each = torch.nn.functional.binary_cross_entropy_with_logits(head(hidden), target[rows], reduction="none")
            loss = (each * known[rows]).sum() / known[rows].sum().clamp(min=1)
            if len(tasks) > 1:
                loss = loss + 0.15 * torch.nn.functional.cross_entropy(task_head(hidden), task[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    trunk.eval()
    with torch.no_grad():
        return np.asarray(torch.sigmoid(head(trunk(inputs))).numpy(), np.float32)


def _agree(model: Strategy, examples: Examples, expected: NDArray[np.float32]) -> None:
    worst = float(np.abs(model.scores(examples.prompts) - expected).max())
    if worst > AGREEMENT:
        raise TrainingError("TRAINING_AGREEMENT", "the exported network differs from the trained one", worst=worst)


def _array(tensor: Any) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().numpy(), np.float32)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise TrainingError("TRAINING_PACKAGE", "torch is not installed", package="torch") from None
    return torch


@contextlib.contextmanager
def _deterministic(torch: Any, seed: int) -> Iterator[None]:
    """One thread and a seed of its own; what the process had before returns afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
