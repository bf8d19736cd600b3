"""What a client is told where a request failed behind the edge: whose fault it was, by a code, and never whose words.

An error of LiteLLM quotes whoever failed: a model server's whole answer, an address, the prompt. The client gets the
kind of the fault and the request's id; the log gets the true exceptions' names, and `/appliance/why` the rest.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from appliance.gateway.health import CLIENTS, Blame, blame, chain

log = logging.getLogger("appliance.request")
CLIENT_ERRORS = range(400, 500)
TIMED_OUT = 408  # how LiteLLM calls a silent model server; to a client it would say that the client was slow
UNAUTHORISED = 401  # the edge has let the client in: a model server does not know the gateway's key, and may quote it
UNKNOWN = 404  # the edge knows the group: a model server does not know the model, or what the request refers to
BUSY = 429
OURS = frozenset({TIMED_OUT, UNAUTHORISED, UNKNOWN, BUSY})  # statuses of LiteLLM's that are told in our words
LATEST_S = 3600  # a model server that asks for more patience than this is not quoted


@dataclass(frozen=True)
class Fault:
    """Why a request failed.

    Attributes:
        status: of HTTP.
        code: of the catalogue.
        message: for the client.
        blame: what the model server did, where that is known.
        retry_after_s: when the model server wants to be asked again, where it says so.
    """

    status: int
    code: str
    message: str
    blame: Blame | None = None
    retry_after_s: int | None = None


UNHANDLED = Fault(500, "GATEWAY_UNHANDLED", "the gateway failed on this request in a way nobody foresaw")
LOCKED_OUT = Fault(502, "GATEWAY_UPSTREAM", "the model server does not accept the key that the gateway has for it")
SILENT = Fault(504, "GATEWAY_UPSTREAM_TIMEOUT", "no model server of the group answered in time")
NOT_THERE = Fault(
    404, "GATEWAY_UPSTREAM_UNKNOWN", "no model server of the group has the model, or what the request refers to"
)
_UPSTREAM = {
    "unreachable": "no model server of the group can be reached",
    "untrusted": "the model server shows a certificate that the gateway does not trust",
    "no answer": "the model server broke the connection off",
    "server error": "the model server failed",
    None: "the request could not be put to the model server, or its answer could not be read",
}


def judge(error: BaseException, *, asked: bool) -> Fault | None:
    """Whose fault an exception is; None where it is the client's, whom LiteLLM tells well enough.

    Args:
        error: as LiteLLM reports it.
        asked: whether a deployment had been chosen, so that a model server may be to blame.
    """
    status = status_of(error)
    if asked and status in OURS - {TIMED_OUT}:
        return _refused(status, error)
    if status in CLIENT_ERRORS and status != TIMED_OUT:
        return None
    if not asked:
        return UNHANDLED
    what = blame(error)
    if what != "unreachable" and (status == TIMED_OUT or any(_is_timeout(each) for each in chain(error))):
        return SILENT
    return Fault(502, "GATEWAY_UPSTREAM", _UPSTREAM[what], what)


def status_of(error: BaseException) -> int | None:
    """The status that an exception carries, in LiteLLM's ways."""
    for name in ("status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            return int(value)
    return None


def _refused(status: int | None, error: BaseException) -> Fault | None:
    """A refusal that is not the client's doing; None where it is LiteLLM's own, who has nobody left to ask."""
    if status == UNAUTHORISED:
        return LOCKED_OUT
    if status == UNKNOWN:
        return NOT_THERE
    if not any(_is_busy(each) for each in chain(error)):
        return None
    message = "every model server of the group has as many requests as it takes"
    return Fault(BUSY, "GATEWAY_UPSTREAM_BUSY", message, "server error", retry_after_s(error))


def retry_after_s(error: BaseException) -> int | None:
    """Seconds until a model server wants to be asked again: 1 to an hour; None where it names no such time."""
    for each in chain(error):
        headers = getattr(getattr(each, "response", None), "headers", None) or {}
        text = str(headers.get("retry-after", "")).strip()
        try:
            left = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            continue
        if 0 < left <= LATEST_S:
            return math.ceil(left)
    return None


def record(error: BaseException | None, fault: Fault, *, request_id: str) -> None:
    """Name the true exceptions in the log: types, files and lines, no texts.

    Args:
        error: None where LiteLLM answered with an error that it told nobody of.
        fault: what its client is told.
        request_id: ours.
    """
    log.error(
        "request failed",
        extra={
            "code": fault.code,
            "request_id": request_id,
            "exceptions": [f"{type(each).__module__}.{type(each).__qualname__}" for each in _beneath(error)],
            "where": list(_places(error)),
        },
    )


def _beneath(error: BaseException | None) -> Iterator[BaseException]:
    return chain(error) if error is not None else iter(())


def _places(error: BaseException | None) -> Iterator[str]:
    for each in _beneath(error):
        for frame in traceback.extract_tb(each.__traceback__)[-1:]:
            yield f"{frame.filename}:{frame.lineno} {frame.name}"


def _is_busy(error: BaseException) -> bool:
    """Whether a model server said so."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status == BUSY and type(error).__module__.partition(".")[0] in CLIENTS


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__ in {"ReadTimeout", "APITimeoutError", "Timeout"}
