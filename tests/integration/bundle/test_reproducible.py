"""The same sources give the same bytes: in another folder, at another time, for another user, without any key."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.trust import make_authority
from tests.support.vendoring import WheelMaker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TREE = ("appliance", "bundle", "scripts", "docs", "ca")
CREATED = "1795000000"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An authority, a source tree with a vendor folder of two wheels, and the release that was built there."""
    work = tmp_path_factory.mktemp("published")
    make_authority(work / "ca")
    tree = vendored(copy_of(ROOT, work / "tree"))
    says = build(tree, "build", "--authority", str(work / "ca"), "--out", str(work / "out"), umask=0o022)
    return work, says


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


def build(
    tree: Path, verb: str, *arguments: str, umask: int, expect: int = 0, clock: str | None = None, **variables: str
) -> dict:
    code = "from appliance.cli.main import main; main()"
    command = [sys.executable, "-c", code, "bundle", verb, *arguments, "--volume-size", "5M", "--json"]
    command += ["--evidence", "weights.bin"]
    done = subprocess.run(
        ["faketime", clock, *command] if clock else command, cwd=tree, umask=umask, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tree), "SOURCE_DATE_EPOCH": CREATED, **variables}, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return json.loads(done.stdout)


def elsewhere(published: Path, tmp_path: Path) -> Path:
    """The same sources on another machine: another folder, other times and modes of files."""
    tree = vendored(copy_of(published / "tree", tmp_path / "a" / "rather" / "different" / "folder"))
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
        path.chmod(path.stat().st_mode | 0o111)
    return tree


def test_somebody_else_builds_the_published_release_to_the_byte_without_any_key(published, tmp_path):
    work, says = published
    again = build(
        elsewhere(work, tmp_path), "reproduce", says["path"], "--out", str(tmp_path / "out"), umask=0o077,
        LC_ALL="tr_TR.UTF-8", TZ="Asia/Tokyo", PYTHONHASHSEED="7", SOURCE_DATE_EPOCH="1", clock="+3 days",
    )  # fmt: skip
    assert again["reproduced"] is True
    ours = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert ours == sorted(path.name for path in (work / "out").iterdir())
    assert len([name for name in ours if ".v0" in name]) > 2
    for name in ours:
        assert (tmp_path / "out" / name).read_bytes() == (work / "out" / name).read_bytes(), name


def test_the_release_names_all_that_it_carries_and_brings_what_its_operator_needs(published, tmp_path):
    _, says = published
    with tarfile.open(says["path"]) as archive:
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
                assert f"scripts/{script}" in members or not (ROOT / "scripts" / script).read_text().startswith(
                    "#!/usr/bin/env bash\n#"
                ), (name, script)


def test_signed_again_it_is_the_same_release_by_its_digest(published, tmp_path):
    work, says = published
    again = build(
        elsewhere(work, tmp_path), "build", "--authority", str(work / "ca"), "--out", str(tmp_path / "out"),
        umask=0o002, LC_ALL="C", TZ="America/Caracas", PYTHONHASHSEED="1",
    )  # fmt: skip
    assert again["manifest_digest"] == says["manifest_digest"]


def test_a_single_changed_letter_is_named(published, tmp_path):
    work, says = published
    tree = elsewhere(work, tmp_path)
    runbook = tree / "scripts" / "roll-back"
    runbook.write_text(runbook.read_text() + "#\n")
    told = build(tree, "reproduce", says["path"], "--out", str(tmp_path / "out"), umask=0o022, expect=1)["error"]
    assert told["code"] == "BUNDLE_NOT_REPRODUCED"
    assert "another content: scripts/roll-back" in told["evidence"]["different"]
    assert not list((tmp_path / "out").glob("*.tar"))
