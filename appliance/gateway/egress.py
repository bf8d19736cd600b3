"""No packet leaves but to a configured destination: seen, counted and refused inside this process.

Two nets, because neither sees everything: an audit hook on Python's sockets, and an event loop whose own connections
(libuv opens them without Python's sockets) pass the same guard. The kernel's rules (`kernel`) stand behind both.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

RESOLVE_AGAIN_S = 10.0
MAX_REMEMBERED = 100  # destinations
DEFAULT_PORTS = {"http": 80, "https": 443, "grpc": 4317, "redis": 6379, "rediss": 6379, "postgresql": 5432}
_ADDRESS_FAMILIES = {socket.AF_INET, socket.AF_INET6}
_CONNECTING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})  # (socket, address)
_LOOKUPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})  # (host, ...)
_WATCHED = _CONNECTING | _LOOKUPS

Destination = tuple[str, int]


class EgressRefused(PermissionError):  # noqa: N818 (a verdict)
    """A connection to a destination that nobody configured."""


class EgressGuard:
    """Knows the destinations; refuses all others and counts.

    Args:
        allowed: host names or addresses with ports. Loopback is always allowed.
        enforce: refuse, or only count.
        resolve: host -> addresses.
    """

    def __init__(
        self,
        allowed: Iterable[Destination],
        *,
        enforce: bool = True,
        resolve: Callable[[str], set[str]] | None = None,
    ) -> None:
        self._enforce = enforce
        self._resolve = resolve or _resolve
        self.allow(allowed)
        self._refused: dict[str, int] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._own = threading.local()

    def allow(self, allowed: Iterable[Destination]) -> None:
        """Exchange the destinations; connections that stand are not touched."""
        self.allowed = frozenset(allowed)
        self._names = {host.lower() for host, _ in self.allowed}
        self._addresses: dict[str, set[str]] = {}
        self._resolved_at = -RESOLVE_AGAIN_S

    def check(self, host: str, port: int) -> None:
        """Let a connection pass or refuse it.

        Raises:
            EgressRefused: for an unknown destination, where the guard enforces.
        """
        if not self._known(host, port):
            self._refuse(f"{host}:{port}")

    def check_name(self, host: str) -> None:
        """Let a name be looked up or refuse it: DNS carries data out, too.

        Raises:
            EgressRefused: for a name that is no destination.
        """
        if not (_is_local(host) or host.lower() in self._names or is_address(host)):
            self._refuse(f"lookup of {host}")

    def install(self) -> None:
        """Watch Python's sockets from now on. Cannot be undone within the process."""
        judge = self._judge

        # Python raises a thousand other events while it answers one request (`id()` is one), and looks for an attribute
        # of the hook each time: on a bound method that takes 2 us, on a plain function 0.1
        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in _WATCHED:
                judge(event, arguments)

        sys.addaudithook(hook)

    @property
    def refused(self) -> int:
        """How often something was refused."""
        return self._count

    def describe(self) -> dict[str, Any]:
        """For status."""
        with self._lock:
            return {
                "enforced": self._enforce,
                "allowed": sorted(f"{host}:{port}" for host, port in self.allowed),
                "refused": self._count,
                "destinations": dict(self._refused),
            }

    @contextlib.contextmanager
    def uncounted(self) -> Any:
        """For the self-test: refusals within are not counted (in this thread)."""
        self._own.quiet = True
        try:
            yield
        finally:
            self._own.quiet = False

    def _known(self, host: str, port: int) -> bool:
        if _is_local(host) or (host, port) in self.allowed or (host.lower(), port) in self.allowed:
            return True
        if not is_address(host) or port not in {p for _, p in self.allowed}:
            return False
        if self._by_address(host, port):
            return True
        with self._lock:
            stale = time.monotonic() - self._resolved_at >= RESOLVE_AGAIN_S
            self._resolved_at = time.monotonic() if stale else self._resolved_at
        if stale:
            self._addresses = {name: self._resolve(name) for name in self._names if not is_address(name)}
        return self._by_address(host, port)

    def _by_address(self, address: str, port: int) -> bool:
        return any(address in found and (name, port) in self.allowed for name, found in self._addresses.items())

    def _refuse(self, destination: str) -> None:
        if not getattr(self._own, "quiet", False):
            with self._lock:
                self._count += 1
                if destination in self._refused or len(self._refused) < MAX_REMEMBERED:
                    self._refused[destination] = self._refused.get(destination, 0) + 1
        if self._enforce:
            raise EgressRefused(f"{destination} is not a configured destination")

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CONNECTING:
            connection, address = arguments[0], arguments[1]
            if getattr(connection, "family", None) in _ADDRESS_FAMILIES and isinstance(address, tuple):
                self.check(str(address[0]), int(address[1]))
        elif isinstance(arguments[0], str | bytes):
            host = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode("ascii", "replace")
            if host:
                self.check_name(host)


def guarded_loop(guard: EgressGuard) -> Callable[[], Any]:
    """A factory of event loops whose own connections pass the guard."""
    import uvloop

    class GuardedLoop(uvloop.Loop):
        async def create_connection(
            self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
        ) -> Any:
            if host is not None:
                guard.check(str(host), int(port))
            return await super().create_connection(protocol_factory, host, port, **options)

        async def create_datagram_endpoint(self, *arguments: Any, **options: Any) -> Any:
            remote = options.get("remote_addr")
            if remote is not None:
                guard.check(str(remote[0]), int(remote[1]))
            return await super().create_datagram_endpoint(*arguments, **options)

        async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
            if host:
                guard.check_name(host if isinstance(host, str) else host.decode("ascii", "replace"))
            return await super().getaddrinfo(host, port, **options)

    return GuardedLoop


def destinations(document: Any) -> set[Destination]:
    """Every destination a configuration names: URLs anywhere in it, and mappings with `host` and `port`."""
    found: set[Destination] = set()
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            host, port = value.get("host"), value.get("port")
            if isinstance(host, str) and str(port).isdecimal():
                found.add((host.lower(), int(str(port))))
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
        elif isinstance(value, str) and "://" in value:
            found |= _of_url(value)
    return found


def destination(text: str) -> Destination:
    """`host:port` (an IPv6 address in brackets).

    Raises:
        ValueError: where it is something else.
    """
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"{text!r} is not host:port")
    return parts.hostname, parts.port


def _of_url(text: str) -> set[Destination]:
    try:
        parts = urlsplit(text)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme.lower())
    except ValueError:
        return set()
    return {(parts.hostname, port)} if parts.hostname and port else set()


def is_address(host: str) -> bool:
    """Whether a host is given by its number."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _resolve(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()
