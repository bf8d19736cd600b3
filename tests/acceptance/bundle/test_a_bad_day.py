"""A bad day at the zone's border: sticks in vfat, one of them damaged, a wrong clock, and the plug pulled midway."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.bundle.inputs import Payload
from appliance.bundle.stage0.assemble import assemble
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.volumes import split
from tests.support import bundle as support
from tests.support.trust import make_authority
from tests.support.vfat import make_stick, read_stick

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sticks(tmp_path_factory):
    """A release in volumes, each on a vfat stick of its own; the second one went through the washing machine."""
    work = tmp_path_factory.mktemp("border")
    authority = make_authority(work / "ca")
    weights = Payload("models/weights.bin", random.Random(1).randbytes(60_000_000))
    release = support.small_release(
        work / "release", authority, payload=support.small_payload(whole=True, extra=[weights])
    )
    volumes = split(release.media, work / "volumes", volume_bytes=48 * 1024 * 1024)
    assert len(volumes) >= 4
    mounts = []
    for number, volume in enumerate(volumes):
        image = make_stick(work / f"stick-{number}.img", [volume], size_bytes=64 * 1024 * 1024)
        if number == 1:
            with image.open("rb+") as stream:  # damage inside the file system: the file is there, its bytes are not
                stream.seek(30 * 1024 * 1024)
                stream.write(os.urandom(300_000))
        mounts.append(read_stick(image, work / f"mount-{number}"))
    (work / "stage0.py").write_text(assemble())
    (work / "anchor.json").write_bytes(authority.anchor)
    return work, [mounts[2], mounts[0], *mounts[3:], mounts[1]], release  # in no order at all


def stage0(work: Path, mounts: list[Path], prefix: Path, *, clock: str | None = None) -> subprocess.Popen:
    command = [sys._base_executable, "-I", str(work / "stage0.py"), *map(str, mounts)]
    command += ["--prefix", str(prefix), "--trust", str(work / "anchor.json")]
    if clock:
        command = ["faketime", "-f", clock, *command]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, umask=0o077
    )


def test_it_ends_untouched_with_the_right_words_or_complete(sticks, tmp_path):
    work, mounts, release = sticks
    prefix = tmp_path / "prefix"
    before = {path: path.read_bytes() for mount in mounts for path in mount.iterdir()}

    # the clock stands at 1970: untouched, and the words name the clock and the command
    process = stage0(work, mounts, prefix, clock="1970-01-02 03:04:05")
    said = process.communicate(timeout=800)[0]
    assert process.returncode == 1
    assert "refused INSTALL_CLOCK" in said
    assert "date -u -s" in said
    assert not prefix.exists()

    # the plug is pulled while it works, at three different moments
    for delay in (0.8, 2.0, 3.5):
        process = stage0(work, mounts, prefix)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert Prefix(prefix).active() in (None, release.built.manifest.release_id)
        time.sleep(0.1)

    # power and clock are back: it goes on, mends the damaged stick from parity, names it, and is complete
    process = stage0(work, mounts, prefix)
    said = process.communicate(timeout=800)[0]
    assert process.returncode == 0, said
    assert Prefix(prefix).active() == release.built.manifest.release_id
    payload = support.tree(Prefix(prefix).payload(release.built.manifest.release_id))
    assert set(payload) == {member.path for member in release.built.manifest.members}
    assert {path: path.read_bytes() for path in before} == before, "the media were read, never written"
    closed = [path for path in (prefix / "releases").rglob("*") if path.stat().st_mode & 0o044 != 0o044]
    assert not closed, "the service's account can read what an operator with umask 077 installed"


def test_the_damaged_stick_is_named_and_mended_from_parity(sticks, tmp_path):
    work, mounts, release = sticks
    process = stage0(work, mounts, tmp_path / "prefix")
    said = process.communicate(timeout=800)[0]
    assert process.returncode == 0, said
    assert "volume 2 of" in said
    assert "rebuilt from parity" in said
    assert Prefix(tmp_path / "prefix").active() == release.built.manifest.release_id


def test_without_parity_the_damaged_stick_is_named_and_nothing_is_activated(sticks, tmp_path):
    work, mounts, _ = sticks
    without = [mount for mount in mounts if not any(path.name.endswith(".parity") for path in mount.iterdir())]
    process = stage0(work, without, tmp_path / "prefix")
    said = process.communicate(timeout=800)[0]
    assert process.returncode == 1
    assert "refused BUNDLE_VOLUME_DAMAGED volume 2 of" in said
    assert Prefix(tmp_path / "prefix").active() is None
