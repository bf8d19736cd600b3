"""Every estimator the border converts decides as before, once it is one of our families (without the confinement)."""

from __future__ import annotations

import io
import itertools
import pickle
from typing import Any

import numpy as np
import pytest

from appliance.errors import IntakeError
from appliance.intake import convert_sklearn, convert_torch
from appliance.intake.pickles import SKLEARN, TORCH, scan
from appliance.routers.strategies import Prompts, StrategyFiles, family
from tests.support import intake

pytestmark = pytest.mark.filterwarnings("ignore")


def classifiers() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC, LinearSVC

    return {
        "knn": KNeighborsClassifier(1),
        "knn-brute-cosine": KNeighborsClassifier(3, algorithm="brute", metric="cosine"),
        "knn-ball-tree": KNeighborsClassifier(3, algorithm="ball_tree"),
        "logistic": LogisticRegression(),
        "linear-svc": LinearSVC(),
        "svc-rbf": SVC(),
        "svc-probability": SVC(probability=True),
        "mlp": MLPClassifier((6,), max_iter=30, random_state=0),
        "mlp-two-layers": MLPClassifier((6, 5), max_iter=30, random_state=0),
        "mlp-tanh": MLPClassifier((6,), activation="tanh", max_iter=30, random_state=0),
    }


def agreement(data: bytes, labels: tuple[str, ...], probe: np.ndarray) -> tuple[float, str]:
    """How often the family's best label is one of the original's best."""
    scan(data, allowed=SKLEARN, what="model.pkl")
    taken = convert_sklearn.take_apart(data, labels, {}, probe)
    strategy = family(taken.family).load(StrategyFiles(taken.parameters, dict(taken.tensors)), labels)
    ours = strategy.scores(Prompts(("",) * len(probe), probe)).argmax(axis=1)
    best = taken.probe_scores.max(axis=1)
    return float(np.mean(taken.probe_scores[np.arange(len(probe)), ours] >= best - 1e-6)), taken.family


@pytest.mark.parametrize("name", classifiers())
@pytest.mark.parametrize("labels", [intake.LABELS, ("medium", "small", "large"), ("large", "small")])
def test_a_classifier_decides_as_before_whatever_the_order_of_labels(name: str, labels: tuple[str, ...]) -> None:
    points, best = intake.training_set()
    keep = np.isin(best, labels)
    estimator = classifiers()[name].fit(points[keep], best[keep])
    probe = intake.embed([f"probe {number}" for number in range(50)])
    same, _ = agreement(pickle.dumps(estimator, protocol=4), labels, probe)
    assert same >= 0.99


def test_regressors_with_one_output_a_label_are_taken_too() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    points, _ = intake.training_set()
    for regressor, expected in ((Ridge(), "ridge"), (KNeighborsRegressor(3), "knn")):
        data = pickle.dumps(regressor.fit(points, points[:, :3]), protocol=4)
        assert agreement(data, intake.LABELS, intake.embed(intake.TEXTS)) == (1.0, expected)


def test_neighbours_that_vote_by_distance_are_refused() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    data = pickle.dumps(KNeighborsClassifier(3, weights="distance").fit(*intake.training_set()), protocol=4)
    with pytest.raises(IntakeError) as info:
        convert_sklearn.take_apart(data, intake.LABELS, {}, intake.embed(intake.TEXTS))
    assert info.value.code == "INTAKE_CONVERSION"


def test_other_classes_than_the_routers_labels_are_refused() -> None:
    from sklearn.linear_model import LogisticRegression

    data = pickle.dumps(LogisticRegression().fit(*intake.training_set()), protocol=4)
    with pytest.raises(IntakeError) as info:
        convert_sklearn.take_apart(data, ("small", "medium", "gpt-9"), {}, intake.embed(intake.TEXTS))
    assert info.value.code == "INTAKE_CONVERSION"


def state_dict(*widths: int) -> tuple[Any, bytes]:
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for before, after in itertools.pairwise(widths):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return model, buffer.getvalue()


@pytest.mark.parametrize("widths", [(8, 3), (8, 16, 3), (8, 16, 4, 3)])
def test_a_state_dict_of_linear_layers_decides_as_before(widths: tuple[int, ...]) -> None:
    import torch

    from appliance.intake.torch_archives import check

    model, data = state_dict(*widths)
    check(data, what="model.pt")
    probe = intake.embed(intake.TEXTS)
    taken = convert_torch.take_apart(data, intake.LABELS, {"activation": "relu"}, probe)
    with torch.no_grad():
        np.testing.assert_allclose(taken.probe_scores, model(torch.from_numpy(probe)).numpy(), atol=1e-5)
    strategy = family("mlp").load(StrategyFiles({}, dict(taken.tensors)), intake.LABELS)
    ours = strategy.scores(Prompts(("",) * len(probe), probe))
    assert (ours.argmax(axis=1) == taken.probe_scores.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("widths", "hyperparameters"),
    [((8, 16, 3), {}), ((5, 16, 3), {"activation": "relu"}), ((8, 16, 2), {"activation": "relu"})],
    ids=["activation-unsaid", "wrong-input", "wrong-output"],
)
def test_a_state_dict_that_does_not_fit_is_refused(widths: tuple[int, ...], hyperparameters: dict[str, str]) -> None:
    _, data = state_dict(*widths)
    with pytest.raises(IntakeError) as info:
        convert_torch.take_apart(data, intake.LABELS, hyperparameters, intake.embed(intake.TEXTS))
    assert info.value.code == "INTAKE_CONVERSION"


def test_the_lists_of_allowed_imports_hold_nothing_that_runs_code() -> None:
    """Each name of the lists is a class, or one of the few rebuilding functions; none is in a module that runs code."""
    rebuilders = {
        "_reconstruct", "scalar", "newObj", "_rebuild_tensor_v2", "_rebuild_parameter", "__randomstate_ctor",
        "__bit_generator_ctor", "__generator_ctor", "__pyx_unpickle_SeedSequence",
    }  # fmt: skip
    for allowed in (SKLEARN, TORCH):
        for module, names in allowed.items():
            assert module.split(".")[0] in {"numpy", "sklearn", "torch", "collections"}
            assert all(name[0].isupper() or name in rebuilders | {"ndarray", "dtype"} for name in names)
