"""`appliance validate` and the endurance run, against a real second gateway."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import yaml

from appliance import artifact
from appliance.errors import OperationError, TrustError
from appliance.operations.acceptance import checks, report
from appliance.operations.acceptance.bench import bench
from appliance.operations.acceptance.checks import Result
from appliance.operations.acceptance.collector import Collector
from appliance.operations.acceptance.traffic import GROUP
from appliance.operations.doctor.gather import Places
from appliance.registry.settings import S3Settings
from appliance.trust.verification import verify_statement
from tests.support.gateway import deployment, write_config
from tests.support.guides import Guide
from tests.support.routing import zone
from tests.support.upstream import Upstream

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.fixture(scope="module")
def places(tmp_path_factory, authority):
    """A configured host; the gateway that serves its users is somewhere else."""
    home = tmp_path_factory.mktemp("host")
    here = zone(home / "zone", authority, labels={"small": "small", "large": "large"})
    here.put()
    upstreams = [Upstream("small", port=9), Upstream("large", port=9)]
    sections = {**here.sections(), "lockdown": {"allow": ["127.0.0.1:9"]}}
    write_config(home / "etc", [deployment("chat", each) for each in upstreams], tls=False, **sections)
    (home / "state").mkdir()
    return Places.below(home)


@pytest.fixture(scope="module")
def running(places, tmp_path_factory):
    with bench(places, tmp_path_factory.mktemp("bench")) as made:
        yield made


@pytest.fixture(autouse=True)
def crowded(monkeypatch):
    """The bound is for an appliance's own machine; tests share theirs, and what they say of speed is nothing."""
    monkeypatch.setattr(checks, "LATENCY_GOAL_MS", 60_000.0)
    monkeypatch.setattr(checks, "MODEL_SHARE", 0.0001)


def test_a_requirement_that_does_not_hold_is_not_passed(running, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checks, "LATENCY_GOAL_MS", 0.0001)
        assert not checks.latency(running).passed
    monkeypatch.setattr(checks, "MODEL_SHARE", 1.01)  # a router that is always late answers nothing, quickly
    assert not checks.latency(running).passed


def test_a_router_that_the_gateway_does_not_follow_passes_neither_reload_nor_fallback(running, tmp_path, monkeypatch):
    shutil.copytree(running.router, tmp_path / "elsewhere")
    monkeypatch.setattr(type(running), "until", lambda *_, **__: False)
    elsewhere = replace(running, router=tmp_path / "elsewhere")
    assert not checks.hot_reload(elsewhere).passed
    assert not checks.fallback(elsewhere).passed


def test_traces_that_do_not_arrive_are_missed(running, monkeypatch):
    assert checks.observability(running).passed
    monkeypatch.setattr(checks, "EXPORT_LIMIT_S", 0.1)
    result = checks.observability(replace(running, collector=Collector()))
    assert not result.passed
    assert set(checks.SPAN) <= set(result.evidence["lacking"])


def test_a_group_without_a_registry_has_to_be_answered_by_weight(running, monkeypatch):
    monkeypatch.setattr(checks, "LOST", GROUP)  # which has one
    assert not checks.degraded(running).passed


def test_a_configured_registry_that_would_not_refuse_a_foreign_ca_for_being_foreign_does_not_hold(authority, tmp_path):
    authority.tls_server("127.0.0.1").write(tmp_path, "registry")
    good = S3Settings(
        home="s3", endpoint="registry.internal:9000", bucket="routers", ca_file=tmp_path / "ca.pem",
        credentials_file=tmp_path / "unused",
    )  # fmt: skip
    assert checks.ca_pinning({"registry.yaml": good}).passed
    result = checks.ca_pinning({"registry.yaml": good.model_copy(update={"ca_file": tmp_path / "gone.pem"})})
    assert not result.passed
    assert result.evidence["registry.yaml"] != "REGISTRY_CERTIFICATE"


def test_the_second_gateway_is_locked_as_the_installation_is(running):
    assert running.chosen.lockdown.allow == ("127.0.0.1:9",)


def test_without_a_router_the_acceptance_says_what_is_missing(places, tmp_path):
    document = yaml.safe_load(places.config.read_text())
    document["routing"]["routers"]["default"]["directory"] = str(tmp_path / "nothing")
    config = places.config.with_name("no-router.yaml")
    config.write_text(yaml.safe_dump(document))
    with pytest.raises(OperationError) as refused, bench(Places.below(places.prefix, config), tmp_path / "b"):
        pass
    assert refused.value.code == "OPERATION_ACCEPTANCE_SETUP"


def test_a_router_that_no_gateway_serves_is_said_before_anything_is_judged(places, authority, tmp_path):
    here = zone(tmp_path / "zone", authority, labels={"small": "small", "large": "large"})
    here.put(role="producer")
    with pytest.raises(OperationError) as refused, bench(places, tmp_path / "b", router=here.router_directory):
        pass
    assert refused.value.code == "OPERATION_ACCEPTANCE_SETUP"
    assert "REGISTRY_NOT_ADMITTED" in refused.value.cause


def test_the_command_writes_a_report_that_verifies_and_fails_where_a_requirement_fails(places, authority, tmp_path):
    # no release is installed here, so that its integrity cannot be shown
    value = Guide("getting-started").type(
        "appliance validate", {"/opt/appliance": places.prefix, "report": tmp_path}, "--authority", authority.path,
        expect=1,
    )  # fmt: skip
    assert [result["name"] for result in value["results"] if not result["passed"]] == ["dependency integrity"]
    assert all(result["evidence"] for result in value["results"])
    assert len(value["results"]) == len(checks.BENCH_CHECKS) + 3  # and the wheels, the network and the registries
    data, signature = ((tmp_path / f"validation.{end}").read_bytes() for end in ("json", "sigstore.json"))
    verdict = verify_statement(data, signature, kind="validation", material=authority.material, at=datetime.now(UTC))
    assert verdict.role == "zone-host"
    with pytest.raises(TrustError):
        verify_statement(
            data.replace(b'"passed":false', b'"passed":true'), signature, kind="validation",
            material=authority.material, at=datetime.now(UTC),
        )  # fmt: skip
    page = (tmp_path / "validation.html").read_text()
    assert "not accepted" in page
    assert "<script" not in page
    assert "Signed by zone-host" in page


def test_evidence_cannot_write_markup_into_the_page():
    evil = Result("<script>alert(1)</script>", "x", passed=True, evidence={"<b>": "</dd><script>"})
    page = report.page(report.statement([evil], at=datetime.now(UTC), release=None), signer="<i>")
    assert "<script" not in page
    assert "<i>" not in page


def test_the_copied_router_is_the_installed_one(running, places):
    import yaml as reader

    installed = reader.safe_load(places.config.read_text())["routing"]["routers"]["default"]["directory"]
    assert artifact.read(running.router).digest == artifact.read(type(running.router)(installed)).digest
