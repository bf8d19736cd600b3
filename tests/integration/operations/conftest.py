import pytest

from tests.support.trust import make_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """One development authority for all tests of operations."""
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")
