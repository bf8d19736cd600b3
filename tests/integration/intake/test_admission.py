"""From a producer's folder to the registry: converted, shown to agree, approved by two, signed by the zone."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from appliance.artifact import SIGNATURE_NAME, read
from appliance.cli.intake import _current as served_today
from appliance.cli.main import app
from appliance.errors import ApplianceError
from appliance.intake.admission import Border
from appliance.intake.approval import signed as approvals
from appliance.intake.behaviour import make_probe
from appliance.intake.case import describe
from appliance.intake.examination import EncoderTrial, RouterTrial
from appliance.intake.sandbox import Limits
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from appliance.routers.encoder import load_encoder
from appliance.routers.loading import load_router
from appliance.trust.verification import verify_artifact
from tests.support import intake, routing
from tests.support.artifacts import signed
from tests.support.intake import Desk
from tests.support.trust import DevelopmentAuthority, make_authority

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentAuthority:
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def desk(tmp_path: Path, authority: DevelopmentAuthority) -> Desk:
    return Desk(tmp_path, authority)


def estimators() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC, LinearSVC

    return {
        # brute: what scikit-learn takes for real, wide vectors; n_jobs: of the machine it was trained on
        "knn": KNeighborsClassifier(1, algorithm="brute", n_jobs=-1),
        "logistic": LogisticRegression(),
        "linear-svc": LinearSVC(),
        "svc": SVC(),
        "mlp": MLPClassifier((6,), max_iter=40, random_state=0),
        "mlp-tanh": MLPClassifier((6,), activation="tanh", max_iter=40, random_state=0),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knn", "svc"])  # the others: tests/unit/intake/test_take_apart.py
@pytest.mark.filterwarnings("ignore")
def test_an_honest_sklearn_router_is_converted_and_decides_alike(desk: Desk, name: str) -> None:
    points, best = intake.training_set()
    estimator = estimators()[name].fit(points, best)
    source = desk.hand_in(intake.router({"model.pkl": pickle.dumps(estimator, protocol=4)}))
    case = desk.border.examine(source, RouterTrial(intake.probe()))
    conversion = case.report["conversion"]
    assert conversion["agreement"] >= 0.99
    assert "seccomp" in conversion["walls"]
    assert set(case.report["scanners"]) == {"picklescan", "modelscan", "fickling"}
    assert not any(name.endswith(".pkl") for name in case.artifact.files)
    assert list((desk.root / "border").rglob("*.pkl")) == [], "what could run waits for nobody's approval"
    router = load_router(case.artifact)
    texts = intake.TEXTS
    ours = router.scores(intake.probe().prompts).argmax(axis=1)
    labels = list(router.metadata.labels)
    theirs = estimator.predict(intake.embed(texts))
    assert np.mean([labels[i] == label for i, label in zip(ours, theirs, strict=True)]) >= 0.95


@pytest.mark.slow
def test_an_honest_torch_router_is_converted_and_decides_alike(desk: Desk) -> None:
    import io

    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    source = desk.hand_in(intake.router({"model.pt": buffer.getvalue()}, hyperparameters={"activation": "relu"}))
    case = desk.border.examine(source, RouterTrial(intake.probe()))
    assert case.report["conversion"]["family"] == "mlp"
    assert case.report["conversion"]["agreement"] == 1.0


@pytest.mark.slow
def test_two_officers_admit_a_router_and_the_zone_signs_it(desk: Desk) -> None:
    source = desk.hand_in(intake.router(intake.knn_payload()))
    case = desk.border.examine(source, RouterTrial(intake.probe()))
    assert any("recorded prompts" in line for line in describe(case))
    officers, published = desk.border.approve(case.identity, desk.officer(1), desk.registry)
    assert (officers, published) == (("import-officer@appliance.internal",), False)
    assert desk.registry.versions() == []
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.officer(1), desk.registry)
    assert info.value.code == "INTAKE_APPROVAL", "one officer cannot approve twice"
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.authority.signer("producer"), desk.registry)
    assert info.value.code == "TRUST_ROLE", "nor can the producer"
    officers, published = desk.border.approve(case.identity, desk.officer(2), desk.registry)
    assert published
    assert len(set(officers)) == 2
    artifact = desk.registry.fetch("default", "1.0.0")
    verdict = verify_artifact(artifact, material=desk.material, at=desk.now(), role="import-officer")
    assert verdict.digest == case.artifact.digest
    assert [line.event for line in desk.border.journal.verify().lines] == [
        "received",
        "examined",
        "approved",
        "approved",
        "admitted",
    ]
    assert list((desk.root / "border" / "cases").iterdir()) == []
    assert desk.border.cases() == []


class Dying(DirectoryStore):
    """A home whose officer's host loses its power right after a version's last file was written."""

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        super().put(key, data, only_if_absent=only_if_absent)
        if key.endswith(SIGNATURE_NAME):
            raise KeyboardInterrupt
        return ""


@pytest.mark.slow
def test_an_admission_that_died_after_publishing_is_completed_by_the_next_approval(desk: Desk) -> None:
    """The zone's signature never comes out the same twice, and what was published never changes."""
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    desk.border.approve(case.identity, desk.officer(1), desk.registry)
    dying = Registry(Dying(desk.root / "registry"), material=lambda: desk.material, clock=desk.now)
    with pytest.raises(KeyboardInterrupt):
        desk.border.approve(case.identity, desk.officer(2), dying)
    published = desk.registry.fetch("default", "1.0.0")
    assert desk.border.cases() == [case.identity]
    officers, done = desk.border.approve(case.identity, desk.officer(1), desk.registry)
    assert (len(officers), done) == (2, True)
    assert desk.registry.fetch("default", "1.0.0").signature == published.signature
    assert desk.border.cases() == []
    (desk.root / "border" / "cases" / case.identity).mkdir()  # a kill before the last step leaves the folder
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.officer(2), desk.registry)
    assert info.value.code == "INTAKE_CASE"
    assert [line.event for line in desk.border.journal.verify().lines].count("admitted") == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from appliance.intake import scanners
from appliance.intake.admission import Border
from appliance.intake.examination import RouterTrial
from appliance.registry.trust_source import TrustSource
from tests.support import intake
scanners.scan = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
trust, border, source = (Path(word) for word in sys.argv[1:])
zone = TrustSource(trust)
Border(border, material=zone.material, clock=zone.now).examine(source, RouterTrial(intake.probe()))
"""


@pytest.mark.slow
def test_what_a_killed_examination_left_is_gone_after_the_next_and_written_down(desk: Desk) -> None:
    desk.authority.store(desk.root / "trust")
    pickled = pickle.dumps(estimators()["logistic"].fit(*intake.training_set()), protocol=4)
    source = desk.hand_in(intake.router({"model.pkl": pickled}))
    border = desk.root / "border"
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, desk.root / "trust", border, source], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(border.rglob("model.pkl"))) == 1
    (border / "cases" / "lost+found").mkdir()
    with pytest.raises(ApplianceError):
        desk.border.examine(desk.root / "nothing", RouterTrial(intake.probe()))
    assert [path.name for path in (border / "cases").iterdir()] == ["lost+found"], "and what is no case is not touched"
    events = [(line.event, line.details.get("code")) for line in desk.border.journal.verify().lines]
    assert events == [("received", None), ("refused", "INTAKE_INTERRUPTED"), ("refused", "FILE_MISSING")]


@pytest.mark.slow
def test_a_case_that_an_officer_declines_is_over(desk: Desk) -> None:
    desk.authority.store(desk.root / "trust")
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    desk.border.approve(case.identity, desk.officer(1), desk.registry)
    places = ["--border", str(desk.root / "border"), "--trust", str(desk.root / "trust"), "--json"]
    declined = ["artifact", "decline", case.identity, "--reason", "it moves all that is hard", *places]
    assert CliRunner().invoke(app, declined).exit_code == 0
    assert desk.border.cases() == []
    assert list((desk.root / "border" / "cases").iterdir()) == []
    again = CliRunner().invoke(app, declined)
    assert (again.exit_code, json.loads(again.stdout)["error"]["code"]) == (1, "INTAKE_CASE")
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.officer(2), desk.registry)
    assert info.value.code == "INTAKE_CASE"
    shown = json.loads(CliRunner().invoke(app, ["artifact", "journal", "show", *places]).stdout)
    assert [line["officer"] for line in shown["lines"]] == [None, None, "import-officer@appliance.internal", None]
    last = shown["lines"][-1]["details"]
    assert (last["code"], last["cause"]) == ("INTAKE_DECLINED", "it moves all that is hard")
    assert shown["waiting"] == []


@pytest.mark.slow
def test_two_officers_at_the_same_moment_publish_once(desk: Desk) -> None:
    """The second waits for the first: else both would be told to find another, or sign the same version twice."""
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    said: list[tuple[tuple[str, ...], bool]] = []
    other = threading.Thread(
        target=lambda: said.append(desk.border.approve(case.identity, desk.officer(2), desk.registry))
    )

    class Slow:
        """An officer who looks for his token while his colleague signs."""

        def __getattr__(self, name: str) -> Any:
            return getattr(desk.officer(1), name)

        def sign_statement(self, payload: bytes) -> bytes:
            other.start()
            other.join(1.0)  # done by then, if nothing holds him up
            return bytes(desk.officer(1).sign_statement(payload))

    assert desk.border.approve(case.identity, Slow(), desk.registry)[1] is False  # type: ignore[arg-type]
    other.join()
    assert [published for _, published in said] == [True]
    events = [line.event for line in desk.border.journal.verify().lines]
    assert events == ["received", "examined", "approved", "approved", "admitted"]


@pytest.mark.slow
def test_a_version_that_one_officer_carried_around_the_border_is_found(desk: Desk) -> None:
    """One officer's key signs without a case: hosts believe it, and the journal knows of no two approvals."""
    desk.authority.store(desk.root / "trust")
    places = ["--border", str(desk.root / "border"), "--trust", str(desk.root / "trust"), "--json"]
    audit = ["artifact", "journal", "verify", *places, "--registry", str(desk.root / "registry")]
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    for number in (1, 2):
        desk.border.approve(case.identity, desk.officer(number), desk.registry)
    assert CliRunner().invoke(app, audit).exit_code == 0, "what two approved is in order"
    around = signed(intake.router(intake.knn_payload(), version="6.6.6"), desk.officer(1))
    desk.registry.publish(around, name="default", version="6.6.6")
    found = CliRunner().invoke(app, audit)
    error = json.loads(found.stdout)["error"]
    assert (found.exit_code, error["code"]) == (1, "INTAKE_APPROVAL")
    assert error["evidence"]["versions"] == ["default 6.6.6 (signed by import-officer@appliance.internal)"]


def test_a_border_that_was_mistyped_is_not_made(desk: Desk, tmp_path: Path) -> None:
    elsewhere = Border(tmp_path / "typo", material=lambda: desk.material, clock=desk.now)
    for act in (
        lambda: elsewhere.approve("0" * 16, desk.officer(1), desk.registry),
        lambda: elsewhere.decline("0" * 16, "no"),
    ):
        with pytest.raises(ApplianceError) as info:
            act()
        assert info.value.code == "INTAKE_CASE"
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("role", "code"), [("producer", "REGISTRY_NOT_ADMITTED"), ("import-officer", "REGISTRY_DIGEST")]
)
def test_what_a_registry_shows_in_the_place_of_the_served_router_is_not_loaded(
    desk: Desk, role: str, code: str
) -> None:
    """The comparison runs in the officer's own process: only what the channel names may come there."""
    files = intake.router(intake.knn_payload())
    desk.registry.publish(signed(files, desk.authority.signer("import-officer")), name="default", version="1.0.0")
    desk.registry.promote("default", "1.0.0", desk.authority.signer("import-officer"))
    desk.authority.store(desk.root / "trust")
    source = desk.hand_in(intake.router(intake.knn_payload(), version="1.1.0"))
    ask = (source, str(desk.root / "registry"), desk.root / "trust", None)
    assert served_today(*ask) is not None
    other = intake.router(intake.knn_payload(outcomes=np.ones((120, 3), np.float32)))
    routing.place(signed(other, desk.authority.signer(role)), desk.root / "registry" / "routers/default/1.0.0")
    with pytest.raises(ApplianceError) as info:
        served_today(*ask)
    assert info.value.code == code


@pytest.mark.slow
def test_a_case_that_was_changed_after_its_examination_is_not_approved(desk: Desk) -> None:
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    folder = desk.root / "border" / "cases" / case.identity
    report = folder / "report.json"
    honest = report.read_bytes()
    report.write_bytes(honest.replace(b'"accuracy":0.9', b'"accuracy":1.0'))
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.officer(1), desk.registry)
    assert info.value.code == "INTAKE_CASE"
    report.write_bytes(honest)
    weights = folder / "artifact" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.officer(1), desk.registry)
    assert info.value.code == "INTAKE_CASE"


@pytest.mark.slow
def test_an_approval_over_journal_lines_that_are_gone_is_seen(desk: Desk) -> None:
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    desk.border.approve(case.identity, desk.officer(1), desk.registry)
    path = desk.root / "border" / "journal.jsonl"
    from appliance import documents
    from appliance.files import sha256_hex

    lines = [documents.read_json(raw, what="line") for raw in path.read_bytes().splitlines(keepends=True)]
    head, rewritten = "0" * 64, b""
    for number, line in enumerate(lines, start=1):  # a forger who rewrites the chain from the start
        line["details"].pop("path", None)
        raw = documents.write_json({**line, "previous": head, "number": number})
        head, rewritten = sha256_hex(raw), rewritten + raw
    path.write_bytes(rewritten)
    assert len(desk.border.journal.verify().lines) == 3, "the forged chain holds in itself"
    with pytest.raises(ApplianceError) as info:
        desk.border.approve(case.identity, desk.officer(2), desk.registry)
    assert info.value.code == "INTAKE_JOURNAL_BROKEN"
    assert desk.registry.versions() == []


@pytest.mark.slow
def test_the_journal_stays_verifiable_when_an_officer_leaves_and_he_counts_no_more(desk: Desk) -> None:
    case = desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    desk.border.approve(case.identity, desk.officer(1), desk.registry)
    roles = dict(desk.material.policy.roles)
    stay = roles["import-officer"].identities[1:]
    roles["import-officer"] = roles["import-officer"].model_copy(update={"identities": stay})
    desk.material = replace(desk.material, policy=desk.material.policy.model_copy(update={"roles": roles}))
    [one] = approvals(desk.border.journal.verify(), material=desk.material, at=desk.now())
    assert one.officer == "import-officer@appliance.internal"
    assert one.journal_head in desk.border.journal.heads()
    officers, published = desk.border.approve(case.identity, desk.officer(2), desk.registry)
    assert (officers, published) == (("import-officer-2@appliance.internal",), False)


@pytest.mark.slow
def test_the_difference_to_the_served_router_is_readable(desk: Desk) -> None:
    from appliance.artifact import from_files

    points, _ = intake.training_set()
    turned = np.roll(np.eye(3, dtype=np.float32)[np.argmax(points[:, :3], axis=1)], 1, axis=1)
    current = load_router(from_files(intake.router(intake.knn_payload(outcomes=turned))))
    source = desk.hand_in(intake.router(intake.knn_payload(), version="1.1.0"))
    case = desk.border.examine(source, RouterTrial(intake.probe(), current))
    behaviour = case.report["behaviour"]
    assert behaviour["changed"] > 0.9
    assert sum(behaviour["share"].values()) == pytest.approx(1, abs=0.01)
    text = "\n".join(describe(case))
    assert "small-model" in text
    assert "->" in text


@pytest.mark.slow
def test_a_conversion_that_never_ends_is_ended(desk: Desk) -> None:
    points, best = intake.training_set()
    estimator = estimators()["knn"].fit(points, best)
    source = desk.hand_in(intake.router({"model.pkl": pickle.dumps(estimator, protocol=4)}))
    with pytest.raises(ApplianceError) as info:
        desk.border.examine(source, RouterTrial(intake.probe()), limits=Limits(wall_seconds=0.5))
    assert info.value.code == "INTAKE_CONVERSION_KILLED"
    assert list((desk.root / "border" / "cases").iterdir()) == []


@pytest.mark.slow
def test_a_conversion_that_decides_otherwise_is_refused(desk: Desk) -> None:
    """Neighbours by euclidean distance among vectors of very different length: our cosine family is not that."""
    points, best = intake.training_set()
    stretched = points * np.linspace(0.05, 20, len(points), dtype=np.float32)[:, None]
    estimator = estimators()["knn"].fit(stretched, best)
    source = desk.hand_in(intake.router({"model.pkl": pickle.dumps(estimator, protocol=4)}))
    with pytest.raises(ApplianceError) as info:
        desk.border.examine(source, RouterTrial(intake.probe()))
    assert info.value.code == "INTAKE_AGREEMENT"
    assert info.value.evidence["agreement"] < info.value.evidence["required"]


@pytest.mark.slow
def test_a_skops_file_becomes_tensors_too(desk: Desk) -> None:
    import skops.io

    estimator = estimators()["knn"].fit(*intake.training_set())
    case = desk.border.examine(
        desk.hand_in(intake.router({"model.skops": skops.io.dumps(estimator)})), RouterTrial(intake.probe())
    )
    assert case.report["conversion"]["agreement"] == 1.0
    assert sorted(case.artifact.files) == ["router.yaml", "strategy.json", "weights.safetensors"]


def test_a_case_that_nobody_could_approve_is_not_begun(desk: Desk) -> None:
    """The policy of an authority that is older than approvals."""
    policy = desk.material.policy
    officer = policy.roles["import-officer"]
    old = officer.model_copy(update={"kinds": tuple(kind for kind in officer.kinds if kind != "admission")})
    before = policy.model_copy(update={"roles": {**policy.roles, "import-officer": old}})
    desk.material = replace(desk.material, policy=before)
    with pytest.raises(ApplianceError) as info:
        desk.border.examine(desk.hand_in(intake.router(intake.knn_payload())), RouterTrial(intake.probe()))
    assert info.value.code == "INTAKE_POLICY"
    assert "ca rotate policy" in info.value.remedy


def test_an_encoder_is_not_admitted_as_a_router(desk: Desk) -> None:
    with pytest.raises(ApplianceError) as info:
        desk.border.examine(desk.hand_in(routing.encoder_files()), RouterTrial(intake.probe()))
    assert info.value.code == "INTAKE_SOURCE"


@pytest.mark.slow
def test_an_encoder_crosses_the_same_border(desk: Desk) -> None:
    """Examined, compared with the zone's, signed by two officers, published, and loaded as the zone signed it."""
    source = desk.hand_in(routing.encoder_files())
    texts = [f"{word} {other}" for word in routing.WORDS for other in routing.WORDS]
    zone = make_probe(texts, load_encoder(read(source)).encode, read(source).digest)
    case = desk.border.examine(source, EncoderTrial(texts, zone))
    assert case.report["behaviour"]["neighbours_kept"] == 1.0
    assert any("nearest prompt" in line for line in describe(case))
    assert desk.border.approve(case.identity, desk.officer(1), desk.registry)[1] is False
    assert desk.border.approve(case.identity, desk.officer(2), desk.registry)[1] is True
    published = desk.registry.fetch("tiny", case.artifact.digest[:12], kind="encoder")
    verdict = verify_artifact(published, material=desk.material, at=desk.now(), role="import-officer")
    assert verdict.kind == "encoder"
    assert load_encoder(published).digest == read(source).digest, "routers find it by the same digest"


def test_a_case_nobody_knows_is_not_approved(desk: Desk) -> None:
    for name in ("0123456789abcdef", "../../etc", ""):
        with pytest.raises(ApplianceError) as info:
            desk.border.approve(name, desk.officer(1), desk.registry)
        assert info.value.code == "INTAKE_CASE"
