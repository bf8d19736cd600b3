"""scikit-learn estimators, taken apart inside the confined worker.

Where one of our families computes the same decision, the estimator's arrays are taken as they are; for the rest,
skl2onnx writes the network. A decision is the best label of a row; families differ in how they scale scores.
"""

from __future__ import annotations

import pickle  # warm-up on our own estimators
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import IntakeError
from appliance.intake.pickles import SKLEARN, restricted_load
from appliance.intake.taken import Taken
from appliance.routers import skops_file
from appliance.routers.loading import read_tensors

Floats = NDArray[np.float32]


def warm_up() -> None:
    """Import all that conversion will need, by converting estimators of our own."""
    import skops.io
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC, LinearSVC

    warnings.simplefilter("ignore")
    points = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    small = KNeighborsClassifier(2).fit(points, np.array(["a", "b"] * 12))
    skops_file.load(skops.io.dumps(small), what="own")
    three = np.array(["a", "b", "c"] * 8)
    own = [
        KNeighborsClassifier(2),
        KNeighborsClassifier(2, algorithm="brute"),  # the way of wide vectors: looks for thread pools at first use
        KNeighborsClassifier(2, algorithm="brute", metric="cosine"),
        LogisticRegression(max_iter=5),
        LinearSVC(max_iter=5),
        SVC(probability=True),
        MLPClassifier((3,), max_iter=2),
        MLPClassifier((3,), activation="tanh", max_iter=2),
    ]
    for estimator in own:
        estimator.fit(points, three)
        take_apart(pickle.dumps(estimator), ("a", "b", "c"), {}, points)
    for regressor in (KNeighborsRegressor(2), KNeighborsRegressor(2, algorithm="brute"), Ridge()):
        regressor.fit(points, points[:, :3])
        take_apart(pickle.dumps(regressor), ("a", "b", "c"), {}, points)


def work(asked: Mapping[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Do a conversion job; see `worker`."""
    model, probe = parts
    labels, points = tuple(asked["labels"]), read_tensors(probe)["probe"]
    if asked["kind"] == "skops":
        return express(skops_file.build(model, what="the model"), labels, points).answer()
    return take_apart(model, labels, asked["hyperparameters"], points).answer()


def take_apart(data: bytes, labels: tuple[str, ...], hyperparameters: dict[str, Any], probe: Floats) -> Taken:
    """Load an estimator, ask it, and express it as one of our families.

    Args:
        data: the pickle.
        labels: the router's labels, in the order of scores.
        hyperparameters: of the router's metadata; not needed here.
        probe: shape (n, d), embeddings.

    Raises:
        IntakeError: INTAKE_PICKLE_IMPORT, INTAKE_CONVERSION.
    """
    del hyperparameters
    return express(restricted_load(data, allowed=SKLEARN), labels, probe)


def express(estimator: Any, labels: tuple[str, ...], probe: Floats) -> Taken:
    """Ask an estimator, and express it as one of our families.

    Raises:
        IntakeError: INTAKE_CONVERSION.
    """
    kind = type(estimator).__name__
    take = _TAKERS.get(kind)
    if take is None:
        raise IntakeError("INTAKE_CONVERSION", f"a {kind} is no estimator that the border converts")
    width = int(getattr(estimator, "n_features_in_", -1))
    if width != probe.shape[1]:
        raise IntakeError(
            "INTAKE_CONVERSION", f"it takes vectors of {width} numbers, the encoder gives {probe.shape[1]}"
        )
    if hasattr(
        estimator, "n_jobs"
    ):  # how many processors its trainer had: here there is one thread, and no file to ask
        estimator.n_jobs = 1
    columns = _columns(estimator, labels)
    family, parameters, tensors = take(estimator, columns, probe)
    plain = {
        name: np.ascontiguousarray(t, np.uint8 if name == "network" else np.float32) for name, t in tensors.items()
    }
    return Taken(family, parameters, plain, _asked(estimator, columns, probe), f"sklearn {kind}")


def _columns(estimator: Any, labels: tuple[str, ...]) -> NDArray[np.intp]:
    """Where each of our labels stands in the estimator's output."""
    if not hasattr(estimator, "classes_"):  # regressors: one output a label, in our order
        return np.arange(len(labels))
    classes = [str(one) for one in estimator.classes_]
    if sorted(classes) != sorted(labels):
        raise IntakeError(
            "INTAKE_CONVERSION", f"its classes are {classes[:10]}, the router's labels {list(labels)[:10]}"
        )
    return np.array([classes.index(label) for label in labels])


def _asked(estimator: Any, columns: NDArray[np.intp], probe: Floats) -> Floats:
    """The original's scores on the probe set, in our order of labels."""
    if hasattr(estimator, "predict_proba"):
        scores = estimator.predict_proba(probe)
    elif hasattr(estimator, "decision_function"):
        scores = estimator.decision_function(probe)
        scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
    else:
        scores = estimator.predict(probe)
    return np.ascontiguousarray(np.asarray(scores)[:, columns], np.float32)


def _neighbours(
    estimator: Any, columns: NDArray[np.intp], _probe: Floats
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if estimator.weights != "uniform" or estimator.effective_metric_ not in {"euclidean", "cosine"}:
        raise IntakeError("INTAKE_CONVERSION", "neighbours must vote alike, by euclidean or cosine distance")
    points, targets = np.asarray(estimator._fit_X), np.asarray(estimator._y)  # noqa: SLF001
    outcomes = np.eye(len(columns))[targets] if hasattr(estimator, "classes_") else targets.reshape(len(points), -1)
    return "knn", {"k": int(estimator.n_neighbors)}, {"embeddings": points, "outcomes": outcomes[:, columns]}


def _linear(estimator: Any, columns: NDArray[np.intp], _probe: Floats) -> tuple[str, dict[str, Any], dict[str, Any]]:
    weights, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if len(weights) == 1 and len(columns) == 2:  # one hyperplane between two labels
        weights, bias = np.concatenate([-weights, weights]), np.concatenate([-bias, bias])
    bias = np.broadcast_to(bias, (len(weights),))
    family = "logistic" if hasattr(estimator, "classes_") else "ridge"
    return family, {}, {"weights": weights[columns].T, "bias": bias[columns]}


def _perceptron(estimator: Any, columns: NDArray[np.intp], probe: Floats) -> tuple[str, dict[str, Any], dict[str, Any]]:
    if estimator.activation != "relu":
        return _network(estimator, columns, probe)
    layers = list(zip(estimator.coefs_, estimator.intercepts_, strict=True))
    weights, bias = layers[-1]
    if weights.shape[1] == 1:
        weights, bias = np.concatenate([-weights, weights], axis=1), np.concatenate([-bias, bias])
    layers[-1] = (weights[:, columns], bias[columns])
    tensors = {f"{i}.{n}": t for i, pair in enumerate(layers) for n, t in zip(("weights", "bias"), pair, strict=True)}
    return "mlp", {}, tensors


def _machine(estimator: Any, columns: NDArray[np.intp], probe: Floats) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """One machine between two labels is our own family's; several vote, and only skl2onnx says how."""
    if len(columns) != 2 or hasattr(estimator, "predict_proba"):
        return _network(estimator, columns, probe)
    if estimator.kernel != "rbf":
        raise IntakeError("INTAKE_CONVERSION", f"a {estimator.kernel} machine of two labels needs probability=True")
    dual, intercept = estimator.dual_coef_.T, float(estimator.intercept_[0])
    plain = {
        "vectors": estimator.support_vectors_,
        "coefficients": np.concatenate([-dual, dual], axis=1)[:, columns],
        "intercepts": np.array([-intercept, intercept])[columns],
        "slopes": np.ones(2),
        "offsets": np.zeros(2),
    }
    return "svm", {"gamma": float(estimator._gamma)}, plain  # noqa: SLF001


def _network(estimator: Any, columns: NDArray[np.intp], probe: Floats) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Whatever skl2onnx makes of it, its scores in our order of labels."""
    from onnx import TensorProto, helper, numpy_helper
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    model = convert_sklearn(
        estimator,
        initial_types=[("embedding", FloatTensorType([None, probe.shape[1]]))],
        options={id(estimator): {"zipmap": False}},
        target_opset=17,
    )
    scores = model.graph.output[-1].name
    model.graph.initializer.append(numpy_helper.from_array(columns.astype(np.int64), "label_order"))
    model.graph.node.append(helper.make_node("Gather", [scores, "label_order"], ["scores"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, len(columns)]))
    network = np.frombuffer(model.SerializeToString(), np.uint8)
    return "onnx", {"input": "embedding", "output": "scores"}, {"network": network}


_TAKERS = {
    "KNeighborsClassifier": _neighbours,
    "KNeighborsRegressor": _neighbours,
    "LogisticRegression": _linear,
    "LinearSVC": _linear,
    "Ridge": _linear,
    "SVC": _machine,
    "MLPClassifier": _perceptron,
}
