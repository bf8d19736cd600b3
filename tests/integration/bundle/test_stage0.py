"""Stage 0 as an operator runs it: one file, the system's Python and openssl, media and an anchor.

That it installs, and hands over to the full verifier first, is typed from the guide: `test_releases_guide.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat import asn1

from appliance.bundle.stage0.assemble import assemble
from appliance.bundle.stage0.environment import starts
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.main import authenticate_with_openssl
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE, Head, open_sources
from appliance.bundle.stage0.openssl import check_openssl, read_anchor, verify_with_openssl
from appliance.bundle.stage0.refusal import Refused
from appliance.bundle.stage0.ustar import tar_header
from appliance.bundle.volumes import split
from tests.support import bundle as support
from tests.support.forgery import Forger
from tests.support.trust import make_authority

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def release(authority, tmp_path_factory):
    out = tmp_path_factory.mktemp("release")
    return support.small_release(out, authority, payload=support.small_payload(whole=True))


@pytest.fixture(scope="module")
def stage0(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stage0") / "stage0.py"
    path.write_text(assemble())
    return path


@pytest.fixture
def anchor(authority, tmp_path) -> Path:
    path = tmp_path / "anchor.json"
    path.write_bytes(authority.anchor)
    return path


def run(stage0: Path, *arguments, clock: str | None = None) -> subprocess.CompletedProcess:
    command = [sys._base_executable, str(stage0), *map(str, arguments)]
    if clock:
        command = ["faketime", "-f", clock, *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)


def test_stage_0_takes_the_media_s_anchor_by_its_fingerprint_alone(stage0, release, anchor, tmp_path):
    fingerprint = hashlib.sha256(anchor.read_bytes()).hexdigest()
    done = run(stage0, release.media, "--prefix", tmp_path / "p", "--trust-sha256", fingerprint, "--dry-run")
    assert done.returncode == 0, done.stderr
    done = run(stage0, release.media, "--prefix", tmp_path / "p", "--trust-sha256", "0" * 64, "--dry-run")
    assert done.returncode == 1
    assert "BUNDLE_ANCHOR" in done.stderr
    assert not (tmp_path / "p").exists()


def test_nothing_that_lies_beside_stage_0_on_the_medium_runs(stage0, release, anchor, tmp_path):
    """Python looks for modules beside a script first, and a PATH with an empty entry means the folder one stands in."""
    medium, trace = tmp_path / "medium", tmp_path / "trace"
    medium.mkdir()
    (medium / "stage0.py").write_bytes(stage0.read_bytes())
    (medium / "release.tar").write_bytes(release.media.read_bytes())
    for module in sys.stdlib_module_names - {"sys", "posix", "builtins"}:
        (medium / f"{module}.py").write_text(f"open({str(trace)!r}, 'a').write({module!r} + ' ')\n")
    (medium / "openssl").write_text(f"#!/bin/sh\necho openssl >> {trace}\n")
    (medium / "openssl").chmod(0o755)
    poison = {"PATH": f":.:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys._base_executable, "stage0.py", ".", "--prefix", tmp_path / "p", "--trust", anchor, "--dry-run"],
        cwd=medium, env=os.environ | poison, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert not trace.exists(), trace.read_text()
    assert done.returncode == 0, done.stderr
    assert "nothing was written" in done.stderr


def test_names_on_the_medium_bring_no_line_and_no_escape_sequence_to_the_screen(stage0, anchor, tmp_path):
    wiped = "\x1b[2J\x1b[1;1H"
    named = {
        "name.tar": tar_header(f"trust/{wiped}\ninstalled: 1.0.0\nnext: nothing", 0),
        f"{wiped}.tar": b"no release",
    }
    for number, (name, data) in enumerate(named.items()):
        medium = tmp_path / f"medium-{number}"
        medium.mkdir()
        (medium / name).write_bytes(data)
        done = run(stage0, medium, "--prefix", tmp_path / "p", "--trust", anchor)
        assert done.returncode == 1
        assert "refused BUNDLE_" in done.stderr
        assert "\x1b" not in done.stderr
        assert r"\x1b[2J" in done.stderr
        assert not [line for line in done.stderr.splitlines() if line.startswith(("installed", "next: nothing"))]


def test_stage_0_refuses_another_authority_s_anchor(stage0, release, tmp_path):
    other = make_authority(tmp_path / "other")
    done = run(stage0, release.media, "--prefix", tmp_path / "p", "--trust", other.path / "anchor.json")
    assert done.returncode == 1
    assert "BUNDLE_ANCHOR" in done.stderr
    assert "next: " in done.stderr
    assert not (tmp_path / "p").exists()


def test_stage_0_refuses_a_flipped_byte_and_a_short_copy(stage0, release, anchor, tmp_path):
    data = release.media.read_bytes()
    media = tmp_path / "media.tar"
    for at in (5, 600, data.index(b'"members"'), len(data) // 2, len(data) - 5):
        altered = bytearray(data)
        altered[at] ^= 0x20
        media.write_bytes(altered)
        done = run(stage0, media, "--prefix", tmp_path / "p", "--trust", anchor)
        assert done.returncode == 1, at
        assert "refused BUNDLE_" in done.stderr
        assert Prefix(tmp_path / "p").active() is None
    media.write_bytes(data[: len(data) // 3])
    done = run(stage0, media, "--prefix", tmp_path / "q", "--trust", anchor)
    assert "refused BUNDLE_TRUNCATED" in done.stderr
    assert not (tmp_path / "q").exists()


def test_stage_0_in_1970_says_that_the_clock_is_wrong_and_touches_nothing(stage0, release, anchor, tmp_path):
    done = run(stage0, release.media, "--prefix", tmp_path / "p", "--trust", anchor, clock="1970-01-02 00:00:00")
    assert done.returncode == 1
    assert "refused INSTALL_CLOCK" in done.stderr
    assert "date -u -s" in done.stderr
    assert not (tmp_path / "p").exists()


def test_a_dry_run_checks_every_byte_and_writes_nothing(stage0, release, anchor, tmp_path):
    done = run(stage0, release.media, "--prefix", tmp_path / "p", "--trust", anchor, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "MB/s" in done.stderr
    assert not (tmp_path / "p").exists()


def test_stage_0_reads_volumes_and_heals_one(stage0, release, anchor, tmp_path):
    split(release.media, tmp_path / "volumes", volume_bytes=20_000_000)
    (tmp_path / "volumes" / f"{release.media.name}.v002").unlink()
    done = run(stage0, tmp_path / "volumes", "--prefix", tmp_path / "p", "--trust", anchor, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "volume 2 of" in done.stderr
    assert "rebuilt from parity" in done.stderr


def head_of(media: Path) -> Head:
    with open_sources([media]) as (sources, _):
        return sources[0].head


def code(manifest: bytes, signature: bytes, anchor: bytes) -> str:
    with pytest.raises(Refused) as caught:
        verify_with_openssl(manifest, signature, read_anchor(anchor))
    return caught.value.code


def test_openssl_s_verdict_names_signer_and_time(release, authority):
    head = head_of(release.media)
    accepted, anchor, verdict = authenticate_with_openssl(head, authority.anchor)
    assert accepted.manifest.digest == release.built.manifest.digest
    assert verdict.identity == anchor.identity == "release-signer@appliance.internal"
    assert abs(verdict.signed_at - datetime.now(UTC)) < timedelta(hours=1)
    assert check_openssl().startswith("OpenSSL 3")


def test_each_part_of_the_signature_is_checked(release, authority, tmp_path):
    head = head_of(release.media)
    manifest, signature = head.files[MANIFEST], head.files[SIGNATURE]
    document = json.loads(signature)
    assert code(manifest + b" ", signature, authority.anchor) == "BUNDLE_SIGNATURE"
    assert code(manifest, b"{}", authority.anchor) == "BUNDLE_SIGNATURE_FORM"
    assert code(manifest, b"\xff", authority.anchor) == "BUNDLE_SIGNATURE_FORM"
    at = authenticate_with_openssl(head, authority.anchor)[2].signed_at
    other = json.loads(authority.signer("release-signer", at=at).sign_statement(b'{"_type":"x"}\n'))
    crossed = json.loads(signature)
    crossed["verificationMaterial"]["timestampVerificationData"] = other["verificationMaterial"][
        "timestampVerificationData"
    ]
    assert code(manifest, json.dumps(crossed).encode(), authority.anchor) == "BUNDLE_TIMESTAMP"
    crossed = json.loads(signature)
    crossed["verificationMaterial"]["certificate"] = other["verificationMaterial"]["certificate"]
    assert code(manifest, json.dumps(crossed).encode(), authority.anchor) == "BUNDLE_SIGNATURE"
    document["messageSignature"]["messageDigest"]["digest"] = other["messageSignature"]["messageDigest"]["digest"]
    assert code(manifest, json.dumps(document).encode(), authority.anchor) == "BUNDLE_SIGNATURE"


def test_a_stolen_key_is_of_no_use_after_its_certificate_s_minutes_whatever_the_answer_s_unsigned_part_says(authority):
    """An answer of RFC 3161 may carry words of its own beside the signed token, and openssl prints them, too."""
    manifest, now = b'{"_type":"x"}\n', datetime.now(UTC)
    stated = f"\nTime stamp: {now:%b %d %H:%M:%S %Y} GMT"

    def speaking(answer: bytes, words: str = stated) -> bytes:
        status = b"\x30\x03\x02\x01\x00"
        assert answer.count(status) == 1
        text = asn1.encode_der(words)
        text = b"\x02\x01\x00\x30" + bytes([len(text)]) + text
        _, length, rest = answer[:2], int.from_bytes(answer[2:4], "big"), answer[4 + len(status) :]
        assert len(rest) == length - len(status)
        inner = b"\x30" + bytes([len(text)]) + text + rest
        return answer[:2] + len(inner).to_bytes(2, "big") + inner

    forger = Forger(authority.path, now)
    honest = forger.statement(manifest, token=lambda answer: speaking(answer, "granted"))
    assert verify_with_openssl(manifest, honest, read_anchor(authority.anchor)).signed_at == forger.at
    for token in (bytes, speaking):
        late = forger.statement(manifest, stamp_at=timedelta(hours=1), token=token)
        assert code(manifest, late, authority.anchor) == "BUNDLE_CERTIFICATE"


def test_another_role_of_the_same_authority_is_refused(release, authority):
    manifest = head_of(release.media).files[MANIFEST]
    signature = authority.signer("import-officer").sign_statement(manifest)
    assert code(manifest, signature, authority.anchor) == "BUNDLE_IDENTITY"


def test_a_certificate_of_another_authority_with_our_time_stamp_authority_is_refused(release, authority, tmp_path):
    other = make_authority(tmp_path / "other")
    mixed = json.loads(authority.anchor)
    mixed["release"]["certificate_chain"] = json.loads(other.anchor)["release"]["certificate_chain"]
    head = head_of(release.media)
    assert code(head.files[MANIFEST], head.files[SIGNATURE], json.dumps(mixed).encode()) == "BUNDLE_CERTIFICATE"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"_type":"other"}', b"\xff\xff"])
def test_what_is_no_anchor_is_refused(data):
    with pytest.raises(Refused) as caught:
        read_anchor(data)
    assert caught.value.code == "BUNDLE_ANCHOR"


def test_a_host_without_openssl_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused) as caught:
        check_openssl()
    assert caught.value.code == "INSTALL_OPENSSL"


def test_trust_metadata_exchanged_on_the_media_are_refused(release, authority):
    head = head_of(release.media)
    name = next(name for name in head.files if name.startswith("trust/metadata"))
    exchanged = Head({**head.files, name: head.files[name] + b" "}, head.size_bytes)
    with pytest.raises(Refused) as caught:
        authenticate_with_openssl(exchanged, authority.anchor)
    assert caught.value.code == "BUNDLE_HEAD"


def test_where_the_installed_program_no_longer_starts_stage_0_makes_it_anew(stage0, release, anchor, tmp_path):
    prefix = tmp_path / "p"
    command = (stage0, release.media, "--prefix", prefix, "--trust", anchor)
    assert run(*command).returncode == 0
    home = Prefix(prefix)
    next(home.current.resolve().glob("env/lib/python*/site-packages/typer/__init__.py")).write_text("1 +\n")
    (home.current / "payload" / "evidence" / "note.txt").write_text("9.9.9")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "making it anew" in done.stderr
    assert "installed: " in done.stdout
    assert home.transaction() is None
    done = run(*command)
    assert "already installed" in done.stdout, done.stderr
    assert "making it anew" not in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#!/bin/sh\nexit 0\n", True),
        ("#!/bin/sh\nexit 1\n", False),
        ("#!/nowhere/python\n", False),
        ("#!/bin/sh\nkill -9 $$\n", True),
        ("#!/bin/sh\necho MemoryError >&2; exit 1\n", True),
        (None, False),
    ],
    ids=["it does", "it fails", "no interpreter", "killed by the host", "no memory", "not there"],
)
def test_a_program_is_not_made_anew_for_what_the_host_lacks(tmp_path, text, expected):
    program = tmp_path / "appliance"
    if text is not None:
        program.write_text(text)
        program.chmod(0o755)
    assert starts(program) is expected
