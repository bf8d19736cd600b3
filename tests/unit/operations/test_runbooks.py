"""What all runbooks have in common."""

import re
import subprocess

import pytest

from tests.support.runbooks import SCRIPTS, Desk, runbooks

NAMES = [path.name for path in runbooks()]
CHANGING = [name for name in NAMES if "finish" in (SCRIPTS / name).read_text()]


def test_shellcheck_has_nothing_to_say():
    files = [*map(str, runbooks()), str(SCRIPTS / "lib" / "runbook.sh")]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", str(SCRIPTS), *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPTS.parent,
    )
    assert done.returncode == 0, done.stdout


def test_every_case_of_the_year_has_its_runbook():
    assert set(NAMES) == {
        "install-from-media", "roll-back", "install-units", "promote-model", "withdraw-model", "sync-now", "rotate-tls",
        "rotate-signing-roots", "renew-trust", "refresh-trust", "back-up", "restore", "replace-disk", "new-admin-key",
        "move-registry", "evacuate-signer", "collect-support", "drill", "train-router",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_how_to_call_it(name, tmp_path):
    said = Desk(tmp_path, tmp_path).done(name, "--help")
    assert f"    {name}" in said
    assert "set -euo" not in said


@pytest.mark.parametrize("name", NAMES)
def test_wrong_usage_is_told_apart_from_a_refusal(name, tmp_path):
    run = Desk(tmp_path, tmp_path)(name, "--no-such-option")
    assert run.returncode == 2
    assert "unknown option --no-such-option" in run.stderr


@pytest.mark.parametrize("name", NAMES)
def test_each_is_short(name):
    assert len((SCRIPTS / name).read_text().splitlines()) <= 75


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_something_is_dry_unless_told(name):
    """Every command that changes something goes through `run` or stands behind APPLY."""
    text = (SCRIPTS / name).read_text()
    body = re.sub(r"(?ms)^\w+\(\) \{.*?^\}|^\w+\(\) \{.*\}$", "", text)  # functions are called through run
    body = re.sub(r'(?ms)^if \[ "\$APPLY" = yes \]; then.*?^(else|fi)', "", body)
    changing = re.compile(
        r"^\s*(rm|mv|cp|ln|chown|chmod|tar -?-?(?:create|extract)"
        r"|appliance (?:ca (?:rotate|renew|refresh|revoke)|artifact (?:publish|promote|revoke|sign)"
        r"|rollback|install))\b"
        r"(?!.*--dry-run)",
        re.MULTILINE,
    )
    assert not changing.findall(body)


def test_catalogue_remedies_name_runbooks_that_exist():
    from appliance.errors import catalogue

    named = {found for entry in catalogue().values() for found in re.findall(r"`scripts/([a-z-]+)", entry.remedy)}
    assert named
    assert named <= set(NAMES)


def test_the_default_configuration_names_the_files_that_rotate_tls_writes():
    text = (SCRIPTS.parent / "bundle" / "defaults" / "appliance.yaml").read_text()
    issued = (SCRIPTS / "rotate-tls").read_text()
    for name in re.findall(r"tls/(gateway\.\w+)", text):
        assert f"$making/{name}" in issued, name


def test_what_cannot_be_done_is_refused_without_apply_too(tmp_path):
    (tmp_path / "etc").mkdir()
    run = Desk(tmp_path, tmp_path)("rotate-tls", "--authority", tmp_path / "nowhere", "--san", "x.internal")
    assert run.returncode == 1
    assert "next: name it with --authority DIR" in run.stderr
    assert Desk(tmp_path, tmp_path)("collect-support", "a.tar", "b.tar").returncode == 2
