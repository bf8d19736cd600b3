"""Where the registry is and how it is reached, as the operator writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from appliance import documents
from appliance.errors import RegistryError
from appliance.files import read_regular
from appliance.registry.leases_redis import RedisSettings
from appliance.registry.postgres import PostgresSettings
from appliance.registry.tls import checked_pin

Pin = Annotated[str, AfterValidator(checked_pin)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DirectorySettings(_Settings):
    """A registry in a directory.

    Attributes:
        path: the directory.
    """

    home: Literal["directory"]
    path: Path


class FetchSlots(_Settings):
    """At most so many hosts fetch at once; a service that gives out the slots, and what happens without it.

    Attributes:
        count: K.
        postgres: advisory locks of this database, or
        redis: keys of this Redis, with a time to live and a fencing number.
        wait_s: for a slot; then go on without one.
        poll_s: between two tries, with jitter.
        jitter_s: a random wait of up to this where the service is dead; then go on.
    """

    count: Annotated[int, Field(ge=1, le=1000)] = 4
    postgres: PostgresSettings | None = None
    redis: RedisSettings | None = None
    wait_s: Seconds = 300.0
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 0.5
    jitter_s: Annotated[float, Field(ge=0, le=600)] = 5.0

    @property
    def answer_s(self) -> float:
        """Within which the service connects and answers a whole try, by its own bounds."""
        if self.postgres is not None:
            return self.postgres.connect_timeout_s + self.postgres.statement_timeout_s
        assert self.redis is not None  # noqa: S101 (one of the two is there)
        return 3 * self.redis.timeout_s

    @model_validator(mode="after")
    def _one_service(self) -> FetchSlots:
        if (self.postgres is None) == (self.redis is None):
            raise ValueError("give exactly one of postgres and redis")
        return self


class S3Settings(_Settings):
    """A registry in a bucket of MinIO or any S3 server, over TLS.

    Attributes:
        endpoint: `host:port`; always https.
        bucket: the bucket.
        prefix: a folder within it, or empty.
        region: named, so that it is never asked for.
        ca_file: the internal CA's certificates, PEM; nothing else is trusted.
        client_certificate, client_key: for mutual TLS, PEM.
        spki_pins: public keys the server may have, `sha256/...`; two during a rotation, none for any key of the CA.
        credentials_file: YAML with `access_key` and `secret_key`, readable by its owner only.
        connect_timeout_s: for the name, the connection and each step of the handshake.
        read_timeout_s: between two reads.
        deadline_s: for an operation as a whole, beside the time its size allows at `minimum_rate_bytes_s`.
        minimum_rate_bytes_s: an object may take `deadline_s + size / minimum_rate_bytes_s`.
        attempts: so often is a passing fault tried, within the deadline.
        breaker_threshold: failed operations in a row until the registry is left alone.
        breaker_pause_s: how long.
        slots: who may fetch at the same time, across hosts; without it every host at once.
    """

    home: Literal["s3"]
    endpoint: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{2,62}$")]
    prefix: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]*/)*$")] = ""
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "us-east-1"
    ca_file: Path
    client_certificate: Path | None = None
    client_key: Path | None = None
    spki_pins: Annotated[tuple[Pin, ...], Field(max_length=4)] = ()
    credentials_file: Path
    connect_timeout_s: Seconds = 1.0
    read_timeout_s: Seconds = 2.0
    deadline_s: Seconds = 20.0
    minimum_rate_bytes_s: Annotated[int, Field(gt=0)] = 1024 * 1024
    attempts: Annotated[int, Field(ge=1, le=10)] = 4
    breaker_threshold: Annotated[int, Field(ge=1)] = 3
    breaker_pause_s: Seconds = 15.0
    slots: FetchSlots | None = None


class Credentials(_Settings):
    """`credentials_file`: the key pair of this host's role."""

    access_key: Annotated[str, Field(min_length=1, max_length=128)]
    secret_key: Annotated[str, Field(min_length=1, max_length=256, repr=False)]


RegistrySettings = Annotated[DirectorySettings | S3Settings, Field(discriminator="home")]


class _File(_Settings):
    registry: RegistrySettings


def read_settings(path: Path) -> DirectorySettings | S3Settings:
    """Read a YAML file with one key, `registry`; relative paths in it count from its folder.

    Raises:
        DocumentError, FileError: as `documents` and `files` say.
    """
    data = read_regular(path, max_bytes=documents.MAX_BYTES)
    found = documents.validate(_File, documents.read_yaml(data, what=str(path)), what=str(path))
    return documents.paths_below(found, path.absolute().parent).registry


class _DatabaseFile(_Settings):
    postgres: PostgresSettings


def read_postgres(path: Path) -> PostgresSettings:
    """Read a YAML file with one key, `postgres`; relative paths in it count from its folder.

    Raises:
        DocumentError, FileError: as `documents` and `files` say.
    """
    data = read_regular(path, max_bytes=documents.MAX_BYTES)
    found = documents.validate(_DatabaseFile, documents.read_yaml(data, what=str(path)), what=str(path))
    return documents.paths_below(found, path.absolute().parent).postgres


def read_credentials(path: Path) -> Credentials:
    """Read a key pair that only its owner can read.

    Raises:
        RegistryError: REGISTRY_CREDENTIALS_OPEN.
        DocumentError, FileError: as `documents` and `files` say.
    """
    data = read_regular(path, max_bytes=64 * 1024)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise RegistryError(
            "REGISTRY_CREDENTIALS_OPEN",
            f"others than its owner can read {path}",
            path=str(path),
            mode=f"{mode:o}",
            remedy=f"chmod 600 {path}, then change the key: it may have been read.",
        )
    return documents.validate(Credentials, documents.read_yaml(data, what="credentials"), what="credentials")
