"""What went wrong on the way to the registry, as a code: the transport's and the server's words in one vocabulary."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import exceptions as http

from appliance.errors import RegistryError
from appliance.registry.transport import Deadline

# worth another attempt: the next one may find the server well
PASSING = frozenset({"REGISTRY_UNREACHABLE", "REGISTRY_TIMEOUT", "REGISTRY_INTERRUPTED", "REGISTRY_BUSY"})
# the registry, not the request, is at fault: what the breaker counts
UNAVAILABLE = PASSING | {"REGISTRY_DEADLINE"}

_S3_CODES = {
    "NoSuchKey": "REGISTRY_NOT_FOUND",
    "NoSuchBucket": "REGISTRY_NO_BUCKET",
    "AccessDenied": "REGISTRY_DENIED",
    "InvalidAccessKeyId": "REGISTRY_DENIED",
    "SignatureDoesNotMatch": "REGISTRY_DENIED",
    "RequestTimeTooSkewed": "REGISTRY_CLOCK_SKEW",
    "PreconditionFailed": "REGISTRY_EXISTS",
    "ObjectLocked": "REGISTRY_LOCKED",
    "SlowDown": "REGISTRY_BUSY",
    "ServiceUnavailable": "REGISTRY_BUSY",
    "InternalError": "REGISTRY_BUSY",
    "RequestTimeout": "REGISTRY_TIMEOUT",
    "OperationAborted": "REGISTRY_BUSY",
}


def translate(error: Exception, deadline: Deadline, *, where: str, key: str) -> RegistryError:
    """Give a fault its code.

    Args:
        error: what urllib3, minio or the operating system raised.
        deadline: the operation's; an expired one explains every fault that followed.
        where: the registry's address.
        key: the object asked for.
    """
    if isinstance(error, RegistryError):
        return error
    if deadline.expired:
        return RegistryError(
            "REGISTRY_DEADLINE",
            f"the registry did not finish within {deadline.seconds:g} s",
            registry=where,
            key=key,
            deadline_s=deadline.seconds,
        )
    if isinstance(error, MinioException):
        return _from_server(error, deadline, where=where, key=key)
    if isinstance(error, http.SSLError | ssl.SSLError):
        return _from_tls(error, where)
    code, cause = _from_network(error)
    return RegistryError(code, cause, registry=where, key=key)


def _from_network(error: Exception) -> tuple[str, str]:
    if isinstance(error, http.NewConnectionError | http.NameResolutionError | http.ConnectTimeoutError):
        return "REGISTRY_UNREACHABLE", _words(error)
    if isinstance(error, http.TimeoutError | TimeoutError):
        return "REGISTRY_TIMEOUT", "the registry fell silent"
    if isinstance(error, http.HTTPError | OSError):
        return "REGISTRY_INTERRUPTED", _words(error)
    return "REGISTRY_ANSWER", f"{type(error).__name__}: {_words(error)}"


def _from_tls(error: Exception, where: str) -> RegistryError:
    reason = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return RegistryError(
            "REGISTRY_CERTIFICATE", f"the registry's certificate was refused: {reason.verify_message}", registry=where
        )
    if isinstance(reason, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return RegistryError("REGISTRY_INTERRUPTED", "the connection ended during the TLS handshake", registry=where)
    return RegistryError("REGISTRY_TLS", f"TLS failed: {_words(reason)}", registry=where)


def _from_server(error: MinioException, deadline: Deadline, *, where: str, key: str) -> RegistryError:
    if isinstance(error, S3Error):
        code = _S3_CODES.get(error.code or "", "")
        if code == "REGISTRY_CLOCK_SKEW":
            return _skew(deadline, where)
        status = error.response.status
        if not code:
            code = "REGISTRY_BUSY" if status >= 500 or status == 429 else "REGISTRY_ANSWER"
        return RegistryError(
            code, f"{error.code}: {error.message or 'no message'}", registry=where, key=key, status=status
        )
    status = error.status_code if isinstance(error, ServerError) else int(getattr(error, "_code", 0))
    code = {404: "REGISTRY_NOT_FOUND", 403: "REGISTRY_DENIED", 401: "REGISTRY_DENIED", 412: "REGISTRY_EXISTS"}.get(
        status, "REGISTRY_BUSY" if status >= 500 or status == 429 else "REGISTRY_ANSWER"
    )
    kind = "an answer that is not S3's" if isinstance(error, InvalidResponseError) else "a bare status"
    return RegistryError(code, f"{kind} with HTTP status {status}", registry=where, key=key, status=status)


def _skew(deadline: Deadline, where: str) -> RegistryError:
    """Both clocks side by side, so that a person sees which one is wrong."""
    ours = datetime.now(UTC).replace(microsecond=0)
    theirs: datetime | None = None
    with contextlib.suppress(TypeError, ValueError):
        theirs = parsedate_to_datetime(deadline.answer.get("date", ""))
    return RegistryError(
        "REGISTRY_CLOCK_SKEW",
        "the registry's clock and ours differ by more than it accepts",
        registry=where,
        ours=ours.isoformat(),
        theirs=theirs.isoformat() if theirs else "unknown",
        difference_s=int((ours - theirs).total_seconds()) if theirs else None,
    )


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text.partition("): ")[2] or text or type(error).__name__  # urllib3 puts the connection's repr in front
