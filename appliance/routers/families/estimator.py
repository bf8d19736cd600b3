"""A fitted scikit-learn estimator, as it is: for the model formats that a zone's policy names beside our own."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from appliance.errors import RouterError
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles


class Estimator(Strategy):
    """Asks an estimator: its probabilities, else its decision function, else what it predicts.

    Args:
        labels: models; the classes of a classifier, or the outputs of a regressor in their order.
        estimator: fitted on the encoder's vectors.
        what: name of the file it came from.

    Raises:
        RouterError: ROUTER_MODEL where it is no estimator of these labels.
    """

    name: ClassVar[str] = "estimator"

    def __init__(self, labels: tuple[str, ...], estimator: Any, *, what: str) -> None:
        super().__init__(labels)
        self._estimator, self._what = estimator, what
        methods = ("predict_proba", "decision_function", "predict")
        found = next((method for method in methods if callable(getattr(estimator, method, None))), None)
        if found is None:
            raise RouterError("ROUTER_MODEL", f"{what} holds a {type(estimator).__name__}, which predicts nothing")
        self._ask = getattr(estimator, found)
        self._columns = self._order(labels)
        if getattr(estimator, "n_jobs", None) is not None:
            estimator.n_jobs = 1  # the gateway runs no programs, and its threads are counted

    def _order(self, labels: tuple[str, ...]) -> list[int]:
        """Where each label stands in the estimator's output."""
        if not hasattr(self._estimator, "classes_"):
            return list(range(len(labels)))
        classes = [str(one) for one in self._estimator.classes_]
        if sorted(classes) != sorted(labels):
            raise RouterError(
                "ROUTER_MODEL", f"the classes of {self._what} are not the router's labels",
                classes=classes[:20], labels=list(labels)[:20],
            )  # fmt: skip
        return [classes.index(label) for label in labels]

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels).

        Raises:
            RouterError: ROUTER_SCORES where the estimator fails on these vectors.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = np.asarray(self._ask(prompts.embeddings), np.float32)
            if values.ndim == 1:  # one hyperplane between two labels, or one output
                values = np.stack([-values, values], axis=1) if len(self.labels) == 2 else values[:, None]
            return np.ascontiguousarray(values[:, self._columns])
        except Exception as error:  # noqa: BLE001 (scikit-learn raises what NumPy raises)
            raise RouterError("ROUTER_SCORES", f"{self._what} failed: {str(error)[:200]}") from None

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Not from tensors; see `foreign.load`."""
        del files, labels
        cls._no_files()

    def dump(self) -> StrategyFiles:
        """Not into tensors: that is what `appliance artifact admit` converts for."""
        self._no_files()

    @staticmethod
    def _no_files() -> NoReturn:
        raise RouterError("ROUTER_STRATEGY", "an estimator lives in the file it came in", strategy="estimator")
