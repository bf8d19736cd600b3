# ruff: noqa: E501 (documents as workers give them)
"""The status screen, from documents as workers give them."""

import io

from rich.console import Console

from appliance.cli.operations import _print_status
from appliance.operations.status import condense

SERVING = {
    "digest": "d" * 64,
    "artifact": "chat 2.0.0",
    "strategy": "knn",
    "origin": "directory",
    "signed_by": "officer@zone",
}
PROBLEM = {"code": "TRUST_OMS_FILES", "cause": "altered", "remedy": "copy it again", "evidence": {}, "at": "now"}
RESTING = {"state": "open", "last_reason": "unreachable", "retry_in_s": 2.5, "failures_in_a_row": 1, "opened_count": 1}
COOLING = {"status_code": 500, "left_s": 3.0, "since": 0, "for_s": 5}


def worker(number: int, *, serving=SERVING, problem=None) -> dict:
    def deployment(id_, **state):
        return {"id": id_, "model": f"m/{id_}", "weight": 1, "cooldown": None, "health": None, **state}

    return {
        "worker": number, "pid": 100 + number, "version": "0.1.0", "litellm": "1.106.2", "ready": True,
        "routers": {"default": {"mode": "ml" if serving else "weighted-round-robin", "serving": serving, "problem": problem}},
        "groups": {"chat": {
            "routing": "ml", "router": "default", "last_resort": None,
            "candidate": {"router": "next", "stage": "canary", "decisions": 5, "failures": 0, "agreement": 0.9},
            "deployments": [deployment("a", health=RESTING), deployment("b", cooldown=COOLING), deployment("c")],
        }},
        "decisions": [{"group": "chat", "outcome": "success", "reason": "best_score", "count": 7}],
        "ml_path": {"breaker": {"state": "closed"}, "mean_service_ms": 5.0},
        "egress": {"refused": number},
        "lockdown": {"landlock": "enforced", "seccomp": "enforced", "self_test": "refused"},
    }  # fmt: skip


def screen(workers) -> str:
    out = io.StringIO()
    _print_status(Console(file=out, width=200), {"workers": workers, **condense(workers)})
    return out.getvalue()


def test_one_screen_tells_who_serves_who_rests_and_what_tried_to_leave():
    text = screen([worker(0), worker(1)])
    assert "router default: chat 2.0.0 (knn) dddddddddddd from directory, signed by officer@zone" in text
    assert "open: unreachable, next try in 2.5 s" in text
    assert "cooling down after status 500, 3.0 s left" in text
    assert "candidate next: canary, 5 decisions" in text
    assert "connections to unknown destinations: 1 (self-test refused, landlock enforced, seccomp enforced)" in text
    assert "workers differ" not in text


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
