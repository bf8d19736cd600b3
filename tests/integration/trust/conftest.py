from datetime import UTC, datetime, timedelta

import pytest

from tests.support.forgery import Forger
from tests.support.trust import make_authority

BIRTH = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
NOW = BIRTH + timedelta(days=1)


@pytest.fixture(scope="session")
def zone(tmp_path_factory):
    """An authority born two days ago; its signatures were made yesterday, so every certificate has expired."""
    return make_authority(tmp_path_factory.mktemp("zone") / "ca", now=BIRTH)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    return Forger(make_authority(tmp_path_factory.mktemp("stranger") / "ca", now=BIRTH).path, NOW)


@pytest.fixture(scope="session")
def forger(zone):
    return Forger(zone.path, NOW)
