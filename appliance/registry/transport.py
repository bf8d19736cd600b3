"""HTTPS as the registry client needs it: bounded in time and bytes, to one host, without surprises.

The read timeout of a socket never fires on a server that drips one byte a second; an absolute deadline does. Each
operation runs inside a `Deadline`, whose timer shuts the connection's socket down from outside.
"""

from __future__ import annotations

import contextvars
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from appliance.errors import RegistryError
from appliance.registry.tls import RevocationLists, check_pin, check_revoked, no_revocations

MAX_DOCUMENT_BYTES = 8 * 1024 * 1024  # a listing or an error document
MAX_ADDRESSES = 4  # of one host name


class Deadline:
    """An absolute bound on one operation, whatever the server does.

    Args:
        seconds: from now on.

    Attributes:
        headers: conditions to add to the attempt's requests (S3 need not have them signed).
        answer: the headers of the last answer.
        unchanged: whether that was 304.
        expired: whether the time is up, and with it everything that failed since.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.headers: dict[str, str] = {}
        self.answer: Mapping[str, str] = {}
        self.unchanged = False
        self._ends = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._token: contextvars.Token[Deadline | None] | None = None
        self.expired = False

    def __enter__(self) -> Self:
        self._timer.start()
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._token is not None:
            _current.reset(self._token)
        self._watch(None)

    def begin(self) -> None:
        """Start an attempt of the operation: what the one before asked and heard is forgotten."""
        self.headers.clear()
        self.answer = {}
        self.unchanged = False

    @property
    def left(self) -> float:
        """Seconds that remain, never below zero."""
        return max(0.0, self._ends - time.monotonic())

    def watch(self, connection: socket.socket) -> None:
        """Guard this connection from now on instead of any earlier one.

        A duplicate descriptor is kept: `shutdown` acts on the connection under every descriptor, and a duplicate
        stays ours when the connection's own is wrapped, detached or closed and its number given to another file.
        """
        self._watch(connection.dup() if not isinstance(connection, ssl.SSLSocket) else _duplicate(connection))

    def _watch(self, duplicate: socket.socket | None) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = duplicate
            expired = self.expired
        if expired:
            self._expire()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # the peer was faster


def _duplicate(connection: ssl.SSLSocket) -> socket.socket:
    return socket.socket(connection.family, connection.type, connection.proto, fileno=socket.dup(connection.fileno()))


_current: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("registry_deadline", default=None)


class _Connection(HTTPSConnection):
    """One connection: resolved and connected in bounded time, pinned before the first byte of a request."""

    pins: frozenset[str] = frozenset()
    revocations: RevocationLists = staticmethod(no_revocations)

    def connect(self) -> None:
        super().connect()
        certificate = self.sock.getpeercert(binary_form=True) if isinstance(self.sock, ssl.SSLSocket) else None
        try:
            check_pin(certificate or b"", self.pins)
            check_revoked(certificate or b"", self.revocations)
        except BaseException:
            self.close()
            raise

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; a connection that is used again comes under the new operation's deadline."""
        deadline = _current.get()
        if deadline is not None and self.sock is not None:
            deadline.watch(self.sock)
        super().request(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        deadline = _current.get()
        seconds = float(self.timeout) if isinstance(self.timeout, int | float) else 5.0
        addresses = _resolve(self.host, self.port or 443, seconds, self)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(seconds)
                if deadline is not None:
                    deadline.watch(connection)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect(address)
                return connection
            except OSError as error:
                connection.close()
                if number + 1 < len(addresses) and not (deadline is not None and deadline.expired):
                    continue
                if isinstance(error, TimeoutError):
                    raise ConnectTimeoutError(self, f"no connection to {self.host} within {seconds} s") from error
                raise NewConnectionError(self, f"no connection to {self.host}: {error.strerror}") from error
        raise NewConnectionError(self, f"{self.host} has no address")


def _resolve(host: str, port: int, seconds: float, connection: HTTPSConnection) -> list[Any]:
    """Look a name up; the resolver cannot be interrupted, so a thread that may be left behind asks it."""
    answer: list[Any] = []
    failure: list[OSError] = []

    def ask() -> None:
        try:
            answer.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_ADDRESSES])
        except OSError as error:
            failure.append(error)

    worker = threading.Thread(target=ask, daemon=True, name="registry-resolver")
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        raise ConnectTimeoutError(connection, f"the name {host} was not resolved within {seconds} s")
    if failure:
        if isinstance(failure[0], socket.gaierror):
            raise NameResolutionError(host, connection, failure[0])
        raise NewConnectionError(connection, f"no address for {host}: {failure[0]}")
    return answer


class HttpsPool(urllib3.PoolManager):
    """A pool that speaks https only, follows no redirect, repeats nothing and reads nothing without bound.

    Args:
        context: from `tls.client_context`.
        pins: public keys that the server may have; empty for any key of the authority.
        revocations: of its authority; who is named there is not asked, once a new connection is made.
        connect_timeout_s: for resolving, for connecting and for each step of the TLS handshake.
        read_timeout_s: between two reads; the whole is bounded by the `Deadline` around it.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        pins: frozenset[str],
        connect_timeout_s: float,
        read_timeout_s: float,
        revocations: RevocationLists = no_revocations,
    ) -> None:
        super().__init__(
            num_pools=1,
            maxsize=4,
            ssl_context=context,
            timeout=urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s),
            retries=False,
        )
        connection = type("PinnedConnection", (_Connection,), {"pins": pins, "revocations": staticmethod(revocations)})
        pool = type("PinnedPool", (HTTPSConnectionPool,), {"ConnectionCls": connection})
        self.pool_classes_by_scheme = {"https": pool}

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = False, preload_content: bool = True, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        """Send one request; `redirect` is not heeded, nothing is ever followed.

        Raises:
            RegistryError: REGISTRY_REDIRECT, REGISTRY_ANSWER (encoded or endless answers).
            urllib3.exceptions.HTTPError: as urllib3 does; `s3.py` gives them their codes.
        """
        del redirect
        deadline = _current.get()
        if deadline is not None:
            for name, value in deadline.headers.items():
                options["headers"][name] = value
        options["headers"]["Accept-Encoding"] = "identity"
        response = super().urlopen(method, url, redirect=False, preload_content=False, retries=False, **options)
        if deadline is not None:
            deadline.answer = response.headers
            deadline.unchanged = response.status == 304
        refused = _refusal(response)
        if refused is not None:
            response.close()
            raise refused
        if not preload_content and response.status in {200, 206}:
            return response
        return _read_document(response, method)


def _refusal(response: urllib3.BaseHTTPResponse) -> RegistryError | None:
    if 300 <= response.status < 400 and response.status != 304:
        return RegistryError(
            "REGISTRY_REDIRECT",
            "the registry sent us to another address; redirects are never followed",
            status=response.status,
            location=response.headers.get("location", "")[:200],
        )
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return RegistryError(
            "REGISTRY_ANSWER", "the answer is compressed, which was not asked for", status=response.status
        )
    return None


def _read_document(response: urllib3.BaseHTTPResponse, method: str) -> urllib3.BaseHTTPResponse:
    """Read a small answer whole, with a bound, and hand it on as urllib3 would have."""
    try:
        data = response.read(MAX_DOCUMENT_BYTES + 1)
    finally:
        if response.length_remaining == 0:
            response.release_conn()
        else:
            response.close()
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RegistryError("REGISTRY_ANSWER", "the answer does not end", max_bytes=MAX_DOCUMENT_BYTES)
    return urllib3.HTTPResponse(
        body=data, headers=response.headers, status=response.status, reason=response.reason, request_method=method
    )
