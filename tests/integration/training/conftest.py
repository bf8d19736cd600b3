"""Certificates and servers of the training floor's integration tests."""

import pytest

from tests.support.postgres import postgres_server
from tests.support.small_authority import SmallAuthority


@pytest.fixture(scope="session")
def authority():
    return SmallAuthority()


@pytest.fixture(scope="session")
def database(authority):
    with postgres_server(authority.issue("127.0.0.1", "localhost")) as server:
        yield server
