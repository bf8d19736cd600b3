# ruff: noqa: E501 (tables and small programs read better in one line)
"""What the appliance relies on in LiteLLM, pinned against the installed version by running its real router.

When an upgrade breaks one of these, `appliance/gateway/proxy.py` is where to look.
"""

import os
import subprocess
import sys

import pytest

PROBE = r"""
import asyncio, json, os, sys
sys.path.insert(0, os.getcwd())
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MODE="PRODUCTION")
import litellm
from litellm import Router
from litellm.integrations.custom_logger import CustomLogger
from tests.support.upstream import upstream
found = {"version": litellm.__version__ if hasattr(litellm, "__version__") else ""}

class Hook(CustomLogger):
    calls, ended = [], []
    choose = staticmethod(lambda healthy: [healthy[-1]])
    async def async_filter_deployments(self, model, healthy_deployments, messages, request_kwargs=None, parent_otel_span=None):
        self.calls.append({"model": model, "ids": [d["model_info"]["id"] for d in healthy_deployments],
                           "models": [d["litellm_params"]["model"] for d in healthy_deployments],
                           "messages": messages, "call_id": (request_kwargs or {}).get("litellm_call_id"),
                           "has_kwargs": isinstance(request_kwargs, dict)})
        return self.choose(healthy_deployments)
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        self.ended.append(("success", kwargs["litellm_params"]["model_info"]["id"]))
    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        self.ended.append(("failure", kwargs["litellm_params"]["model_info"]["id"], type(kwargs["exception"]).__name__,
                           getattr(kwargs["exception"], "status_code", None)))

def entry(group, id_, url):
    return {"model_name": group, "litellm_params": {"model": "openai/" + id_, "api_base": url, "api_key": "none"}, "model_info": {"id": id_}}

async def until(condition):
    for _ in range(6000):  # callbacks run beside the request
        if condition(): return
        await asyncio.sleep(0.01)

async def main():
    hook = Hook()
    litellm.logging_callback_manager.add_litellm_callback(hook)
    with upstream("a") as a, upstream("b") as b, upstream("c") as c:
        router = Router(model_list=[entry("chat", "a", a.url), entry("chat", "b", b.url), entry("other", "c", c.url)], num_retries=2)
        ask = lambda **kw: router.acompletion(model="chat", messages=[{"role": "user", "content": "hi"}], **kw)
        answer = await ask(litellm_call_id="call-1")
        found["first"] = hook.calls[0]
        found["answered_by"] = answer.choices[0].message.content.split()[0]
        stream = [chunk async for chunk in await ask(stream=True)]
        found["stream_by"] = "".join((x.choices[0].delta.content or "") for x in stream).split()[0]
        await until(lambda: hook.ended)
        found["success"] = hook.ended[:1]
        hook.calls.clear(); hook.ended.clear()
        b.mode = "error"
        tried = []
        def avoid(healthy):
            left = [d for d in healthy if d["model_info"]["id"] not in tried] or healthy
            tried.append(left[-1]["model_info"]["id"]); return [left[-1]]
        hook.choose = avoid
        answer = await ask()
        found["after_failure"] = {"tried": tried, "by": answer.choices[0].message.content.split()[0]}
        await until(lambda: any(e[0] == "failure" for e in hook.ended))
        found["failure"] = [e for e in hook.ended if e[0] == "failure"][:1]
        dead = Router(model_list=[entry("dead", "d", "http://127.0.0.1:9/v1"), entry("dead", "e", "http://127.0.0.1:9/v1")], num_retries=0, cooldown_time=30)
        hook.calls.clear(); hook.ended.clear(); hook.choose = lambda healthy: healthy[:1]
        for _ in range(4):
            try: await dead.acompletion(model="dead", messages=[{"role": "user", "content": "hi"}])
            except Exception as error: found["refused_connection"] = [type(error).__name__, str(error)[:200], getattr(error, "status_code", None)]
        await asyncio.sleep(0.3)
        found["cools_down_refused_connections"] = len(hook.calls[-1]["ids"]) < 2
        hook.calls.clear()
        from appliance.gateway import prices
        from litellm.litellm_core_utils.llm_cost_calc import zero_cost_diagnostic
        walk, walks = zero_cost_diagnostic._declares_a_rate, []
        zero_cost_diagnostic._declares_a_rate = lambda entry: walks.append(entry) or walk(entry)
        unpriced, hook.choose = {"entry": entry("free", "f", a.url)}, lambda healthy: healthy[:1]
        unpriced["marked"] = prices.marked(entry("free", "g", a.url), prices.PriceList(litellm.model_cost))
        for how, deployment in unpriced.items():
            hook.ended.clear(); walks.clear()
            answer = await Router(model_list=[deployment]).acompletion(model="free", messages=[{"role": "user", "content": "hi"}])
            await until(lambda: hook.ended)
            found["walks_" + how], found["cost_" + how] = len(walks), answer._hidden_params["response_cost"]
        hook.choose = lambda healthy: []
        try: await ask(); found["empty"] = "answered"
        except Exception as error: found["empty"] = type(error).__name__
        def explode(healthy): raise RuntimeError("x")
        hook.choose = explode
        try: await ask(); found["exploding"] = "answered"
        except Exception as error: found["exploding"] = type(error).__name__

asyncio.run(main())
from litellm.types.router import GenericLiteLLMParams
from litellm.types.utils import all_litellm_params
found["owned"] = sorted({*all_litellm_params, *GenericLiteLLMParams.model_fields})

import httpx, inspect
from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport as Transport
seams = (Transport._make_aiohttp_request, Transport.handle_async_request, Router._time_to_sleep_before_retry)
found["takes"] = [list(inspect.signature(method).parameters) for method in seams]
from appliance.gateway import proxy
app = proxy.application()
found["ours"] = [method.__qualname__ for kind in (Transport, Router) for method in vars(kind).values()
                 if getattr(method, "__module__", "").startswith("appliance.")]
async def fails():
    raise ZeroDivisionError("true cause")
app.add_api_route("/fails", fails)
async def unhandled():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        try: found["unhandled"] = (await client.get("/fails")).text
        except BaseException as error: found["unhandled"] = type(error).__name__
asyncio.run(unhandled())
print("RESULT " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    import json

    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    result = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, result.stderr[-3000:]
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


def test_the_callback_gets_the_healthy_deployments_of_the_requested_group_and_no_other(found):
    assert found["first"]["model"] == "chat"
    assert found["first"]["ids"] == ["a", "b"]
    assert found["first"]["models"] == ["openai/a", "openai/b"]
    assert found["first"]["messages"] == [{"role": "user", "content": "hi"}]
    assert found["first"]["call_id"] == "call-1"


def test_the_one_deployment_that_it_returns_answers_streaming_or_not(found):
    assert found["answered_by"] == "answer-of-b"
    assert found["stream_by"] == "answer-of-b"


def test_a_failed_attempt_asks_the_callback_again(found):
    assert found["after_failure"] == {"tried": ["b", "a"], "by": "answer-of-a"}


def test_success_and_failure_events_name_the_deployment_and_the_exception(found):
    assert found["success"] == [["success", "b"]]
    kind, id_, error, status = found["failure"][0]
    assert (kind, id_, status) == ("failure", "b", 500)
    assert error


def test_a_refused_connection_says_so_and_does_not_cool_down_by_itself(found):
    """Why `health.UpstreamHealth` exists; when LiteLLM learns it, this test tells."""
    assert "connection" in " ".join(str(part) for part in found["refused_connection"]).lower()
    assert found["cools_down_refused_connections"] is False


def test_an_empty_answer_or_an_exception_fails_the_request_so_ours_never_gives_either(found):
    assert found["empty"] != "answered"
    assert found["exploding"] == "RuntimeError"


def test_a_deployment_that_is_said_to_be_free_is_not_searched_for_a_forgotten_price_with_every_answer(found):
    """Why `prices` exists; when LiteLLM no longer searches, this test tells."""
    assert found["walks_entry"] > 0
    assert found["walks_marked"] == 0
    assert found["cost_entry"] == found["cost_marked"] == 0


def test_no_field_that_a_client_may_send_is_one_of_litellms_own(found):
    """But for `metadata`, which is handed on one level down; an upgrade that claims another name is seen here."""
    from appliance.gateway import fields

    assert len(found["owned"]) > 300
    for api, allowed in fields.APIS.items():
        assert set(found["owned"]) & set(allowed) <= {"metadata"}, api


def test_what_litellm_does_not_handle_leaves_it_as_it_is(found):
    assert found["unhandled"] == "ZeroDivisionError"


def test_three_methods_are_wrapped_and_take_what_the_wrappers_name(found):
    """docs/decisions/0052-litellm-is-wrapped-in-three-places.md; a fourth belongs there before it belongs here."""
    assert len(found["ours"]) == 3
    send, handle, wait = map(set, found["takes"])
    assert {"client_session", "request"} <= send
    assert "request" in handle
    assert {"e", "remaining_retries"} <= wait


def test_the_proxy_still_has_what_we_hold_on_to():
    from appliance.gateway import proxy

    assert proxy.version() == "1.106.2"


def test_the_parts_of_a_users_turn_are_those_that_litellm_knows():
    from litellm.types.llms.openai import ValidUserMessageContentTypes

    from appliance.gateway.fields import USERS_PARTS

    assert set(ValidUserMessageContentTypes) == USERS_PARTS
