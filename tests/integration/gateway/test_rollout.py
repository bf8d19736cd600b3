"""A new router tries itself on a gateway of two workers: shadow, a sticky share, all; a worse version goes back."""

import json

import pytest

from appliance.gateway.rollout import share_of
from tests.support.gateway import deployment, gateway, run
from tests.support.routing import place, router_files, sign, zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = {"a": "openai/small", "b": "openai/large"}
BOUNDS = {
    "router": "next", "share": 0.5, "shadow_decisions": 10, "canary_decisions": 10, "min_decisions": 5,
    "min_agreement": 0.8, "max_failure_share": 0.5,
}  # fmt: skip
SESSIONS = [f"session-{n}" for n in range(8)]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A gateway whose group has a router and a candidate."""
    home = tmp_path_factory.mktemp("rollout")
    here = zone(home / "zone", make_authority(home / "ca"), labels=LABELS)
    here.put()
    offer(here, version="2.0.0")
    sections = here.sections()
    sections["routing"]["routers"]["next"] = {"directory": str(here.directory / "next"), "poll_interval_s": 0.1}
    sections["routing"]["groups"]["chat"] |= {
        "candidate": BOUNDS, "costs": {"small": 1.0, "large": 2.0}, "cost_weight": 0.05,
    }  # fmt: skip
    with upstream("small") as small, upstream("large") as large:
        deployments = [deployment("chat", small), deployment("chat", large)]
        with gateway(home / "gateway", deployments, listen={"workers": 2}, **sections) as running:
            running.wait_until(lambda: len(running.status()["workers"]) == 2, what="both workers")
            yield here, running


def offer(here, **options) -> str:
    """Place a version of the candidate; returns its digest."""
    files = router_files(labels=LABELS, encoder=here.encoder, **options)
    made = sign(files, here.authority.signer("import-officer"))
    place(made, here.directory / "next")
    return made.digest


def candidate(running) -> dict:
    return running.status()["groups"]["chat"]["candidate"]


def ask(running, number: int, session: str) -> str:
    """Ask on a connection of its own, so that both workers get their share; returns the request's id."""
    body = {"model": "chat", "messages": [{"role": "user", "content": f"easy what is {number}"}]}
    with running.new_client() as client:
        answer = client.post("/v1/chat/completions", json=body, headers={"x-appliance-session": session})
    assert answer.status_code == 200
    assert answer.headers["x-appliance-deployment"] == "small", "whoever decides, nobody notices"
    return answer.headers["x-appliance-request-id"]


def routers(running) -> dict[str, str]:
    """Request id -> the router that decided it."""
    found = running.client.get("/appliance/decisions", params={"limit": 1000}).json()["decisions"]
    return {one["request_id"]: one["router"] for one in found}


def test_a_candidate_goes_from_shadow_to_all_and_a_worse_version_is_sent_back(served, tmp_path):
    here, running = served
    mine = {session for session in SESSIONS if share_of(f"master/{session}") < BOUNDS["share"]}
    assert 0 < len(mine) < len(SESSIONS)
    asked: dict[str, tuple[str, str]] = {}  # id -> session, stage afterwards
    stage = "shadow"
    while stage != "full":
        for session in SESSIONS:
            id_ = ask(running, len(asked), session)
            stage = candidate(running)["stage"]
            asked[id_] = session, stage
        assert stage != "returned", candidate(running)
        assert len(asked) < 400, candidate(running)
    decided = routers(running)
    for id_, (session, after) in asked.items():
        if decided[id_] == "next":
            assert after != "shadow"
            assert session in mine or after == "full"
    assert "next" in decided.values()
    last = ask(running, 0, min(set(SESSIONS) - mine))
    assert routers(running)[last] == "next", "it has taken over"

    saved = tmp_path / "decisions.json"
    saved.write_text(running.client.get("/appliance/decisions", params={"limit": 1000}).text)
    again = run("replay", str(saved), "--json")
    assert (again.returncode, {one["same"] for one in json.loads(again.stdout)}) == (0, {True})

    worse = offer(here, version="3.0.0", swapped=True)
    running.wait_until(lambda: running.status()["routers"]["next"]["digests"] == [worse], what="3.0.0 on both")
    assert candidate(running)["stage"] == "shadow"
    running.wait_until(
        lambda: ask(running, 0, "session-0") and candidate(running)["stage"] == "returned", what="it is sent back"
    )
    assert "agreement" in candidate(running)["reason"]
