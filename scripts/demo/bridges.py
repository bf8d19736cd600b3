"""Real model servers for the sealed room, without opening it.

A namespace has no route to the host's servers, and shall have none. A socket in the file system reaches across, so each
server named by `DEMO_SMALL_URL` or `DEMO_LARGE_URL` gets two halves: outside, a listener on a Unix socket that connects
to the server; inside, a loopback port that connects to the Unix socket. Nothing else crosses.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

VARIABLES = {"small": "DEMO_SMALL_URL", "large": "DEMO_LARGE_URL"}


@contextlib.contextmanager
def bridged_upstreams(folder: Path, environment: Mapping[str, str]) -> Iterator[dict[str, dict[str, str]]]:
    """Open the outer half for every server that is named.

    Yields:
        Deployment -> `socket` (path of the Unix socket) and `path` (of the base URL), for the named ones only.
    """
    with contextlib.ExitStack() as stack:
        bridges = {}
        for name, variable in VARIABLES.items():
            if not (url := environment.get(variable)):
                continue
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise SystemExit(
                    f"{variable} must be an http(s) base URL such as http://127.0.0.1:8000/v1, not {url!r}"
                )
            path = folder / f"{name}.sock"
            path.unlink(missing_ok=True)
            outer = socket.socket(socket.AF_UNIX)
            outer.bind(str(path))
            stack.callback(path.unlink, missing_ok=True)
            stack.enter_context(_relay(outer, _connector(parts.scheme, parts.hostname, parts.port)))
            bridges[name] = {"socket": str(path), "path": parts.path.rstrip("/")}
        yield bridges


@contextlib.contextmanager
def inner_half(unix_path: str) -> Iterator[int]:
    """Listen on a loopback port and pass everything to the Unix socket; yields the port."""
    inner = socket.create_server(("127.0.0.1", 0))

    def connect() -> socket.socket:
        target = socket.socket(socket.AF_UNIX)
        target.connect(unix_path)
        return target

    port = inner.getsockname()[1]
    with _relay(inner, connect):
        yield port


def _connector(scheme: str, host: str, port: int | None) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        plain = socket.create_connection((host, port or (443 if scheme == "https" else 80)), timeout=10)
        plain.settimeout(None)
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain

    return connect


@contextlib.contextmanager
def _relay(listener: socket.socket, connect: Callable[[], socket.socket]) -> Iterator[None]:
    listener.listen(64)

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the demo is over
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_serve, args=(client, connect), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(client: socket.socket, connect: Callable[[], socket.socket]) -> None:
    with client:
        try:
            target = connect()
        except OSError:
            return  # the client sees a closed connection, as it would from a server that died
        with target:
            answers = threading.Thread(target=_pump, args=(target, client), daemon=True)
            answers.start()
            _pump(client, target)
            answers.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
