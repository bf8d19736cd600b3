"""A real PostgreSQL for tests: TLS 1.3 under a test authority, not as root, its own data directory."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.registry.postgres import PostgresSettings
from tests.support.ports import free_port
from tests.support.s3 import Identity
from tests.support.servers import (
    as_service,
    listens,
    running,
    service_directory,
    wait_until,
    write_for_service,
)

BINARIES = Path("/usr/lib/postgresql/15/bin")
_CONF = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
ssl = on
ssl_cert_file = '{d}/server.pem'
ssl_key_file = '{d}/server.key'
ssl_min_protocol_version = 'TLSv1.3'
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 200
shared_buffers = 16MB
"""


@dataclass(frozen=True)
class PostgresServer:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        password: of the user `appliance`, who owns the database `appliance`.
        ca_pem: what its certificate hangs on.
        pid: of the postmaster, for tests that kill it.
    """

    port: int
    password: str
    ca_pem: bytes
    pid: int

    def settings(self, directory: Path, **more: object) -> PostgresSettings:
        """Settings that reach it; CA and password are written to `directory`."""
        ca, password = directory / "postgres-ca.pem", directory / "postgres-password"
        ca.write_bytes(self.ca_pem)
        password.write_text(self.password)
        password.chmod(0o600)
        patient = {"connect_timeout_s": 60, "statement_timeout_s": 120}
        fixed = {"host": "127.0.0.1", "port": self.port, "ca_file": ca, "password_file": password, **patient}
        return PostgresSettings.model_validate({**fixed, **more})


@contextlib.contextmanager
def postgres_server(identity: Identity) -> Iterator[PostgresServer]:
    """PostgreSQL 15 with one database.

    Args:
        identity: certificate for 127.0.0.1, its key and CA.
    """
    password = "postgres-secret"
    with service_directory() as directory:
        write_for_service(directory / "password", password)
        data, port = directory / "data", free_port()
        arguments = [
            "-D",
            data,
            "-U",
            "appliance",
            "--auth=scram-sha-256",
            f"--pwfile={directory}/password",
            "--no-sync",
        ]
        command = [str(part) for part in (BINARIES / "initdb", *arguments, "--locale=C.UTF-8", "-E", "UTF8")]
        made = subprocess.run(command, cwd=directory, capture_output=True, check=False, **as_service(command[0]))  # type: ignore[call-overload]
        assert made.returncode == 0, made.stderr.decode()
        write_for_service(directory / "server.pem", identity.certificate_pem)
        write_for_service(directory / "server.key", identity.key_pem)
        write_for_service(data / "postgresql.conf", _CONF.format(port=port, d=directory))
        write_for_service(data / "pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n")
        log = directory / "postgres.log"
        with running([BINARIES / "postgres", "-D", data], directory=directory, log=log.name) as process:
            wait_until(lambda: listens(port), what="postgres", process=process, log=log)
            server = PostgresServer(port, password, identity.ca_pem, process.pid)
            _make_database(server, directory)
            yield server


def _make_database(server: PostgresServer, directory: Path) -> None:
    import psycopg

    from appliance.registry.postgres import parameters

    settings = server.settings(directory, database="postgres")

    def made() -> bool:  # it listens before it lets anybody in
        try:
            with psycopg.connect(**parameters(settings), autocommit=True) as db:
                db.execute("CREATE DATABASE appliance")
        except psycopg.OperationalError:
            return False
        return True

    wait_until(made, what="postgres, for a first connection", log=directory / "postgres.log")
