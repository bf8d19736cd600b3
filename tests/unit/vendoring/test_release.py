"""The gate of a release: nothing is described that was not admitted and complete."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import VendorError
from appliance.files import sha256_hex
from appliance.vendoring.locks import read_lock
from appliance.vendoring.provenance import Build
from appliance.vendoring.release import Papers, release_papers, source_revision
from appliance.vendoring.targets import Target
from tests.support.vendoring import WheelMaker, litellm_1_82_8

TARGET = Target("t", (3, 11), "x86_64", (2, 28))
NOW = datetime(2026, 11, 23, tzinfo=UTC)
BUILD = Build("gateway", "t", "1.0", None, True, "https://appliance.internal/builder", NOW)


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "policy.yaml").write_text("schema_version: 1\nripening: {minimum_days: 3}\n")
    (tmp_path / "models.yaml").write_text("schema_version: 1\nmodels: {}\n")
    return tmp_path


def papers(vendor: Path, *makers: WheelMaker, now: datetime = NOW) -> Papers:
    wheels = vendor / "wheels"
    for maker in makers:
        maker.write(wheels)
    lines = [f"{m.name}=={m.version} --hash=sha256:{sha256_hex(m.build())}\n" for m in makers]
    (vendor / "requirements" / "gateway.lock").write_text("".join(lines))
    (vendor / "requirements" / "gateway.in").write_text(f"{makers[0].name}\n")
    lock = read_lock(vendor / "requirements" / "gateway.lock")
    return release_papers(vendor, wheels, locks=[lock], target=TARGET, build=BUILD, subjects={"a": "0" * 64}, now=now)


def test_an_admitted_and_complete_set_gets_its_papers_the_same_each_time(vendor: Path):
    makers = WheelMaker("app", requires=("lib",)), WheelMaker("lib")
    first = papers(vendor, *makers)
    assert set(first.files) == {"sbom.cdx.json", "admission.json", "licences.json", "provenance.intoto.json"}
    assert [notice.text for notice in first.notices] == ["no index tells when it was uploaded"] * 2
    assert papers(vendor, *makers, now=NOW.replace(year=2030)).files == first.files
    statement = json.loads(first.files["provenance.intoto.json"])
    assert statement["subject"] == [{"name": "a", "digest": {"sha256": "0" * 64}}]


def test_a_vex_statement_about_a_version_that_is_gone_is_shown_before_signing(vendor: Path):
    statement = {
        "vulnerability": {"name": "CVE-2026-0001"},
        "products": [{"@id": "pkg:generic/appliance", "subcomponents": [{"@id": "pkg:pypi/app@0.9"}]}],
        "status": "fixed",
    }
    document = {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": "https://appliance.internal/vex/test",
        "author": "tests",
        "timestamp": "2026-11-23T00:00:00Z",
        "version": 1,
        "statements": [statement],
    }
    (vendor / "vex").mkdir()
    (vendor / "vex" / "x.json").write_text(json.dumps(document))
    notices = [notice.text for notice in papers(vendor, WheelMaker("app")).notices]
    assert "CVE-2026-0001 speaks of app 0.9, the release has 1.0" in notices


def test_a_set_that_is_refused_or_incomplete_gets_none(vendor: Path):
    with pytest.raises(VendorError) as caught:
        papers(vendor, litellm_1_82_8())
    assert caught.value.code == "VENDOR_STARTUP_FILE"
    with pytest.raises(VendorError) as caught:
        papers(vendor, WheelMaker("app", requires=("lib",)))
    assert caught.value.code == "VENDOR_DEPENDENCY"


def test_the_source_revision_is_told_with_whether_the_tree_was_changed(tmp_path: Path):
    assert source_revision(tmp_path / "nowhere") == (None, True)

    def git(*arguments: str) -> None:
        options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *options, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "x").write_text("1")
    git("add", "x")
    git("commit", "-q", "-m", "one")
    revision, changed = source_revision(tmp_path)
    assert revision is not None
    assert (len(revision), changed) == (40, False)
    (tmp_path / "x").write_text("2")
    assert source_revision(tmp_path) == (revision, True)
