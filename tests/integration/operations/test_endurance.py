"""The endurance run in its short form: everything that the hour holds, once, with real releases side by side."""

import sysconfig
from datetime import UTC, datetime

import pytest

from appliance.bundle.install import install
from appliance.operations.acceptance import checks, run
from appliance.operations.doctor.gather import Places
from tests.support.bundle import small_release
from tests.support.gateway import deployment, write_config
from tests.support.guides import Guide
from tests.support.routing import zone
from tests.support.upstream import Upstream

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(900)]  # a busy machine; a minute on a quiet one


@pytest.fixture
def releases(tmp_path, authority):
    return [small_release(tmp_path / f"media-{n}", authority, f"1.{n}.0", epoch=n + 1) for n in range(2)]


@pytest.fixture
def places(tmp_path, authority, releases, monkeypatch):
    """A host with one small release installed: the appliance is its own, the libraries come from where tests run."""
    monkeypatch.setenv("PYTHONPATH", sysconfig.get_path("purelib"))
    home = tmp_path / "host"
    install([releases[0].media], home, releases[0].anchor, now=datetime.now(UTC))
    here = zone(tmp_path / "zone", authority, labels={"small": "small", "large": "large"})
    here.put()
    upstreams = [Upstream("small", port=9), Upstream("large", port=9)]
    write_config(home / "etc", [deployment("chat", each) for each in upstreams], tls=False, **here.sections())
    return Places.below(home)


def test_nothing_fails_and_nothing_grows_whatever_is_reloaded_replaced_or_taken_away(places, releases, monkeypatch):
    """As the upgrade notes say it, for fewer seconds: what is asked of an installed appliance, and this at the end."""
    monkeypatch.setattr(checks, "LATENCY_GOAL_MS", 60_000.0)  # of an appliance's own machine; tests share theirs
    monkeypatch.setattr(checks, "MODEL_SHARE", 0.0001)
    monkeypatch.setattr(run, "PACE_S", 0.2)
    command, shorter = "appliance validate --endurance 600", {"600": 15, "MEDIA": releases[1].media}
    report = Guide("upgrade-notes").type(command, shorter, "--rate", 40, "--prefix", places.prefix, expect=1)
    results = {result["name"]: result for result in report["results"]}
    # a small release carries no wheels and no list of them
    assert [name for name, result in results.items() if not result["passed"]] == ["dependency integrity"], results
    evidence = results["endurance"]["evidence"]
    assert evidence["requests"] > 100
    assert set(evidence["by_kind"]) == {"fresh", "kept", "long", "streamed", "slow", "looking"}
    assert [each["release"][:5] for each in evidence["processes"]] == ["1.0.0", "1.1.0", "1.0.0"]
    assert set(evidence["done"]) == {
        "router promoted", "registry well again", "registry gone", "registry silent", "registry busy", "registry cut",
        "registry lying", "model server died", "model server back", "reload", "certificate rotated",
        "CA of the certificates rotated", "upgrade", "roll-back",
    }  # fmt: skip


def test_the_installation_itself_is_not_touched(places, tmp_path):
    """The run copies: a release that is upgraded away in it still stands where it was."""
    from appliance.bundle.stage0.journal import Prefix
    from appliance.operations.acceptance.manager import Manager

    before = sorted(path.relative_to(places.prefix) for path in places.prefix.rglob("*"))
    scene = tmp_path / "scene"
    scene.mkdir()
    manager = Manager(scene, places.prefix)
    try:
        assert manager.releases == [Prefix(places.prefix).active()]
        manager.prefix.discard(manager.releases[0])
    finally:
        manager.close()
    assert sorted(path.relative_to(places.prefix) for path in places.prefix.rglob("*")) == before
