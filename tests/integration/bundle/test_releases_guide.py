"""The guide of releases, typed: built, built again by others to the byte, tried, installed, upgraded, returned.

What is built here holds two stand-in wheels and every other part of a release; what is installed is a small release.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from appliance.bundle.inputs import Payload
from appliance.bundle.recipe import write_second_channel
from appliance.bundle.stage0.journal import Prefix
from tests.support import artifacts
from tests.support.bundle import SmallRelease, small_payload, small_release
from tests.support.guides import Guide, filled
from tests.support.trust import DevelopmentAuthority, make_authority
from tests.support.vendoring import WheelMaker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TREE = ("appliance", "bundle", "scripts", "docs", "ca")
RUNBOOK = ("scripts/install-from-media", "scripts/lib/runbook.sh")
CREATED = "1795000000"
NAME = "llm-routing-appliance-0.1.0.tar"


@pytest.fixture(scope="module")
def guide():
    return Guide("releases")


@pytest.fixture(scope="module")
def published(guide, tmp_path_factory):
    """A source tree with an authority, a vendor folder of two wheels and signed models, and the release built there."""
    tree = vendored(copy_of(ROOT, tmp_path_factory.mktemp("published") / "tree"))
    producer = make_authority(tree / "ca" / "authority").signer("producer")
    encoder = {"encoder.yaml": b"{}", "encoder.onnx": b"network"}
    for kind, files in (("encoder", encoder), ("router", artifacts.router_files())):
        artifacts.write(artifacts.signed(files, producer), tree / "dist" / kind)
    says = typed(tree, guide.line("appliance bundle build"), umask=0o022)
    assert says["path"] == f"dist/{NAME}"  # the page's own name
    return tree, says


@pytest.fixture(scope="module")
def again(guide, published, tmp_path_factory):
    """The same sources on another machine, for another user, at another time, without any key; what was built there."""
    tree = elsewhere(published[0], tmp_path_factory.mktemp("again"))
    shutil.copy(published[0] / "dist" / NAME, tree)
    subprocess.run(guide.other("tar ").split(), cwd=tree, check=True)
    says = typed(
        tree, guide.line("appliance bundle reproduce"), umask=0o077, LC_ALL="tr_TR.UTF-8", TZ="Asia/Tokyo",
        PYTHONHASHSEED="7", SOURCE_DATE_EPOCH="1", clock="+3 days",
    )  # fmt: skip
    return tree, says


def copy_of(source: Path, place: Path) -> Path:
    place.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "authority")
    for folder in TREE:
        shutil.copytree(source / folder, place / folder, ignore=ignore, symlinks=True)
    return place


def vendored(place: Path) -> Path:
    """Give a tree a vendor folder of two wheels, and a file large enough for several volumes."""
    vendor = place / "vendor"
    (vendor / "requirements").mkdir(parents=True)
    makers = WheelMaker("app", requires=("lib",)), WheelMaker("lib")
    lines = [f"{m.name}=={m.version} --hash=sha256:{hashlib.sha256(m.build()).hexdigest()}\n" for m in makers]
    (vendor / "requirements" / "gateway.lock").write_text("".join(lines))
    (vendor / "requirements" / "gateway.in").write_text("app\n")
    (vendor / "policy.yaml").write_text("schema_version: 1\nripening: {minimum_days: 3}\n")
    (vendor / "models.yaml").write_text("schema_version: 1\nmodels: {}\n")
    (vendor / "targets.yaml").write_text(
        "schema_version: 1\ntargets:\n  cp311-manylinux_x86_64: {python: '3.11', architecture: x86_64, glibc: '2.28', "
        "profiles: {gateway: [gateway.lock]}}\n"
    )
    for maker in makers:
        maker.write(vendor / "wheelhouse" / "cp311-manylinux_x86_64")
    (place / "weights.bin").write_bytes(random.Random(1).randbytes(9_000_000))
    return place


def typed(tree: Path, line: str, *, umask: int, expect: int = 0, clock: str | None = None, **variables: str) -> dict:
    """Type a line of the page in a tree, with that tree's own code; small volumes, and a large file to fill them."""
    code = "from appliance.cli.main import main; main()"
    words = shlex.split(filled(line, {"3900M": "5M"}))[1:]
    command = [sys.executable, "-c", code, *words, "--evidence", "weights.bin", "--json"]
    done = subprocess.run(
        ["faketime", clock, *command] if clock else command, cwd=tree, umask=umask, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree), "SOURCE_DATE_EPOCH": CREATED, **variables}, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return json.loads(done.stdout)


def elsewhere(published: Path, place: Path) -> Path:
    """The same sources on another machine: another folder, other times and modes of files."""
    tree = vendored(copy_of(published, place / "a" / "rather" / "different" / "folder"))
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
        path.chmod(path.stat().st_mode | 0o111)
    return tree


def test_somebody_else_builds_the_published_release_to_the_byte_without_any_key(published, again):
    assert again[1]["reproduced"] is True
    assert not (again[0] / "ca" / "authority").exists()
    theirs, ours = published[0] / "dist", again[0] / "again"
    names = sorted(path.name for path in theirs.iterdir() if path.is_file())
    assert names == sorted(path.name for path in ours.iterdir())
    assert len([name for name in names if ".v0" in name]) > 2
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_the_release_names_all_that_it_carries_and_brings_what_its_operator_needs(published, tmp_path):
    tree, says = published
    with tarfile.open(tree / says["path"]) as archive:
        members = {member.name: member for member in archive.getmembers()}

        def text(name: str) -> str:
            return archive.extractfile(members[name]).read().decode()

        wanted = {line.split("==")[0] for line in text("requirements.txt").splitlines()}
        named = {component["name"] for component in json.loads(text("evidence/sbom.cdx.json"))["components"]}
        assert wanted == named == {"app", "lib", "llm-routing-appliance"}
        for name in ("scripts/install-from-media", "scripts/install-units", "scripts/roll-back", "scripts/drill"):
            assert members[name].mode == 0o755, name
        needed = [
            "scripts/lib/runbook.sh", "systemd/appliance-gateway.service", "monitoring/alerts.yaml",
            "kubernetes/rendered/air-gapped.yaml", "container/Containerfile", "docs/runbook.md", "docs/operator.md",
            "man/appliance-install.1", "completion/appliance.bash",
        ]  # fmt: skip
        assert [name for name in needed if name not in members] == []
        assert not [name for name in members if "demo" in name or "authority" in name.lower().split("/")]
        for name in (n for n in members if n.startswith("docs/")):  # what a guide refers to is there, too
            for script in re.findall(r"`scripts/([a-z-]+)[ `]", text(name)):
                source = (ROOT / "scripts" / script).read_text()
                assert f"scripts/{script}" in members or "bash" not in source.splitlines()[0], (name, script)


def test_signed_again_it_is_the_same_release_by_its_digest(guide, published, tmp_path):
    there, says = published
    tree = elsewhere(there, tmp_path)
    for kind in ("encoder", "router"):
        shutil.copytree(there / "dist" / kind, tree / "dist" / kind)
    line = f"{guide.line('appliance bundle build')} --authority {there}/ca/authority"
    again = typed(tree, line, umask=0o002, LC_ALL="C", TZ="America/Caracas", PYTHONHASHSEED="1")
    assert again["manifest_digest"] == says["manifest_digest"]


def test_a_single_changed_letter_is_named(guide, again, tmp_path):
    tree = elsewhere(again[0], tmp_path)
    for part in ("encoder", "router"):
        shutil.copytree(again[0] / part, tree / part)
    shutil.copy(again[0] / NAME, tree)
    runbook = tree / "scripts" / "roll-back"
    runbook.write_text(runbook.read_text() + "#\n")
    told = typed(tree, guide.line("appliance bundle reproduce"), umask=0o022, expect=1)["error"]
    assert told["code"] == "BUNDLE_NOT_REPRODUCED"
    assert told["evidence"]["different"] == [
        "another content: scripts/roll-back", "another content: evidence/provenance.intoto.json",
    ]  # fmt: skip
    assert not list((tree / "again").glob("*.tar"))


def carried(out: Path, authority: DevelopmentAuthority, version: str, epoch: int) -> SmallRelease:
    """A small release in a folder, with what goes by the second channel and the runbook that installs the next one."""
    runbook = [Payload(name, (ROOT / name).read_bytes(), executable=True) for name in RUNBOOK]
    payload = small_payload(note=version, extra=runbook, whole=True)
    release = small_release(out, authority, version, epoch=epoch, payload=payload)
    write_second_channel(release.built, release.anchor, out)
    return release


def in_a_shell(line: str, host: Path, prefix: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", line], cwd=host, env={**os.environ, "APPLIANCE_PREFIX": str(prefix)}, capture_output=True,
        text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_page_from_building_to_a_zone_that_is_upgraded_by_a_delta_and_returns(
    guide, published, again, tmp_path, monkeypatch
):
    authority = DevelopmentAuthority(published[0] / "ca" / "authority")
    host, prefix, python = tmp_path / "host", tmp_path / "opt" / "appliance", sys._base_executable
    old = carried(host / "dist", authority, "1.0.0", 1)
    new = carried(tmp_path / "desk" / "dist", authority, "1.1.0", 2)

    # tried without a network, then installed on a host that has nothing yet
    line = guide.other("sudo unshare -n")  # root, or one who is root in a room of his own
    sealed = {"sudo unshare -n": "unshare -rn", "python3.11": python, "/srv/try": tmp_path / "srv" / "try"}
    said = in_a_shell(filled(line, sealed), host, prefix)
    assert "handing over to the appliance's own verifier" in said
    assert f"manifest {old.built.manifest.digest}" in said
    assert Prefix(tmp_path / "srv" / "try").active() == old.built.manifest.release_id
    for name in ("anchor.json", "stage0.py"):  # by the second channel
        shutil.copy(host / "dist" / name, host)
    line = guide.other("python3.11 stage0.py")
    line = filled(line, {"python3.11": python, "/media/release": host / "dist", "/opt/appliance": prefix})
    in_a_shell(line, host, prefix)
    assert (prefix / "state" / "trust" / "current").is_symlink()
    assert "already installed" in in_a_shell(line, host, prefix)

    # media that turn out to be too small
    archive = published[0] / "dist" / NAME
    cut = guide.type("appliance bundle split", {NAME: archive, "--out volumes": f"--out {tmp_path}", "3900M": "5M"})
    assert len(cut["volumes"]) > 2
    for volume in (Path(each["path"]) for each in cut["volumes"]):
        assert volume.read_bytes() == (archive.parent / volume.name).read_bytes(), volume.name

    # only what is missing travels
    here = ("--prefix", prefix)
    monkeypatch.chdir(tmp_path / "desk")
    taken = guide.type("appliance inventory", {"DIR": authority.path}, *here)
    assert taken["digest"] == old.built.manifest.digest
    delta = guide.type("appliance bundle delta", {}, "--authority", authority.path)
    assert (delta["carried"], delta["manifest_digest"]) == (1, new.built.manifest.digest)
    assert delta["bytes"] < delta["full_bytes"] / 50
    line = guide.other("/opt/appliance/current/payload/scripts/install-from-media")
    line = filled(line, {"/media/release": tmp_path / "desk" / "delta", "/opt/appliance": prefix})
    assert f"installed: {new.built.manifest.release_id}" in in_a_shell(line, host, prefix)
    assert Prefix(prefix).active() == new.built.manifest.release_id

    # and back
    assert guide.type("appliance rollback", {}, *here)["release"] == old.built.manifest.release_id
    listed = guide.type("appliance releases", {}, *here)["releases"]
    assert [(each["release"], each["current"], each["signer"]) for each in listed] == [
        (old.built.manifest.release_id, True, "release-signer@appliance.internal"),
        (new.built.manifest.release_id, False, "release-signer@appliance.internal"),
    ]
    guide.all_typed({})
    others = [line.split()[1] for line in guide.page.splitlines() if re.match(r"\$ (?!appliance )", line)]
    assert others == ["sudo", "tar", "python3.11", "/opt/appliance/current/payload/scripts/install-from-media"]
