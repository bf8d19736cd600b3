"""Dependency integrity (files, versions, SBOM), isolation, and the report on paper."""

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from appliance.errors import TrustError
from appliance.files import sha256_hex
from appliance.operations.acceptance import pdf, report
from appliance.operations.acceptance.checks import Result, dependencies, isolation
from appliance.operations.doctor.snapshot import Attempt
from tests.unit.operations.test_doctor import HEALTHY


@pytest.fixture
def payload(tmp_path):
    """A release's folder with two distributions."""
    site = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    for name, version in (("PyYAML", "6.0.3"), ("tuf", "7.0.1")):
        info = site / f"{name.lower()}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    folder = tmp_path / "payload"
    folder.mkdir()
    (folder / "requirements.txt").write_text(
        f"pyyaml==6.0.3 --hash=sha256:{'0' * 64}\ntuf==7.0.1 --hash=sha256:{'1' * 64}\n"
    )
    sbom(folder, PyYAML="6.0.3", tuf="7.0.1")
    return folder


def sbom(folder, **versions):
    components = [{"name": name, "version": version} for name, version in versions.items()]
    (folder / "sbom.cdx.json").write_text(json.dumps({"bomFormat": "CycloneDX", "components": components}))


def test_a_sound_installation_holds(payload):
    result = dependencies(HEALTHY, payload)
    assert result.passed
    assert result.evidence["distributions"] == 2
    assert result.evidence["sbom_components"] == 2


def test_another_version_than_the_signed_one_does_not_hold(payload):
    text = (payload / "requirements.txt").read_text().replace("tuf==7.0.1", "tuf==7.0.2")
    (payload / "requirements.txt").write_text(text)
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["differing"] == {"tuf": ["7.0.2", "7.0.1"]}


def test_a_distribution_that_the_sbom_does_not_name_does_not_hold(payload):
    sbom(payload, PyYAML="6.0.3")
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["not_in_sbom"] == ["tuf 7.0.1"]


def test_a_version_that_the_sbom_does_not_name_does_not_hold(payload):
    sbom(payload, PyYAML="6.0.3", tuf="7.0.0")
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["not_in_sbom"] == ["tuf 7.0.1"]


def test_a_release_without_an_sbom_does_not_hold(payload):
    (payload / "sbom.cdx.json").unlink()
    result = dependencies(HEALTHY, payload)
    assert not result.passed
    assert result.evidence["not_in_sbom"] == "no SBOM is carried"


@pytest.mark.parametrize(
    "drift",
    [
        replace(HEALTHY.drift, changed=("payload/x",)),
        replace(HEALTHY.drift, foreign=("env/evil.pth",)),
        replace(HEALTHY.drift, signature_problem=TrustError("TRUST_DENIED", "denied")),
        TrustError("TRUST_STATE_MISSING", "no state"),
        None,
    ],
    ids=["changed", "foreign", "unsigned", "unreadable", "not installed"],
)
def test_drift_does_not_hold(payload, drift):
    assert not dependencies(replace(HEALTHY, drift=drift), payload).passed


class Locked:
    """A bench whose gateway has closed its doors."""

    def __init__(self, **locks):
        self.locks = locks

    def status(self):
        return {"workers": [{"lockdown": self.locks}]}


def test_isolation_needs_locks_on_every_gateway_and_nothing_reachable():
    sealed = Locked(landlock="enforced", seccomp="enforced", self_test="refused")
    host = replace(HEALTHY, gateway={"workers": sealed.status()["workers"]})
    assert isolation(sealed, host).passed
    assert not isolation(Locked(), host).passed
    for opened in ({"self_test": "not run"}, {"landlock": "off"}, {"seccomp": "off"}, {"self_test": "not refused: ok"}):
        locks = {**sealed.locks, **opened}
        result = isolation(Locked(**locks), host)
        assert not result.passed
        assert result.evidence["open"] == [f"{name}: {value}" for name, value in opened.items()]
        assert not isolation(sealed, replace(host, gateway={"workers": [{"lockdown": locks}]})).passed
    reached = replace(host, egress=(Attempt("203.0.113.9:443", "connected"),))
    assert not isolation(sealed, reached).passed


def read_pdf(data, tmp_path):
    """What a reader of PDF files that is not ours finds in it."""
    (tmp_path / "x.pdf").write_bytes(data)
    done = subprocess.run(
        ["pdftotext", "-layout", str(tmp_path / "x.pdf"), "-"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_the_paper_says_what_the_signed_file_says_and_which_one_it_is(tmp_path):
    results = [
        Result("fallback", "requests go on", passed=True, evidence={"requests": 71}),
        Result("latency budget", "less than 50 ms", passed=False, evidence={"p99_ms": 63.1}),
    ]
    data = report.statement(results, at=datetime(2026, 11, 23, tzinfo=UTC), release="1.0.0-abc")
    text = read_pdf(report.paper(data, signer="zone-host"), tmp_path)
    for said in ("NOT accepted", "holds: fallback", "DOES NOT HOLD: latency budget", "p99_ms: 63.1", "requests: 71",
                 "Signed by zone-host", "litellm: ", sha256_hex(data), "1 of 1"):  # fmt: skip
        assert said in text


def test_long_evidence_is_wrapped_over_as_many_pages_as_it_needs(tmp_path):
    paragraphs = [pdf.Paragraph("evidence", f"line {n} " + "x" * 300) for n in range(100)]
    text = read_pdf(pdf.document(paragraphs, footer="f"), tmp_path)
    assert text.replace("\n", "").replace(" ", "").replace("\f", "").count("x") == 30_000
    assert "f - 4 of " in text


def test_no_text_can_break_out_of_the_paper(tmp_path):
    hostile = r"(unbalanced \) ET endstream endobj 漢"
    text = read_pdf(pdf.document([pdf.Paragraph("text", hostile)], footer="f"), tmp_path)
    assert r"(unbalanced \) ET endstream endobj ?" in text


def test_the_same_lines_give_the_same_bytes():
    lines = [pdf.Paragraph("title", "x")]
    assert pdf.document(lines, footer="f") == pdf.document(lines, footer="f")
