# ruff: noqa: E501 (documents as workers give them)
"""The status screen, from documents as workers give them."""

import io

import pytest
from rich.console import Console

from appliance.cli.operations import _print_status
from appliance.gateway.condense import condense

SERVING = {
    "digest": "d" * 64,
    "artifact": "chat 2.0.0",
    "strategy": "knn",
    "origin": "directory",
    "signed_by": "officer@zone",
    "signed_at": "2026-11-20T12:00:00+00:00",
}
KEPT = {**SERVING, "artifact": "chat 1.0.0", "digest": "e" * 64}
CHANNEL = {"name": "stable", "epoch": 7, "contact_age_s": 200.0, "problem": None}
PROBLEM = {"code": "TRUST_OMS_FILES", "cause": "altered", "remedy": "copy it again", "evidence": {}, "at": "now"}
RESTING = {"state": "open", "last_reason": "unreachable", "retry_in_s": 2.5, "failures_in_a_row": 1, "opened_count": 1}
COOLING = {"status_code": 500, "left_s": 3.0, "since": 0, "for_s": 5}


def worker(number: int, *, serving=SERVING, problem=None, kept=SERVING, breaker="closed") -> dict:
    def deployment(id_, **state):
        return {"id": id_, "model": f"m/{id_}", "weight": 1, "cooldown": None, "health": None, **state}

    return {
        "worker": number, "pid": 100 + number, "version": "0.1.0", "litellm": "1.106.2", "ready": True,
        "routers": {"default": {"mode": "ml" if serving else "weighted-round-robin", "serving": serving, "problem": problem,
                                "last_known_good": kept, "channel": CHANNEL}},
        "groups": {"chat": {
            "routing": "ml", "router": "default", "last_resort": None,
            "candidate": {"router": "next", "stage": "canary", "decisions": 5, "failures": 0, "agreement": 0.9},
            "deployments": [deployment("a", health=RESTING), deployment("b", cooldown=COOLING), deployment("c")],
        }},
        "decisions": [{"group": "chat", "outcome": "success", "reason": "best_score", "count": 7}],
        "ml_path": {"breaker": {"state": breaker}, "mean_service_ms": 5.0},
        "egress": {"refused": number},
        "lockdown": {"landlock": "enforced", "seccomp": "enforced", "self_test": "refused"},
    }  # fmt: skip


def screen(workers, width: int = 200) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False)
    _print_status(console, {"workers": workers, **condense(workers)})
    return out.getvalue()


def test_one_screen_tells_who_serves_who_rests_and_what_tried_to_leave():
    text = screen([worker(0), worker(1)])
    assert "router default: chat 2.0.0 (knn) dddddddddddd from directory, signed by officer@zone" in text
    assert "open: unreachable, next try in 2.5 s" in text
    assert "cooling down after status 500, 3.0 s left" in text
    assert "candidate next: canary, 5 decisions" in text
    assert "connections to unknown destinations: 1 (self-test refused, landlock enforced, seccomp enforced)" in text
    assert "workers differ" not in text
    assert "channel stable: epoch 7; the registry answered 3 minutes ago" in text
    assert "last known good" not in text, "the very one that serves"


@pytest.mark.parametrize("number", [1, 4, 64])
def test_it_fits_a_terminal_of_80_by_24_however_many_workers_there_are(number):
    workers = [worker(n, kept=KEPT) for n in range(number)]
    lines = screen(workers, width=80).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80


def test_of_many_workers_those_that_are_not_well_are_named():
    workers = [worker(n, breaker="open" if n == 5 else "closed") for n in range(8)]
    workers[6]["ready"] = False
    text = screen(workers)
    assert "worker 5: pid 105, 7 decisions, 7 by a router, breaker open" in text
    assert "worker 6: not ready, pid 106" in text
    assert "6 workers well: 42 decisions" in text
    assert "worker 4:" not in text


def test_the_last_known_good_router_is_told_where_it_is_another():
    text = screen([worker(0, serving=None, problem=PROBLEM, kept=KEPT)])
    assert "last known good: chat 1.0.0 eeeeeeeeeeee, signed by officer@zone" in text


def test_a_refused_update_and_workers_that_differ_are_seen_at_once():
    workers = [worker(0), worker(1, serving=None, problem=PROBLEM)]
    assert condense(workers)["converged"] is False
    assert condense(workers)["routers"]["default"]["mode"] == "weighted-round-robin"
    text = screen(workers)
    assert "workers differ!" in text
    assert "refused TRUST_OMS_FILES: altered\n  next: copy it again" in text
    assert "none; weighted round-robin serves" in screen([worker(0, serving=None, problem=PROBLEM)])


def test_an_upstream_that_one_worker_of_two_keeps_out_is_shown_with_how_many_do():
    recovered = worker(0)
    for deployment in recovered["groups"]["chat"]["deployments"]:
        deployment["health"] = deployment["cooldown"] = None
    workers = [recovered, worker(1)]
    text = screen(workers)
    assert "open: unreachable, next try in 2.5 s (on 1 of 2 workers)" in text
    assert "cooling down after status 500, 3.0 s left (on 1 of 2 workers)" in text
    assert [d["out_on"] for d in condense(workers)["groups"]["chat"]["deployments"]] == [1, 1, 0]
