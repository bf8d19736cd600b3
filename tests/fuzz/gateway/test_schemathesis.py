"""Requests made from the API's description, fitting and not, through real HTTP: none ends in an error of ours."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.support.gateway import deployment, gateway
from tests.support.routing import zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

SCHEMA = schemathesis.openapi.from_path(Path(__file__).with_name("openapi.yaml"))
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}
CHAT = "POST /v1/chat/completions"
BOTH = {CHAT, "GET /appliance/decisions"}  # what has something that can be wrong


def requests(label: str):
    """Requests that fit the description, and, where it demands anything, some that do not."""
    operation = OPERATIONS[label]
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    return fitting | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) if label in BOTH else fitting


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("schemathesis")
    here = zone(home / "zone", make_authority(home / "ca"), labels={"a": "openai/small", "b": "openai/large"})
    here.put()
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway", [deployment("chat", small), deployment("chat", large)], tls=False, **here.sections()
        ) as made,
    ):
        yield made


@pytest.mark.parametrize("label", sorted(OPERATIONS))
def test_no_request_made_from_the_description_ends_in_an_error_of_the_server(label, running):
    seen: set[int] = set()

    @settings(
        max_examples=150 if label == CHAT else 15,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(case=requests(label))
    def ask(case) -> None:
        response = case.call(base_url=running.url, headers={"authorization": f"Bearer {running.key}"}, timeout=20)
        seen.add(response.status_code)
        assert response.status_code < 500, (response.status_code, response.text[:500], case.as_curl_command())

    ask()
    assert seen, "something was asked"
    if label == CHAT:
        assert seen > {200, 400}, "both sorts came through"


def test_after_all_that_every_deployment_still_serves(running):
    for each in running.status()["groups"]["chat"]["deployments"]:
        assert not each["health"] or each["health"]["state"] == "closed"
    assert running.chat("easy the").headers["x-appliance-deployment"] == "small"
    assert running.chat("hard of").headers["x-appliance-deployment"] == "large"
    assert "routing callback failed" not in running.log.read_text()
