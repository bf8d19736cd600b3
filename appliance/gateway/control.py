"""The gateway's control socket: status and reload for whoever may open it, without key, TLS or HTTP.

One Unix socket a worker below `state_dir/run`, readable by the appliance's user only. A request is one JSON line
`{"verb": ...}`, the answer one JSON line. Workers ask each other over it, so that any of them can answer for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.errors import GatewayError

MAX_REQUEST = 4096  # bytes
MAX_ANSWER = 64 * 1024 * 1024  # bytes
Verb = Callable[[Mapping[str, Any]], Awaitable[Any]]


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for a socket that fits into the 108 bytes of `sun_path`, however deep the folder lies."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


class ControlServer:
    """Answers verbs on a Unix socket.

    Args:
        path: the socket.
        verbs: name -> handler.
    """

    def __init__(self, path: Path, verbs: Mapping[str, Verb]) -> None:
        self._path, self._verbs = path, verbs
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short(self._path) as name:
            listener.bind(name)
        self._path.chmod(0o600)
        listener.listen(16)
        self._server = await asyncio.start_unix_server(self._answer, sock=listener, limit=MAX_REQUEST)

    def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = json.loads(await reader.readline())
                answer = await self._verbs[request["verb"]](request)
        except Exception as error:  # noqa: BLE001 (whatever it was belongs to the asker)
            answer = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(OSError):
            writer.write(json.dumps(answer, default=str).encode() + b"\n")
            await writer.drain()
            writer.close()


def ask(path: Path, verb: str, *, timeout_s: float = 5.0, **arguments: Any) -> Any:
    """Ask one worker.

    Raises:
        GatewayError: GATEWAY_NOT_RUNNING where nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _short(path) as name:
            connection.settimeout(timeout_s)
            connection.connect(name)
            connection.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            answer = bytearray()
            while chunk := connection.recv(1 << 16):
                answer += chunk
                if len(answer) > MAX_ANSWER:
                    raise OSError("answer too long")
        return json.loads(answer)
    except (OSError, ValueError) as error:
        raise GatewayError("GATEWAY_NOT_RUNNING", f"no answer on {path}: {error}", socket=str(path)) from None


def sockets(run_dir: Path) -> list[Path]:
    """The workers' sockets."""
    return sorted(run_dir.glob("worker-*.sock"))


def ask_all(run_dir: Path, verb: str, **arguments: Any) -> list[Any]:
    """Ask every worker that answers.

    Raises:
        GatewayError: GATEWAY_NOT_RUNNING where none does.
    """
    answers = ask_others(run_dir, None, verb, **arguments)
    if not answers:
        raise GatewayError("GATEWAY_NOT_RUNNING", f"no gateway answers below {run_dir}", run_dir=str(run_dir))
    return answers


def ask_others(run_dir: Path, own: Path | None, verb: str, **arguments: Any) -> list[Any]:
    """Ask every worker but the one with this socket; none may answer."""
    answers = []
    for path in sockets(run_dir):
        if path != own:
            with contextlib.suppress(GatewayError):
                answers.append(ask(path, verb, **arguments))
    return answers


def socket_of(run_dir: Path, number: int) -> Path:
    """Where a worker listens."""
    return run_dir / f"worker-{number}.sock"
