"""`appliance validate` and the endurance run, against a real second gateway."""

from datetime import UTC, datetime

import pytest
import yaml

from appliance import artifact
from appliance.errors import OperationError, TrustError
from appliance.operations.acceptance import checks, report
from appliance.operations.acceptance.bench import bench
from appliance.operations.acceptance.checks import Result
from appliance.operations.doctor.gather import Places
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
    write_config(home / "etc", [deployment("chat", each) for each in upstreams], tls=False, **here.sections())
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


def test_a_requirement_that_does_not_hold_is_not_passed(running, monkeypatch):
    monkeypatch.setattr(checks, "LATENCY_GOAL_MS", 0.0001)
    assert not checks.latency(running).passed


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
    assert len(value["results"]) == len(checks.BENCH_CHECKS) + 2  # and the wheels, and the network
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
