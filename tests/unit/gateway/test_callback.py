"""Between LiteLLM's dictionaries and the decider: always one deployment, never outside group and key."""

import asyncio

import pytest

from appliance.breaker import Breaker
from appliance.gateway import context
from appliance.gateway.access import Principal
from appliance.gateway.callback import RoutingCallback
from appliance.gateway.decider import Decider, Plan
from appliance.gateway.decision import DecisionLog, Deployment
from appliance.gateway.health import UpstreamHealth
from appliance.gateway.pool import Pool
from appliance.gateway.scoring import ScoreCache, Scorer
from appliance.routers.round_robin import SmoothWeightedRoundRobin


def entry(id_: str, group: str = "chat", **info) -> dict:
    return {"model_name": group, "litellm_params": {"model": f"m/{id_}"}, "model_info": {"id": id_, **info}}


ALL = [entry("a"), entry("b"), entry("spare"), entry("c", "other"), entry("off", blocked=True)]
GROUPS = {"chat": [Deployment(id_, f"m/{id_}") for id_ in ("a", "b", "spare")]}


def callback(*, last_resort: str | None = "spare") -> RoutingCallback:
    decider = Decider(
        plans={"chat": Plan(last_resort=last_resort)},
        round_robin=SmoothWeightedRoundRobin(),
        scorer=Scorer(pool=Pool(threads=1, queue_length=1), breaker=Breaker(failures=1, open_s=1), cache=ScoreCache(0)),
        health=UpstreamHealth(failures=1, open_s=60, probes=1),
        deadline_s=60,
        decisions=DecisionLog(),
    )
    return RoutingCallback(decider, GROUPS, lambda: ALL)


def ask(made: RoutingCallback, healthy, *, principal=None, times: int = 1, kwargs=None, group: str = "chat") -> list:
    async def run():
        context.current.set(context.RequestContext(principal))
        return [
            await made.filter(group, healthy, [{"role": "user", "content": "x"}], kwargs or {}, None)
            for _ in range(times)
        ]

    return [[d["model_info"]["id"] for d in answer] for answer in asyncio.run(run())]


def test_it_answers_with_exactly_one_of_the_healthy():
    assert ask(callback(), ALL[:2]) in ([["a"]], [["b"]])


def test_asked_again_for_the_same_request_it_avoids_whom_it_named_before():
    answers = ask(callback(), ALL[:2], times=4)
    assert {answers[0][0], answers[1][0]} == {"a", "b"}
    assert answers[2] == ["spare"], "before anybody is asked twice, whoever rests is asked once"
    assert answers[3][0] in {"a", "b"}, "when all have failed, all may be tried again"


def test_where_whoever_is_well_has_failed_those_that_rest_are_asked_once_each():
    answers = ask(callback(last_resort=None), ALL[:1], times=3)
    assert answers[0] == ["a"]
    assert {answers[1][0], answers[2][0]} == {"b", "spare"}


REFUSED, HUNG_UP, SILENT = ConnectionRefusedError(), ConnectionResetError(), TimeoutError()


@pytest.mark.parametrize(
    ("asked", "error", "again"),
    [
        (1, REFUSED, True), (2, REFUSED, True), (3, REFUSED, False),
        (2, HUNG_UP, True), (3, HUNG_UP, True), (4, HUNG_UP, False),
        (1, SILENT, True), (2, SILENT, False),
    ],
)  # fmt: skip
def test_a_request_is_put_once_more_while_somebody_has_not_been_asked_or_has_only_hung_up(asked, error, again):
    made, request = callback(), context.RequestContext()

    async def run() -> None:
        context.current.set(request)
        for _ in range(asked):
            await made.filter("chat", ALL[:2], None, {}, None)
        made.gave_up(error)

    asyncio.run(run())
    assert request.again is again


def test_what_is_the_clients_own_fault_is_put_to_nobody_else():
    class BadRequestError(Exception):
        status_code = 400

    made, request = callback(), context.RequestContext()

    async def run() -> None:
        context.current.set(request)
        await made.filter("chat", ALL[:2], None, {}, None)
        made.gave_up(BadRequestError())

    asyncio.run(run())
    assert (request.fault, request.again) == (None, False)


@pytest.mark.parametrize(("healthy", "ended"), [([], "spare"), (ALL[:3], None)])
def test_an_answer_of_one_that_rested_ends_its_rest(healthy, ended):
    made = callback()
    chosen = ask(made, healthy)[0][0]
    kwargs = {"litellm_params": {"model_info": {"id": chosen}}}
    assert made.succeeded(kwargs) == ended
    assert made.succeeded(kwargs) is None


@pytest.mark.parametrize("key", ["_excluded_deployment_ids", "_retry_skipped_deployment_ids"])
def test_it_never_names_whom_litellm_would_drop_after_it(key):
    assert ask(callback(), ALL[:2], kwargs={key: ["a"]}) == [["b"]]
    assert ask(callback(), ALL[:2], kwargs={key: {"strange": 1}})[0][0] in {"a", "b"}


def test_where_the_whole_group_rests_the_last_resort_is_asked():
    assert ask(callback(), []) == [["spare"]]


def test_without_a_last_resort_any_of_the_group_is_asked_but_never_a_blocked_one_nor_another_group():
    made = callback(last_resort=None)
    assert {ask(made, [])[0][0] for _ in range(9)} == {"a", "b", "spare"}


def test_a_key_gets_nothing_of_a_group_that_it_may_not_use():
    team = Principal("team", frozenset({"chat"}))
    assert ask(callback(), ALL[:2], principal=team)[0]
    assert ask(callback(), [ALL[3]], principal=team, group="other") == [[]]
    assert ask(callback(), [], principal=team, group="other") == [[]]


def test_whatever_goes_wrong_litellm_still_has_its_deployments():
    broken = [{"litellm_params": {}}]
    assert asyncio.run(callback().filter("chat", broken, None, {}, None)) == broken
