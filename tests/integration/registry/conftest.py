"""The homes a registry can have, each real."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.registry.contract import Store
from appliance.registry.directory import DirectoryStore
from appliance.registry.homes import open_store
from appliance.registry.settings import S3Settings
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.redis import RedisServer, redis_server
from tests.support.rgw import rgw_server
from tests.support.s3 import S3Server, swift_server
from tests.support.small_authority import SmallAuthority

_numbers = itertools.count()


@pytest.fixture(scope="session")
def tls_authority() -> SmallAuthority:
    return SmallAuthority()


@pytest.fixture(scope="session")
def swift(tls_authority: SmallAuthority) -> Iterator[S3Server]:
    with swift_server(tls_authority.issue("127.0.0.1")) as server:
        yield server


@pytest.fixture(scope="session")
def rgw(tls_authority: SmallAuthority) -> Iterator[S3Server]:
    with rgw_server(tls_authority.issue("127.0.0.1")) as server:
        yield server


@pytest.fixture(scope="module")
def postgres(tls_authority: SmallAuthority) -> Iterator[PostgresServer]:
    with postgres_server(tls_authority.issue("127.0.0.1")) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tls_authority: SmallAuthority) -> Iterator[RedisServer]:
    with redis_server(tls_authority.issue("127.0.0.1")) as server:
        yield server


@pytest.fixture
def bucket_settings(tmp_path: Path) -> Callable[..., S3Settings]:
    """Settings of a fresh bucket on a server."""

    def fresh(server: S3Server, *, object_lock: bool = False, **more: object) -> S3Settings:
        bucket = f"registry-{next(_numbers)}"
        server.make_bucket(tmp_path, bucket, object_lock=object_lock)
        patient = {"prefix": "zone/", "read_timeout_s": 120, "connect_timeout_s": 60, "deadline_s": 240, **more}
        return S3Settings.model_validate(server.settings(tmp_path, bucket=bucket, **patient))

    return fresh


@pytest.fixture(params=["directory", "swift", pytest.param("rgw", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path, bucket_settings: Callable[..., S3Settings]) -> Store:
    """An empty home of each kind."""
    if request.param == "directory":
        (tmp_path / "registry").mkdir()
        return DirectoryStore(tmp_path / "registry")
    return open_store(bucket_settings(request.getfixturevalue(request.param)))
