from datetime import UTC, datetime, timedelta

import pytest

from tests.support.forgery import Forger
from tests.support.trust import development_authority, make_authority

BIRTH = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOW = BIRTH + timedelta(days=10)


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return development_authority(tmp_path_factory)


@pytest.fixture(scope="session")
def zone(tmp_path_factory):
    """An authority born at BIRTH; its signatures are made at NOW."""
    return make_authority(tmp_path_factory.mktemp("zone") / "ca", now=BIRTH)


@pytest.fixture(scope="session")
def other_zone(tmp_path_factory):
    """Somebody else's authority: the same names, other keys."""
    return make_authority(tmp_path_factory.mktemp("other") / "ca", now=BIRTH)


@pytest.fixture(scope="session")
def forger(zone):
    return Forger(zone.path, NOW)


@pytest.fixture(scope="session")
def stranger(other_zone):
    return Forger(other_zone.path, NOW)


@pytest.fixture
def now():
    return NOW


@pytest.fixture
def birth():
    return BIRTH
