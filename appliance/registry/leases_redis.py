"""Slots in Redis: a key with a time to live for each, renewed while it is held, and a fencing number.

A Redis lock that outlives its time to live lets a second owner in. The fencing number makes that visible: a holder
whose number is below `newest_fence` may have been overtaken, and whoever keeps the greatest number seen can turn an
older holder away. A fetch needs neither: what it writes is known by its digest, whoever else writes it.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RegistryError
from appliance.registry.leases import Lease, as_lease_errors

if TYPE_CHECKING:
    import socket
    import ssl

    import redis

_PREFIX = "appliance:fetch"
# take: the key if it is free, and the next fencing number; renew and release: only for the owner's own key
_TAKE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end
return 0
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisSettings(BaseModel):
    """Where Redis is; TLS 1.3 of the internal CA alone.

    Attributes:
        host, port: its address, as its certificate has it.
        user, password_file: an ACL user that may use the keys `appliance:fetch*`.
        ca_file: the internal CA's certificates, PEM.
        ttl_s: a slot's time to live; renewed every third of it.
        timeout_s: for connecting and for each answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 6379
    user: str | None = None
    password_file: Path | None = None
    ca_file: Path
    ttl_s: Annotated[float, Field(ge=0.2, le=3600)] = 30.0
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0


class RedisSlots:
    """K slots in Redis.

    Args:
        settings: where it is.
        count: K.
    """

    def __init__(self, settings: RedisSettings, *, count: int) -> None:
        self._settings = settings
        self._count = count

    @cached_property
    def _client(self) -> redis.Redis:
        """Made when it is needed: what is wrong with its files is a dead service, and no reason to follow nothing."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from appliance.registry.postgres import read_password
        from appliance.registry.tls import client_context

        ca_file = self._settings.ca_file

        class Connection(redis.SSLConnection):
            """Its own context trusts the system's authorities and `SSL_CERT_FILE` beside ours, and writes keys down."""

            def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
                return client_context(ca_file).wrap_socket(sock, server_hostname=self.host)

        pool = redis.ConnectionPool(
            connection_class=Connection,
            host=self._settings.host,
            port=self._settings.port,
            username=self._settings.user,
            password=read_password(self._settings.password_file) or None,
            socket_connect_timeout=self._settings.timeout_s,
            socket_timeout=self._settings.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        return redis.Redis(connection_pool=pool)

    def try_hold(self, held: ExitStack) -> Lease | None:
        """Take a free slot; see `Slots.try_hold`."""
        owner, ttl_ms = secrets.token_hex(16), int(self._settings.ttl_s * 1000)
        for slot in range(self._count):
            key = f"{_PREFIX}:{slot}"
            fence = self._eval(_TAKE, [key, f"{_PREFIX}:fence"], owner, ttl_ms)
            if fence:
                stop = threading.Event()
                keeper = threading.Thread(target=self._keep, args=(key, owner, ttl_ms, stop), daemon=True)
                keeper.start()
                held.callback(self._release, key, owner, stop)
                return Lease(slot, fence)
        return None

    def newest_fence(self) -> int:
        """The greatest fencing number given: a holder with a smaller one for the same slot has been overtaken."""
        with as_lease_errors(self._settings.host):
            return int(self._client.get(f"{_PREFIX}:fence") or 0)

    def _eval(self, script: str, keys: list[str], *arguments: Any) -> int:
        with as_lease_errors(self._settings.host):
            return int(self._client.eval(script, len(keys), *keys, *arguments))

    def _keep(self, key: str, owner: str, ttl_ms: int, stop: threading.Event) -> None:
        """Renew until released; a lease that cannot be renewed is lost, which only means more load."""
        while not stop.wait(ttl_ms / 3000):
            try:
                if not self._eval(_RENEW, [key], owner, ttl_ms):
                    return
            except RegistryError:
                continue

    def _release(self, key: str, owner: str, stop: threading.Event) -> None:
        stop.set()
        try:
            self._eval(_RELEASE, [key], owner)
        except RegistryError:
            return  # its time to live frees it
