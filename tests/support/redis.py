"""A real Redis for tests: TLS 1.3 under a test authority, an ACL user, no persistence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.registry.leases_redis import RedisSettings
from tests.support.ports import free_port
from tests.support.s3 import Identity
from tests.support.servers import listens, running, service_directory, wait_until, write_for_service

_CONF = """
port 0
bind 127.0.0.1
tls-port {port}
tls-cert-file {d}/server.pem
tls-key-file {d}/server.key
tls-ca-cert-file {d}/ca.pem
tls-auth-clients no
tls-protocols TLSv1.3
save ""
appendonly no
dir {d}
user default off
user appliance on >{password} ~appliance:fetch* +@all -@dangerous
"""


@dataclass(frozen=True)
class RedisServer:
    """A running server."""

    port: int
    password: str
    ca_pem: bytes

    def settings(self, directory: Path, **more: object) -> RedisSettings:
        """Settings that reach it; CA and password are written to `directory`."""
        ca, password = directory / "redis-ca.pem", directory / "redis-password"
        ca.write_bytes(self.ca_pem)
        password.write_text(self.password)
        password.chmod(0o600)
        files = {"ca_file": ca, "password_file": password}
        fixed = {"host": "127.0.0.1", "port": self.port, "user": "appliance", **files, "timeout_s": 60}
        return RedisSettings.model_validate({**fixed, **more})


@contextlib.contextmanager
def redis_server(identity: Identity) -> Iterator[RedisServer]:
    """Redis 7.

    Args:
        identity: certificate for 127.0.0.1, its key and CA.
    """
    password = "redis-secret"
    with service_directory() as directory:
        port = free_port()
        write_for_service(directory / "server.pem", identity.certificate_pem)
        write_for_service(directory / "server.key", identity.key_pem)
        write_for_service(directory / "ca.pem", identity.ca_pem)
        conf = write_for_service(directory / "redis.conf", _CONF.format(port=port, d=directory, password=password))
        with running(["redis-server", conf], directory=directory, log="redis.log") as process:
            log = directory / "redis.log"
            wait_until(lambda: listens(port), what="redis", process=process, log=log)
            yield RedisServer(port, password, identity.ca_pem)
