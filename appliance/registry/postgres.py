"""A connection to the zone's PostgreSQL: TLS of our own authority, bounded, and nothing from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RegistryError
from appliance.files import read_regular

if TYPE_CHECKING:
    import psycopg


_NO_TABLES = {"42P01", "3F000"}  # undefined table, undefined schema
_MIGRATE = "Make the tables with `appliance config migrate --database FILE`, as the database's owner."
_ABSENT = "/nonexistent"  # libpq then looks into nobody's home folder


class PostgresSettings(BaseModel):
    """Where the database is.

    Attributes:
        host: a name or address that its certificate has.
        port: its port.
        database, user: of the appliance's own schema.
        password_file: one line, readable by its owner only; none where the client certificate is enough.
        ca_file: the internal CA's certificates, PEM; nothing else is trusted.
        client_certificate, client_key: for mutual TLS, PEM.
        connect_timeout_s: whole seconds, at least 2 (libpq's own floor).
        statement_timeout_s: for each statement.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    database: Annotated[str, Field(min_length=1, max_length=63)] = "appliance"
    user: Annotated[str, Field(min_length=1, max_length=63)] = "appliance"
    password_file: Path | None = None
    ca_file: Path
    client_certificate: Path | None = None
    client_key: Path | None = None
    connect_timeout_s: Annotated[int, Field(ge=2, le=60)] = 2
    statement_timeout_s: Annotated[float, Field(gt=0, le=600)] = 5.0


def parameters(settings: PostgresSettings) -> dict[str, Any]:
    """The parameters for libpq: every one that the environment could set is set here.

    Raises:
        RegistryError: REGISTRY_CREDENTIALS_OPEN.
        FileError: the password file.
    """
    mutual = settings.client_certificate is not None and settings.client_key is not None
    return {
        "host": settings.host,
        "hostaddr": "",
        "port": settings.port,
        "dbname": settings.database,
        "user": settings.user,
        "password": read_password(settings.password_file),
        "passfile": _ABSENT,
        "sslmode": "verify-full",
        "sslrootcert": str(settings.ca_file),
        "ssl_min_protocol_version": "TLSv1.3",
        "sslcert": str(settings.client_certificate) if mutual else _ABSENT,
        "sslkey": str(settings.client_key) if mutual else _ABSENT,
        "sslcrl": "",
        "gssencmode": "disable",
        "target_session_attrs": "any",
        "connect_timeout": settings.connect_timeout_s,
        "tcp_user_timeout": int(settings.statement_timeout_s * 1000),
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "application_name": "appliance",
        "options": f"-c statement_timeout={int(settings.statement_timeout_s * 1000)} -c search_path=appliance",
    }


def read_password(path: Path | None) -> str:
    """A password's file: one line, its owner's alone; empty for none.

    Raises:
        RegistryError: REGISTRY_CREDENTIALS_OPEN.
        FileError: as `read_regular`.
    """
    if path is None:
        return ""
    data = read_regular(path, max_bytes=4096)
    if path.stat().st_mode & 0o077:
        raise RegistryError(
            "REGISTRY_CREDENTIALS_OPEN",
            f"others than its owner can read {path}",
            path=str(path),
            remedy=f"chmod 600 {path}",
        )
    return data.decode("utf-8").strip("\n")


@contextmanager
def connected(settings: PostgresSettings, *, autocommit: bool = False) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Connect; commit at the end, roll back on an error.

    Raises:
        RegistryError: REGISTRY_DATABASE for every refusal of the database or the way to it.
    """
    import psycopg

    try:
        with psycopg.connect(**parameters(settings), autocommit=autocommit) as connection:
            yield connection
    except psycopg.Error as error:
        raise RegistryError(
            "REGISTRY_DATABASE",
            " ".join(str(error).split())[:300] or type(error).__name__,
            remedy=_MIGRATE if error.sqlstate in _NO_TABLES else None,
            host=settings.host,
            port=settings.port,
            database=settings.database,
            sqlstate=error.sqlstate,
        ) from error
