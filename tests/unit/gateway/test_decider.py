"""The decision: among the candidates, by score and cost, never an exception, always a record."""

import asyncio
import dataclasses
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import aiohttp
import httpx
import numpy as np
import openai
import pytest
from aiohttp.client_reqrep import ConnectionKey
from hypothesis import given
from hypothesis import strategies as st

from appliance.breaker import Breaker
from appliance.gateway.active import Serving, Slot
from appliance.gateway.decider import Decider, Plan
from appliance.gateway.decision import DecisionLog, Deployment
from appliance.gateway.health import UpstreamHealth, blame
from appliance.gateway.pool import Pool
from appliance.gateway.rollout import Rollout, share_of
from appliance.gateway.scoring import Request, ScoreCache, Scorer
from appliance.routers.round_robin import SmoothWeightedRoundRobin
from appliance.routers.strategies import Prompts
from appliance.settings import Candidate
from appliance.trust.verification import Verdict

SMALL, LARGE, SPARE = Deployment("small", "m/small"), Deployment("large", "m/large"), Deployment("spare", "m/spare")
VERDICT = Verdict("router", "import-officer", "officer@zone", "ca", datetime.now(UTC), 1, 1, "0" * 64)


class LetterEncoder:
    """A vector of what a test needs: the prompt's length."""

    digest, dimensions = "e" * 64, 1

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        return np.array([[len(text)] for text in texts], np.float32)

    def prompts(self, texts):
        return Prompts(tuple(texts), self.encode(texts))


class TableRouter:
    """Scores by the first word of the prompt; `explode` raises."""

    def __init__(self, table, labels, digest="d" * 64) -> None:
        self.table, self.digest = table, digest
        self.metadata = SimpleNamespace(strategy="table", labels=labels, name="t", version="1")
        self.strategy = SimpleNamespace()

    def scores(self, prompts):
        word = prompts.texts[0].split()[0]
        if word == "explode":
            raise RuntimeError("the router fell over")
        return np.array([self.table[word]], np.float32)


LABELS = {"s": "m/small", "l": "large"}  # one by model name, one by deployment id
TABLE = {"easy": [0.9, 0.3], "hard": [0.2, 0.8], "close": [0.50, 0.55], "even": [0.5, 0.5]}


def serving(table=TABLE, labels=LABELS, digest="d" * 64) -> Serving:
    return Serving("default", TableRouter(table, labels, digest), LetterEncoder(), VERDICT, "directory", "now")


class Bench:
    def __init__(self, *, deadline_s=5.0, weights=None, breaker_failures=3, **plan) -> None:
        self.slot = Slot("default")
        self.slot.swap(serving())
        self.log = DecisionLog()
        self.pool = Pool(threads=1, queue_length=4)
        self.breaker = Breaker(failures=breaker_failures, open_s=60)
        weights = weights or {}
        self.decider = Decider(
            plans={"chat": Plan(slot=plan.pop("slot", self.slot), weights=weights, **plan)},
            round_robin=SmoothWeightedRoundRobin({"chat": weights}),
            scorer=Scorer(pool=self.pool, breaker=self.breaker, cache=ScoreCache(100)),
            health=UpstreamHealth(failures=2, open_s=60, probes=1),
            deadline_s=deadline_s,
            decisions=self.log,
        )

    def decide(self, prompt, candidates=(SMALL, LARGE), *, group="chat", **request):
        asked = Request("r", "c", lambda: prompt, characters=len(prompt), **request)
        return asyncio.run(self.decider.decide(group, candidates, asked, excluded={}))

    def many(self, prompts, **request):
        async def run():
            out = []
            for n, prompt in enumerate(prompts):
                asked = Request("r", "c", lambda p=prompt: p, sticky=f"user-{n}", **request)
                out.append(await self.decider.decide("chat", (SMALL, LARGE), asked, excluded={}))
                await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))  # shadows
            return out

        return asyncio.run(run())


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.pool.close()


@pytest.mark.parametrize(("prompt", "chosen"), [("easy", "small"), ("hard", "large")])
def test_the_best_score_wins_whether_a_label_names_the_model_or_the_deployment(bench, prompt, chosen):
    decision = bench.decide(prompt)
    assert (decision.selected, decision.strategy, decision.outcome) == (chosen, "ml:table", "success")
    assert decision.reason == "best_score"
    assert decision.score == pytest.approx(max(TABLE[prompt]))
    assert decision.scores == pytest.approx(dict(zip("sl", TABLE[prompt], strict=True)))


def test_a_deployment_outside_the_candidates_is_never_chosen_however_well_it_scores(bench):
    assert bench.decide("hard", [SMALL, SPARE]).selected == "small"


def test_candidates_that_no_label_names_lead_to_round_robin_with_the_reason(bench):
    decision = bench.decide("hard", [SPARE, Deployment("other", "m/other")])
    assert (decision.outcome, decision.reason, decision.strategy) == (
        "fallback",
        "no_label_for_candidates",
        "round-robin",
    )


def test_replicas_of_the_best_model_share_its_requests_by_weight():
    bench = Bench(weights={"small-1": 3, "small-2": 1})
    replicas = [Deployment("small-1", "m/small"), Deployment("small-2", "m/small"), LARGE]
    decisions = [bench.decide("easy", replicas) for _ in range(8)]
    assert Counter(d.selected for d in decisions) == {"small-1": 6, "small-2": 2}
    assert {d.selected: d.propensity for d in decisions} == {"small-1": 0.75, "small-2": 0.25}
    bench.pool.close()


def test_a_router_that_raises_costs_no_request(bench):
    decision = bench.decide("explode")
    assert decision.selected in {"small", "large"}
    assert (decision.outcome, decision.reason) == ("error", "router_error")


def test_errors_in_a_row_open_the_breaker_and_the_router_is_left_alone(bench):
    for n in range(3):
        bench.decide(f"explode {n}")
    assert bench.decide("hard").reason == "breaker_open"
    assert bench.breaker.view().last_reason == "router_error: RuntimeError"


def test_no_router_and_no_prompt_are_told_apart(bench):
    assert bench.decide("").reason == "no_prompt"
    bench.slot.current = None
    assert bench.decide("hard").reason == "no_router"


def test_a_single_candidate_needs_no_encoder(bench):
    assert bench.decide("hard", [SMALL]).reason == "only_candidate"
    assert bench.slot.current.encoder.calls == 0


def test_without_candidates_there_is_a_record_and_no_choice(bench):
    decision = bench.decide("hard", [])
    assert (decision.selected, decision.outcome) == (None, "no_candidates")
    assert bench.log.recent() == [decision]


def test_a_group_without_a_plan_is_routed_by_round_robin(bench):
    decisions = [bench.decide("hard", group="unheard-of") for _ in range(4)]
    assert Counter(d.selected for d in decisions) == {"small": 2, "large": 2}


def test_the_same_prompt_is_encoded_once_and_again_only_for_another_encoder(bench):
    for _ in range(3):
        bench.decide("hard")
    encoder = bench.slot.current.encoder
    assert encoder.calls == 1
    swapped = {word: scores[::-1] for word, scores in TABLE.items()}
    bench.slot.swap(dataclasses.replace(serving(swapped, digest="f" * 64), encoder=encoder))
    assert bench.decide("hard").selected == "small", "a new router does not see the old one's scores"
    assert encoder.calls == 1, "but it takes the vector that is known"


def test_a_late_router_is_a_timeout():
    bench = Bench(deadline_s=0.03)
    release = threading.Event()
    bench.slot.current.encoder.encode = lambda texts: (release.wait(120), np.zeros((1, 1), np.float32))[1]
    decision = bench.decide("hard")
    assert (decision.outcome, decision.reason) == ("timeout", "deadline")
    assert decision.latency_ms < 60_000, "it did not wait for the router"
    release.set()
    bench.pool.close()


def test_long_prompts_are_cleaned_on_a_worker_thread(bench):
    seen = []

    def prompt() -> str:
        seen.append(threading.current_thread() is threading.main_thread())
        return "hard one"

    asked = Request("r", "c", prompt, characters=100_000)
    decision = asyncio.run(bench.decider.decide("chat", (SMALL, LARGE), asked, excluded={}))
    assert decision.selected == "large"
    assert seen == [False]


# --- cost, last resort, health ----------------------------------------------------------------------------------------


def test_the_cost_weight_moves_close_calls_to_the_cheaper_model_and_leaves_clear_ones():
    bench = Bench(costs={"small": 1.0, "large": 10.0}, cost_weight=0.2)
    assert bench.decide("close").selected == "small"
    assert bench.decide("hard").selected == "large"
    assert bench.decide("close", cost_weight=0.0).selected == "large", "a request may ask for quality"
    assert bench.decide("hard", cost_weight=1.0).selected == "small", "or for thrift"
    bench.pool.close()


def test_the_last_resort_answers_only_where_nobody_else_can():
    bench = Bench(last_resort="spare")
    assert {bench.decide("even", [SMALL, LARGE, SPARE]).selected for _ in range(6)} == {"small", "large"}
    assert bench.decide("even", [SMALL, SPARE]).selected == "small"
    only = bench.decide("even", [SPARE])
    assert (only.selected, only.reason) == ("spare", "last_resort")
    assert bench.decide("even", [SMALL, LARGE, SPARE]).excluded == {"spare": "last_resort"}
    bench.pool.close()


def test_an_unreachable_deployment_is_avoided_at_once(bench):
    bench.decider.health.failed("large", "unreachable")
    decision = bench.decide("hard")
    assert decision.selected == "small"
    assert decision.excluded == {"large": "unreachable"}
    assert bench.decider.health.describe("large")["last_reason"] == "unreachable"


def test_server_errors_need_a_few_in_a_row(bench):
    bench.decider.health.failed("large", "server error")
    assert bench.decide("hard").selected == "large"
    bench.decider.health.failed("large", "server error")
    assert bench.decide("hard").selected == "small"


def test_where_all_are_unreachable_all_are_tried(bench):
    for id_ in ("small", "large"):
        bench.decider.health.failed(id_, "unreachable")
    assert {bench.decide("even").selected for _ in range(2)} == {"small", "large"}


def raised(outer: Exception, inner: Exception | None) -> Exception:
    try:
        try:
            if inner is not None:
                raise inner
        finally:
            raise outer
    except Exception as error:
        return error


REQUEST = httpx.Request("POST", "http://127.0.0.1/")


@pytest.mark.parametrize(
    ("inner", "what"),
    [
        (httpx.ConnectError("refused"), "unreachable"),
        (ConnectionRefusedError(), "unreachable"),
        (httpx.ReadTimeout("late"), "no answer"),
        (ConnectionResetError(), "no answer"),
        (TimeoutError(), "no answer"),
        (openai.InternalServerError("x", response=httpx.Response(500, request=REQUEST), body=None), "server error"),
        (openai.RateLimitError("x", response=httpx.Response(429, request=REQUEST), body=None), "server error"),
        (openai.BadRequestError("x", response=httpx.Response(400, request=REQUEST), body=None), None),
        (httpx.HTTPStatusError("x", request=REQUEST, response=httpx.Response(503, request=REQUEST)), "server error"),
        (httpx.HTTPStatusError("x", request=REQUEST, response=httpx.Response(400, request=REQUEST)), None),
        (TypeError("'bool' object is not iterable"), None),
        (None, None),
    ],
)
def test_only_what_the_upstream_did_counts_against_it(inner, what):
    assert blame(raised(RuntimeError("APIConnectionError: connection error, says the wrapper"), inner)) == what


def test_a_kept_connection_that_breaks_is_no_refused_one_whatever_the_transport_calls_it():
    key = ConnectionKey("127.0.0.1", 1, False, None, None, None, None)
    assert blame(raised(httpx.ConnectError(""), aiohttp.ClientOSError(104, "reset"))) == "no answer"
    assert blame(raised(httpx.ReadError(""), aiohttp.ServerDisconnectedError())) == "no answer"
    refused = aiohttp.ClientConnectorError(key, ConnectionRefusedError(111, "refused"))
    assert blame(raised(httpx.ConnectError(""), refused)) == "unreachable"


# --- rollout ----------------------------------------------------------------------------------------------------------


def rollout(table=TABLE, **bounds) -> Rollout:
    slot = Slot("next")
    slot.swap(dataclasses.replace(serving(table, digest="a" * 64), name="next"))
    return Rollout(Candidate(router="next", **{"shadow_decisions": 10, "min_decisions": 5, **bounds}), slot)


def test_a_candidate_in_shadow_sees_and_decides_nothing():
    watched = rollout(share=0.0)
    bench = Bench(rollout=watched)
    assert {d.router for d in bench.many(["easy", "hard"] * 8)} == {"default"}
    shown = watched.describe()
    assert (shown["stage"], shown["agreement"]) == ("shadow", 1.0)
    assert shown["decisions"] >= 10
    bench.pool.close()


def test_after_the_shadow_it_decides_for_its_share_always_for_the_same_users():
    watched = rollout(share=0.5)
    bench = Bench(rollout=watched)
    bench.many(["easy"] * 14)
    assert watched.stage == "canary"
    first, second = bench.many(["easy"] * 40), bench.many(["easy"] * 40)
    assert [d.router for d in first] == [d.router for d in second]
    assert {d.router for d in first} == {"default", "next"}
    assert [d.router == "next" for d in first] == [share_of(f"user-{n}") < 0.5 for n in range(40)]
    bench.pool.close()


def test_a_good_canary_takes_over():
    watched = rollout(share=0.5, canary_decisions=10)
    bench = Bench(rollout=watched)
    bench.many(["easy"] * 14)
    bench.many(["easy"] * 60)
    assert watched.stage == "full"
    assert {d.router for d in bench.many(["hard"] * 10)} == {"next"}
    bench.pool.close()


def test_a_candidate_that_disagrees_too_much_is_sent_back():
    swapped = {word: scores[::-1] for word, scores in TABLE.items()}
    watched = rollout(swapped, share=0.5, min_agreement=0.8)
    bench = Bench(rollout=watched)
    bench.many(["easy", "hard"] * 10)
    assert watched.describe()["stage"] == "returned"
    assert "agreement" in watched.describe()["reason"]
    assert {d.router for d in bench.many(["easy"] * 10)} == {"default"}
    bench.pool.close()


def test_a_canary_that_fails_is_sent_back_and_a_new_version_begins_again():
    watched = rollout(share=1.0)
    bench = Bench(rollout=watched, breaker_failures=1000)
    bench.many(["easy"] * 14)
    assert watched.stage == "canary"
    decisions = bench.many(["explode"] * 10)
    assert all(d.selected for d in decisions), "its failures cost no request"
    assert watched.describe()["stage"] == "returned"
    watched.slot.swap(dataclasses.replace(serving(digest="b" * 64), name="next"))
    assert watched.stage == "shadow"
    bench.pool.close()


def test_a_candidate_is_asked_what_it_would_do_at_the_same_costs():
    watched = rollout(min_agreement=0.9)
    bench = Bench(rollout=watched, costs={"small": 1.0, "large": 10.0}, cost_weight=0.2)
    bench.many(["close", "hard"] * 10)
    bench.many(["hard"] * 10, cost_weight=1.0)  # what these requests ask for moves both routers
    assert watched.describe()["agreement"] == 1.0
    bench.pool.close()


class SlowEncoder(LetterEncoder):
    """Too slow for the deadline of its bench, and in time for the shadow's limit."""

    def encode(self, texts):
        time.sleep(0.25)
        return super().encode(texts)


def test_a_candidate_that_would_be_late_is_sent_back_before_it_decides_anything():
    watched = rollout(share=1.0)
    watched.slot.swap(dataclasses.replace(watched.slot.current, encoder=SlowEncoder()))
    bench = Bench(rollout=watched, deadline_s=0.2)
    decisions = bench.many([f"easy {n}" for n in range(4)])
    assert watched.describe()["stage"] == "returned"
    assert watched.describe()["failures"] <= 2, "two of fifty are too many"
    assert {d.router for d in decisions} <= {"default", None}, "a crowded machine may make the other one late, too"
    bench.pool.close()


def test_a_router_in_shadow_that_fails_does_not_take_the_breaker_from_the_one_that_serves():
    watched = rollout(max_failure_share=1.0, min_decisions=1000)
    watched.slot.current.router.scores = lambda _: 1 / 0
    bench = Bench(rollout=watched, breaker_failures=1)
    assert {d.reason for d in bench.many([f"easy {n}" for n in range(8)])} == {"best_score"}
    assert watched.describe()["failures"] == 8
    assert bench.breaker.view().failures_in_a_row == 0
    bench.pool.close()


def test_as_a_canary_it_is_still_compared_with_what_is_decided_for_the_others():
    watched = rollout(share=0.5, min_agreement=0.8)
    bench = Bench(rollout=watched)
    bench.many(["easy"] * 14)
    assert watched.stage == "canary"
    watched.slot.current.router.table = {"easy": TABLE["easy"][::-1]}  # the world changes, not the version
    bench.many([f"easy {n}" for n in range(60)])
    assert watched.describe()["stage"] == "returned"
    assert "agreement" in watched.describe()["reason"]
    bench.pool.close()


def test_what_is_seen_beside_others_is_no_decision_of_the_canarys_own():
    watched = rollout(share=0.000001, canary_decisions=5)
    bench = Bench(rollout=watched)
    bench.many(["easy"] * 60)
    assert (watched.stage, watched.describe()["decisions"]) == ("canary", 0)
    bench.pool.close()


@pytest.mark.parametrize("stage", ["canary", "full"])
def test_a_router_that_turns_bad_after_a_long_good_time_is_sent_back_as_quickly(stage):
    watched = rollout(share=1.0, canary_decisions=10 if stage == "full" else 0, max_failure_share=0.1)
    for _ in range(10):
        watched.observed(ok=True, agreed=True)
    for _ in range(10_000):
        watched.decided(ok=True)
    assert watched.stage == stage
    for _ in range(12):  # a tenth of what was seen lately
        watched.decided(ok=False)
    assert watched.stage == "returned"


# --- properties -------------------------------------------------------------------------------------------------------


@given(
    prompt=st.text(max_size=30),
    ids=st.lists(st.sampled_from(["small", "large", "spare", "m/small", "x"]), unique=True, max_size=5),
    weight=st.one_of(st.none(), st.floats(0, 1)),
)
def test_whatever_comes_the_choice_is_a_candidate_or_nothing(prompt, ids, weight):
    bench = Bench(costs={"small": 1.0}, last_resort="x", deadline_s=1.0)
    candidates = [Deployment(id_, f"m/{id_}") for id_ in ids]
    decision = bench.decide(prompt, candidates, cost_weight=weight)
    assert decision.selected in (set(ids) or {None})
    assert 0 < decision.propensity <= 1
    assert decision.as_dict()["candidates"] is not None
    bench.pool.close()
