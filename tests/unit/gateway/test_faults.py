"""What a client is told of failures behind the edge, and that LiteLLM's questions about a database are answered."""

import json
import logging
import ssl
import subprocess
import sys
import time
from email.utils import formatdate

import httpx
import openai
import pytest

from appliance.gateway import context, faults
from appliance.gateway.callback import RoutingCallback
from appliance.gateway.logs import JsonFormatter

REQUEST = httpx.Request("POST", "http://127.0.0.1/")


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=REQUEST)


class Wrapped(Exception):  # noqa: N818 (as LiteLLM names them)
    """As LiteLLM wraps what a model server did."""

    def __init__(self, status: int | str | None, inner: BaseException | None = None) -> None:
        super().__init__("quotes the PROMPT")
        self.status_code = status
        self.__cause__ = inner


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Wrapped(500, httpx.ConnectError("refused")), 502, "GATEWAY_UPSTREAM"),
        (Wrapped(500, ConnectionResetError()), 502, "GATEWAY_UPSTREAM"),
        (Wrapped(500, openai.InternalServerError("x", response=response(500), body=None)), 502, "GATEWAY_UPSTREAM"),
        (Wrapped(503, httpx.HTTPStatusError("x", request=REQUEST, response=response(503))), 502, "GATEWAY_UPSTREAM"),
        (Wrapped(500, json.JSONDecodeError("x", "y", 0)), 502, "GATEWAY_UPSTREAM"),
        (Wrapped("200", KeyError("x")), 502, "GATEWAY_UPSTREAM"),
        (Wrapped(408), 504, "GATEWAY_UPSTREAM_TIMEOUT"),
        (Wrapped(500, httpx.ReadTimeout("late")), 504, "GATEWAY_UPSTREAM_TIMEOUT"),
        (Wrapped(500, TimeoutError()), 504, "GATEWAY_UPSTREAM_TIMEOUT"),
        (Wrapped(408, httpx.ConnectTimeout("late")), 502, "GATEWAY_UPSTREAM"),
        # whoever got so far has shown a key that is right: the one that the model server refuses is the gateway's
        (Wrapped(401), 502, "GATEWAY_UPSTREAM"),
        # the group is known, or the edge would have said so
        (Wrapped(404), 404, "GATEWAY_UPSTREAM_UNKNOWN"),
    ],
)
def test_a_model_servers_failure_is_told_by_its_kind_in_our_words(error, status, code):
    fault = faults.judge(error, asked=True)
    assert (fault.status, fault.code) == (status, code)
    assert "PROMPT" not in fault.message


def test_a_certificate_that_nobody_here_trusts_is_no_broken_connection():
    fault = faults.judge(Wrapped(500, httpx.ProtocolError("x")), asked=True)
    assert fault.blame == "no answer"
    refused = httpx.ProtocolError("x")
    refused.__cause__ = ssl.SSLCertVerificationError()
    fault = faults.judge(Wrapped(500, refused), asked=True)
    assert (fault.code, fault.blame) == ("GATEWAY_UPSTREAM", "untrusted")
    assert "certificate" in fault.message


@pytest.mark.parametrize("error", [RuntimeError("x"), Wrapped(500), Wrapped(None, TimeoutError()), KeyError("PROMPT")])
def test_where_no_model_server_was_asked_none_is_to_blame(error):
    assert faults.judge(error, asked=False) == faults.UNHANDLED
    assert faults.UNHANDLED.code == "GATEWAY_UNHANDLED"


def busy(retry_after: str | None) -> Wrapped:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    answer = httpx.Response(429, request=REQUEST, headers=headers)
    return Wrapped(429, openai.RateLimitError("x", response=answer, body=None))


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("30", 30), ("3600", 3600), (None, None), ("", None), ("0", None), ("-5", None), ("3601", None),
        ("9" * 400, None), ("1e9", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None),
    ],
)  # fmt: skip
def test_a_busy_model_servers_wish_is_told_where_it_is_one(told, seconds):
    fault = faults.judge(busy(told), asked=True)
    assert (fault.status, fault.code) == (429, "GATEWAY_UPSTREAM_BUSY")
    assert fault.retry_after_s == seconds


def test_a_busy_model_servers_wish_may_be_a_date():
    before = time.time()
    told = faults.judge(busy(formatdate(before + 90, usegmt=True)), asked=True).retry_after_s
    assert told is not None
    assert 90 - (time.time() - before) - 2 <= told <= 90, "a date counts whole seconds, and time goes by"


def test_where_litellm_alone_has_nobody_left_the_last_servers_failure_is_told():
    """LiteLLM's own word for it is a 429, too."""
    assert faults.judge(Wrapped(429), asked=True) is None
    assert faults.judge(busy("30"), asked=False) is None


@pytest.mark.parametrize("status", [400, 403, 413, 422, "400"])
def test_the_clients_own_errors_stay_litellms_answer(status):
    assert faults.judge(Wrapped(status), asked=True) is None


def test_the_log_names_the_true_exceptions_and_quotes_none(caplog):
    request = context.RequestContext()
    token = context.current.set(request)
    try:
        RoutingCallback(None, {}, list).gave_up(Wrapped(500, KeyError("PROMPT")))
    finally:
        context.current.reset(token)
    with caplog.at_level(logging.ERROR, "appliance.request"):
        faults.record(request.error, request.fault, request_id=request.id)
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert request.fault.code == line["code"] == "GATEWAY_UNHANDLED"
    assert line["request_id"] == request.id
    assert line["exceptions"] == [f"{__name__}.Wrapped", "builtins.KeyError"]
    assert "PROMPT" not in json.dumps(line)


PROBE = """
import sys
from appliance.gateway import no_database
no_database.stand_in()
no_database.stand_in()  # the parent of the workers did it, too
import prisma
import prisma.engine.errors
from prisma.errors import RecordNotFoundError
assert issubclass(prisma.errors.DataError, prisma.errors.PrismaError)
assert prisma.errors.DataError is prisma.errors.DataError
assert not isinstance(ConnectionError(), (prisma.engine.errors.EngineConnectionError, prisma.errors.PrismaError))
for wrong in ("from prisma import Prisma", "import prisma.client", "from prisma.errors import anything"):
    try:
        exec(wrong)
    except ImportError:
        continue
    raise SystemExit(wrong)
import os
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MODE="PRODUCTION")
from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler as handler
error = ValueError("true cause")
asked = [name for name in dir(handler) if name.startswith("is_")]
assert len(asked) > 8, asked
print([name for name in asked if getattr(handler, name)(error)])
"""


def test_every_question_whether_an_error_is_the_databases_is_answered_with_no():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=180, check=False)
    assert result.stdout.splitlines()[-1:] == ["[]"], result.stderr[-2000:]
