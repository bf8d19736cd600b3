import os
import subprocess
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.forgery import Forger
from tests.support.trust import make_authority

BIRTH = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
NOW = BIRTH + timedelta(days=1)
MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")


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


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory):
    """Key holders with a token each, in a SoftHSM of their own: holder, label -> URI. Loaded once a process."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    run = uuid.uuid4().hex[:8]
    for holder in ("alice", "bob", "carol", "dave", "online"):
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", f"{holder}-{run}", "--so-pin=8765", "--pin=1234"],
            check=True, capture_output=True,
        )  # fmt: skip
    (folder / "pin").write_text("1234\n")
    yield (
        lambda holder, label: (
            f"pkcs11:token={holder}-{run};object={label}?module-path={MODULE}&pin-source=file:{folder}/pin"
        )
    )
    del os.environ["SOFTHSM2_CONF"]
