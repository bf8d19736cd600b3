"""Pickles, read by an allow-list: what honest scikit-learn estimators need, and nothing else.

A pickle is a program. Whoever signed it answered for it, and still it may call here only what stands in the list: the
constructors of a few estimators, of their parts and of arrays. The border (`intake.pickles`) judges by the same list.
"""

from __future__ import annotations

import io
import pickle  # through the restricted reader below, never plainly
from collections.abc import Mapping
from typing import Any

from appliance.errors import RouterError

Allowed = Mapping[str, frozenset[str]]  # module -> names

SKLEARN: Allowed = {
    "numpy": frozenset({"ndarray", "dtype"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.random._pickle": frozenset({"__randomstate_ctor", "__bit_generator_ctor", "__generator_ctor"}),
    "numpy.random._mt19937": frozenset({"MT19937"}),
    "numpy.random.bit_generator": frozenset({"SeedSequence", "__pyx_unpickle_SeedSequence"}),
    "sklearn.neighbors._classification": frozenset({"KNeighborsClassifier"}),
    "sklearn.neighbors._regression": frozenset({"KNeighborsRegressor"}),
    "sklearn.neighbors._kd_tree": frozenset({"KDTree", "newObj", "KDTree64", "KDTree32"}),
    "sklearn.neighbors._ball_tree": frozenset({"BallTree", "newObj", "BallTree64", "BallTree32"}),
    "sklearn.metrics._dist_metrics": frozenset(
        {"newObj", "EuclideanDistance", "EuclideanDistance64", "EuclideanDistance32", "DistanceMetric"}
    ),
    "sklearn.linear_model._logistic": frozenset({"LogisticRegression"}),
    "sklearn.linear_model._ridge": frozenset({"Ridge"}),
    "sklearn.svm._classes": frozenset({"LinearSVC", "SVC"}),
    "sklearn.neural_network._multilayer_perceptron": frozenset({"MLPClassifier"}),
    "sklearn.neural_network._stochastic_optimizers": frozenset({"AdamOptimizer", "SGDOptimizer"}),
    "sklearn.preprocessing._label": frozenset({"LabelBinarizer"}),
}


def load(data: bytes, *, what: str, allowed: Allowed = SKLEARN) -> Any:
    """Unpickle *verified* bytes, importing only what is allowed.

    Args:
        data: the whole file; one stream, nothing after it.
        what: its name, for messages.
        allowed: module -> names that may be imported.

    Raises:
        RouterError: ROUTER_MODEL_IMPORT for a name outside the list, ROUTER_MODEL for anything malformed.
    """

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name not in allowed.get(module, frozenset()):
                raise RouterError(
                    "ROUTER_MODEL_IMPORT", f"{what} would import {module}.{name}", imports=f"{module}.{name}"
                )
            return super().find_class(module, name)

    stream = io.BytesIO(data)
    try:
        value = Reader(stream).load()
    except (RouterError, ImportError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (a malformed pickle raises whatever the called constructor raises)
        raise RouterError("ROUTER_MODEL", f"{what} is no well-formed pickle: {str(error)[:200]}") from None
    if stream.read(1):
        raise RouterError("ROUTER_MODEL", f"{what} goes on after its end")
    return value
