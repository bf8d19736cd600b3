"""`appliance ca` as an operator meets it: every verb, text and JSON, refusals with code and remedy."""

import contextlib
import hashlib
import json
import os
import pty
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance import documents
from appliance.bundle.own_wheel import own_wheel
from appliance.cli.main import app
from appliance.errors import catalogue
from appliance.trust.names import statement_type
from tests.support.trust import RECIPES

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def ca(*arguments, cwd, check=True, env=None):
    """Run `appliance ca` in a folder; in this process, which is as good and twenty times as fast."""
    with contextlib.chdir(cwd):
        done = CliRunner().invoke(app, ["ca", *map(str, arguments)], env={"COLUMNS": "200", **(env or {})})
    result = Outcome(done.exit_code, done.stdout, done.stderr)
    if check:
        assert result.returncode == 0, result.stderr + result.stdout
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return result


def report(*arguments, cwd, **options):
    return json.loads(ca(*arguments, "--json", cwd=cwd, **options).stdout)


def refusal(*arguments, cwd, **options):
    result = ca(*arguments, "--json", cwd=cwd, check=False, **options)
    assert result.returncode == 1, result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["remedy"]
    assert error["code"] in catalogue()
    return error["code"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a development authority in ca/authority, as `make demo` has it."""
    folder = tmp_path_factory.mktemp("home")
    made = report("init", "--development", "--recipes", RECIPES, cwd=folder)
    assert made["anchor"] == "ca/authority/anchor.json"
    return folder


@pytest.mark.slow
def test_init_refuses_to_overwrite_and_says_what_to_do(home):
    result = ca("init", "--development", "--recipes", RECIPES, cwd=home, check=False)
    assert result.returncode == 1
    assert "TRUST_AUTHORITY_EXISTS" in result.stderr
    assert "next: " in result.stderr


@pytest.mark.slow
def test_a_person_reads_the_anchors_fingerprint_and_the_warnings(home):
    text = ca("status", cwd=home).stdout
    fingerprint = report("status", cwd=home)["anchor_sha256"]
    assert fingerprint in text
    assert "a development authority" in text
    assert hashlib.sha256((home / "ca/authority/anchor.json").read_bytes()).hexdigest() == fingerprint


@pytest.mark.slow
def test_tls_certificates_are_issued_renewed_and_revoked(home):
    first = report("issue", "tls-server", "gw", "--san", "gw.zone", "--san", "10.0.0.5", "--out", "tls", cwd=home)
    assert (home / first["key"]).stat().st_mode & 0o777 == 0o600
    second = report("renew", "gw", "--out", "tls", cwd=home)
    assert first["serial"] != second["serial"]
    report("revoke", "--tls", first["serial"], cwd=home)
    assert [each["serial"] for each in report("status", cwd=home)["tls"]] == [second["serial"]]
    shown = subprocess.run(
        ["openssl", "x509", "-in", home / "tls/gw.pem", "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "DNS:gw.zone, IP Address:10.0.0.5" in shown


@pytest.mark.slow
def test_usage_errors_are_told_apart_from_refusals(home):
    for wrong in (
        ("issue", "tls-sever", "gw", "--out", "t"),
        ("renew", "gw"),
        ("revoke",),
        ("authorise", "upgrade", "1", "--machine", "x", "--out", "t"),
        ("authorise", "clock", "tomorrow", "--machine", "a" * 64, "--out", "t"),
        ("authorise", "downgrade", "1", "--machine", "a" * 64, "--out", "t", "--days", "400"),
        ("rotate", "signing", "--compromised-since", "yesterday"),
        ("rotate", "tuf-targets-1", "--compromised-since", "2026-11-23T12:00:00Z"),
        ("rotate", "signing", "--policy", "ca/policy.yaml"),
        ("rotate", "policy"),
        ("status", "--key", "nonsense"),
    ):
        assert ca(*wrong, cwd=home, check=False).returncode == 2, wrong
    assert refusal("issue", "tls-server", "gw", "--out", "t", cwd=home) == "TRUST_TLS_NAMES"
    assert refusal("issue", "tls-client", "../gw", "--out", "t", cwd=home) == "FILE_UNSAFE_NAME"
    assert refusal("rotate", "tuf-root-9", cwd=home) == "TRUST_KEY_UNKNOWN"
    assert refusal("status", "--authority", "nowhere", cwd=home) == "TRUST_AUTHORITY_MISSING"
    assert refusal("revoke", "--role", "pope", cwd=home) == "TRUST_ROLE_UNKNOWN"
    assert refusal("log", "export", "x", "--log", "tree", cwd=home) == "TRUST_LOG_UNKNOWN"
    assert not (home / "t").exists()


@pytest.mark.slow
def test_a_host_trusts_refreshes_reports_and_is_authorised(home, tmp_path):
    anchor, media = home / "ca/authority/anchor.json", home / "ca/authority/repository"
    fingerprint = report("status", cwd=home)["anchor_sha256"]
    state = tmp_path / "state"
    trusting = ("trust", anchor, "--media", media, "--state", state, "--sha256")
    assert refusal(*trusting, "0" * 64, cwd=tmp_path) == "TRUST_ANCHOR_DIGEST"
    assert not state.exists()
    first = report(*trusting, fingerprint.upper(), cwd=tmp_path)
    report("renew", cwd=home)
    second = report("refresh", "--media", media, "--state", state, cwd=tmp_path)
    assert second["metadata"]["timestamp"]["version"] == first["metadata"]["timestamp"]["version"] + 1
    assert "time floor" in ca("status", "--state", state, cwd=tmp_path).stdout
    machine = report("machine", cwd=tmp_path)["machine"]
    back = first["time_floor"]
    report("authorise", "clock", back, "--machine", machine, "--out", tmp_path / "token", cwd=home)
    report("redeem", tmp_path / "token", back, "--state", state, cwd=tmp_path)
    assert refusal("redeem", tmp_path / "token", back, "--state", state, cwd=tmp_path) == "TRUST_TOKEN_USED"


@pytest.mark.slow
def test_keys_policy_and_services_are_rotated(home, tmp_path):
    assert report("rotate", "tuf-root-3", cwd=home)["new_keys"] == ["tuf-root-4"]
    assert report("rotate", "tsa", "--compromised-since", "2026-01-01T00:00:00Z", cwd=home)["new_keys"] == ["tsa-2"]
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        (RECIPES / "policy.yaml").read_text().replace("lowest_epochs: {}", "lowest_epochs: { release: 3 }")
    )
    report("rotate", "policy", "--policy", policy, cwd=home)
    versions = report("status", cwd=home)["metadata_versions"]
    assert versions["root"] == 2


@pytest.mark.slow
def test_an_installed_release_makes_an_authority_from_its_own_recipes_wherever_it_stands(tmp_path):
    """The very wheel that a release carries, unpacked; no checkout beside it."""
    name, wheel = own_wheel()
    (tmp_path / name).write_bytes(wheel)
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    start = (
        "import sys, appliance; assert appliance.__file__.startswith(sys.argv.pop(1)); "
        "from appliance.cli.main import main; main()"
    )
    command = [sys.executable, "-c", start, str(tmp_path / "site"), "ca", "init", "--development", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["recipes"] == "built-in", done.stderr
    assert (tmp_path / "elsewhere/ca/authority/anchor.json").is_file()


def test_the_built_in_recipes_are_those_of_the_checkout_and_are_handed_out_to_be_edited(tmp_path):
    written = [Path(each) for each in report("recipes", "mine", cwd=tmp_path)["recipes"]]
    assert {each.name: (tmp_path / each).read_bytes() for each in written} == {
        each.name: each.read_bytes() for each in RECIPES.glob("*.yaml")
    }
    assert refusal("recipes", "mine", cwd=tmp_path) == "FILE_EXISTS"
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca/profiles.yaml").write_text("schema_version: 1\n")  # found before the built-in ones, and refused
    assert refusal("init", "--development", cwd=tmp_path) == "TRUST_RECIPE"
    assert report("init", "--development", "--recipes", "mine", cwd=tmp_path)["recipes"] == "mine"
    (tmp_path / "mine/policy.yaml").write_text("schema_version: 2\n")
    assert refusal("rotate", "policy", "--policy", "mine/policy.yaml", cwd=tmp_path) == "TRUST_RECIPE"


@pytest.mark.slow
def test_a_holder_who_was_told_a_drafts_digest_signs_no_authorisation_in_its_place(home, tmp_path):
    token, place = tmp_path / "token", f"tuf-root={home / 'ca/authority/keys/tuf-root-1.pem'}"
    digest = report("root", "propose", "--out", tmp_path / "draft", cwd=home)["digest"]
    report("authorise", "downgrade", "1.0", "--machine", "a" * 64, "--out", token, "--partial", cwd=home)
    before = token.read_bytes()
    assert refusal("root", "sign", token, "--digest", digest, "--key", place, cwd=home) == "TRUST_PROPOSAL"
    assert token.read_bytes() == before
    report("root", "sign", tmp_path / "draft", "--digest", digest, "--key", place, cwd=home)
    assert report("root", "sign", token, "--key", place, cwd=home)["version"] == "1.0"


def test_a_holders_key_is_not_made_where_its_public_half_has_no_place(tmp_path):
    (tmp_path / "passphrase").write_text("secret\n")
    made = ("root", "key", "--key", "mine=root.pem", "--passphrase-file", "passphrase", "--out")
    assert refusal(*made, "nowhere/mine.pub", cwd=tmp_path) == "FILE_MISSING"
    assert ca(*made, "root.pem", cwd=tmp_path, check=False).returncode == 2
    assert not (tmp_path / "root.pem").exists()
    assert report(*made, "mine.pub", cwd=tmp_path)["key"] == "mine"


def test_folders_that_are_made_are_named_from_outside(tmp_path):
    for name in (".", "..", "/", "x/.."):
        assert ca("init", "--development", "--out", name, cwd=tmp_path, check=False).returncode == 2
        trusting = ("trust", "anchor.json", "--media", "media", "--state", name)
        assert ca(*trusting, cwd=tmp_path, check=False).returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("typed", [b"\x04", b"\xff\n", b"\n"])
def test_what_is_no_passphrase_is_refused_as_one_and_makes_nothing(typed, tmp_path):
    """End of input, bytes that are no text, nothing at all."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "appliance.cli.main", "ca", "init", "--out", str(tmp_path / "ca")]
    process = subprocess.Popen(["setsid", "-c", "-w", *command], stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen = b""
    while b"passphrase for" not in seen:
        seen += os.read(parent, 4096)
    os.write(parent, typed)
    with contextlib.suppress(OSError):  # the terminal closes with its process
        while chunk := os.read(parent, 4096):
            seen += chunk
    assert process.wait(300) == 1
    assert b"TRUST_PASSPHRASE" in seen, seen
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_on_a_terminal_the_passphrase_is_asked_for_twice_and_never_echoed(tmp_path):
    parent, child = pty.openpty()
    # setsid -c makes the pseudo-terminal the controlling one, which getpass opens
    command = [
        "setsid",
        "-c",
        "-w",
        sys.executable,
        "-m",
        "appliance.cli.main",
        "ca",
        "init",
        "--recipes",
        str(RECIPES),
    ]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "ca")], stdin=child, stdout=child, stderr=child)
    os.close(child)
    seen = b""
    for prompt in (b"passphrase for", b"once more:"):
        while prompt not in seen:
            seen += os.read(parent, 4096)
        os.write(parent, b"s3cret words\n")
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk
    except OSError:
        pass  # the terminal closes with its process
    assert process.wait(300) == 0, seen
    assert b"s3cret" not in seen
    assert b"ENCRYPTED" in (tmp_path / "ca/keys/signing-1.pem").read_bytes()


def test_every_trust_code_has_a_remedy_that_names_existing_verbs():
    """A remedy that sends a person to a command which does not exist is worse than none."""
    import re

    from typer.main import get_command

    from appliance.cli.ca import app

    verbs = set(get_command(app).commands)
    for entry in catalogue().values():
        for verb in re.findall(r"`appliance ca ([a-z]+)", entry.remedy):
            assert verb in verbs, entry.code
    assert Path(RECIPES / "README.md").is_file()
