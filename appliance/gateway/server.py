"""uvicorn with an honest end: readiness falls, the listener closes, streams finish; a second signal forces."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from appliance.errors import GatewayError
from appliance.gateway import garbage
from appliance.gateway.protocol import Protocol, unsent
from appliance.gateway.turns import Acceptor, Turns
from appliance.notify import handed_sockets, notify, watchdog_interval_s
from appliance.settings import Drain, Listen

log = logging.getLogger("appliance.server")
LAST_SECONDS = 10  # from the end of the streams to the end of the process
PATIENT, LOOK_S = 4, 0.05  # times as long while somebody may still ask; how often that is looked at
GOODBYE_S = 1.0  # TLS waits half a minute for the other side's goodbye; of who is idle, so long
FRESH_S = 1.0  # who connected just before the listener closed has so long to ask (or `drain.readiness_s`, if shorter)


def listen(settings: Listen) -> socket.socket:
    """Bind the listener before anything slow is imported, so that a taken port is refused at once.

    Where the service manager holds it (`appliance-gateway.socket`), it is taken over instead: connections that come
    while one gateway has gone and the next one boots wait in the kernel's queue and are answered.

    Raises:
        GatewayError: GATEWAY_PORT_IN_USE, GATEWAY_ADDRESS.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except socket.gaierror as error:
        raise GatewayError("GATEWAY_ADDRESS", f"{where}: {error.strerror}", address=where) from None
    for handed in handed_sockets():
        return _checked(handed, address, where)
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(settings.backlog)  # SO_REUSEADDR lets two bind; the second to listen is refused
    except OSError as error:
        listener.close()
        code = "GATEWAY_PORT_IN_USE" if error.errno == errno.EADDRINUSE else "GATEWAY_ADDRESS"
        raise GatewayError(code, f"{where}: {error.strerror}", address=where) from None
    return listener


def _checked(handed: socket.socket, address: tuple[Any, ...], where: str) -> socket.socket:
    """A socket of the service manager must be the one that was configured: TLS and locks were judged for that."""
    found = handed.getsockname()
    if handed.type != socket.SOCK_STREAM or found[:2] != address[:2]:
        handed.close()
        raise GatewayError(
            "GATEWAY_ADDRESS",
            f"the service manager listens on {found}, the configuration says {where}",
            address=where,
            remedy="Write the address of appliance.yaml into the socket unit: `scripts/install-units --apply`.",
        )
    return handed


def check_tls(settings: Listen) -> None:
    """Load certificate and key the way the server will.

    Raises:
        GatewayError: GATEWAY_TLS.
    """
    if settings.tls is None:
        return
    import ssl

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls.certificate, settings.tls.key, password=lambda: "")
        if settings.tls.client_ca is not None:
            context.load_verify_locations(cafile=settings.tls.client_ca)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise GatewayError(
            "GATEWAY_TLS", f"{error}", certificate=str(settings.tls.certificate), key=str(settings.tls.key)
        ) from None


def renew_certificate(config: uvicorn.Config, settings: Listen) -> None:
    """Show new connections the certificate that lies in the files now; running connections are not touched.

    A pair that does not fit together is refused before the live context is changed. A further client CA is added to
    those accepted; one that left the file is forgotten with the next start.

    Raises:
        GatewayError: GATEWAY_TLS; the certificate in use stays.
    """
    if settings.tls is None or config.ssl is None:
        return
    check_tls(settings)
    config.ssl.load_cert_chain(settings.tls.certificate, settings.tls.key, password=lambda: "")
    if settings.tls.client_ca is not None:
        config.ssl.load_verify_locations(cafile=settings.tls.client_ca)
    log.info("certificate renewed")


def configuration(application: Any, settings: Listen, drain: Drain) -> uvicorn.Config:
    """Uvicorn's configuration: TLS 1.2 and later, no access log (ours has the decisions), no server header."""
    import ssl

    tls: dict[str, Any] = {}
    if settings.tls is not None:
        tls = {
            "ssl_certfile": str(settings.tls.certificate),
            "ssl_keyfile": str(settings.tls.key),
            "ssl_keyfile_password": "",
            "ssl_version": ssl.PROTOCOL_TLS_SERVER,
        }
        if settings.tls.client_ca is not None:
            tls |= {"ssl_ca_certs": str(settings.tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return uvicorn.Config(
        application,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        backlog=settings.backlog,
        timeout_graceful_shutdown=drain.streams_s,
        **tls,
    )


class Server(uvicorn.Server):
    """A server that drains.

    Args:
        config: uvicorn's.
        drain: limits.
        loop_factory: makes the event loop.
        turns: how workers share one listener; None where there is one worker.
        number: of this worker.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain: Drain,
        *,
        loop_factory: Callable[[], Any],
        turns: Turns | None = None,
        number: int = 0,
    ) -> None:
        super().__init__(config)
        self._turns, self._number = turns, number
        self._acceptor: Acceptor | None = None
        self._loop_factory = loop_factory
        self._drain = drain
        self._close_at: float | None = None
        self._sign_interval_s = watchdog_interval_s()
        self._next_sign_at: float | None = None

    @property
    def draining(self) -> bool:
        """Whether a stop was asked for."""
        return self._close_at is not None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: readiness falls now, the listener closes after the pause. Second: stop at once."""
        del frame
        if self._close_at is not None:
            log.warning("second %s: running requests are cut", signal.Signals(sig).name)
            os._exit(0)  # whatever hangs, hangs no longer
        notify("STOPPING=1")
        self._close_at = time.monotonic() + self._drain.readiness_s
        log.info(
            "draining", extra={"signal": signal.Signals(sig).name, "listener_closes_in_s": self._drain.readiness_s}
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, but for who accepts: several workers take turns."""
        if self._turns is None or not sockets:
            await super().startup(sockets)
            return
        await super().startup(sockets=[])
        config = self.config
        self._acceptor = Acceptor(
            sockets[0],
            self._turns,
            self._number,
            protocol=lambda: config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            tls=config.ssl,
            connections=lambda: len(self.server_state.connections),
        )

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, from the event loop: a loop that hangs gives no sign of life."""
        self._give_sign()
        garbage.collect_if_due()
        if self._acceptor is not None:
            self._acceptor.count()
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
            # the limit holds even where a library does not let go of a cancelled request
            limit = threading.Timer(self._drain.streams_s + LAST_SECONDS, os._exit, (0,))
            limit.daemon = True
            limit.start()
        return await super().on_tick(counter)

    def _give_sign(self) -> None:
        now = time.monotonic()
        if self._next_sign_at is None:
            notify("READY=1")
        elif self._sign_interval_s is None or now < self._next_sign_at:
            return
        else:
            notify("WATCHDOG=1")
        self._next_sign_at = now + (self._sign_interval_s or 0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, hear out who had just connected, then end as uvicorn does.

        uvicorn closes a connection that does not ask at this moment, and does not know those still in the TLS
        handshake. On a busy machine a request waits longer in the kernel than anybody needs to ask, and whoever keeps a
        connection may be about to use it again: both get longer, as long as an idle connection is kept at any time.
        """
        for each in [*self.servers, *([self._acceptor] if self._acceptor else []), *(sockets or ())]:
            each.close()
        fresh_s = min(FRESH_S, self._drain.readiness_s)
        await asyncio.sleep(fresh_s)
        await _while(self._may_ask, PATIENT * fresh_s)
        hanging_up = asyncio.create_task(self._hang_up())
        try:
            await super().shutdown(sockets)
        finally:
            hanging_up.cancel()

    async def _hang_up(self) -> None:
        """Let go, again and again, of who was answered, has got everything, and does not say goodbye."""
        while True:
            leaving = {each for each in self._without_request() if each.transport.is_closing()}
            await asyncio.sleep(GOODBYE_S)
            for each in leaving & self._without_request():
                if not unsent(each.transport):
                    each.transport.abort()

    def _without_request(self) -> set[Any]:
        """Connections that have not asked, or were answered before the drain began, and so not told to close."""
        cycles = ((each, getattr(each, "cycle", None)) for each in self.server_state.connections)
        return {each for each, cycle in cycles if cycle is None or cycle.response_complete}

    def _may_ask(self) -> set[Any]:
        """Those of them that are not closing already."""
        return {each for each in self._without_request() if not each.transport.is_closing()}

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped."""
        with garbage.by_hand(), asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self.serve(sockets=sockets))


async def _while(condition: Callable[[], object], seconds: float) -> None:
    """Wait while something holds, at most so long."""
    for _ in range(round(seconds / LOOK_S)):
        if not condition():
            return
        await asyncio.sleep(LOOK_S)
