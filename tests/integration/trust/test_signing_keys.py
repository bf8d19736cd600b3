"""Who signs with keys that are locked: a passphrase file, and a token that the keys never leave."""

import contextlib
import json

import pytest
import typer
from typer.testing import CliRunner

from appliance import documents
from appliance.artifact import SIGNATURE_NAME
from appliance.cli.main import VERBS, app
from appliance.trust.names import statement_type
from appliance.trust.signing import SIGNING_SERVICES, open_signer
from appliance.trust.tokens import open_token_key
from tests.integration.trust.test_stock_tools import ModelSigning, Sigstore
from tests.support.artifacts import router_files, write
from tests.support.trust import RECIPES

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})


def appliance(*arguments, cwd, **environment):
    """Run a command in a folder; the report, or the refusal's code."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"], env=environment)
    report = json.loads(result.stdout)
    if result.exit_code:
        assert report["error"]["remedy"]
        return report["error"]["code"]
    return report


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A folder with an authority whose every key is encrypted, a host's trust state, and a packed router."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "secret").write_text("correct horse\n")
    (folder / "wrong").write_text("battery staple\n")
    appliance("ca", "init", "--recipes", RECIPES, "--passphrase-file", "secret", cwd=folder)
    place = folder / "ca/authority"
    appliance("ca", "trust", place / "anchor.json", "--media", place / "repository", "--state", "state", cwd=folder)
    write(router_files(), folder / "router")
    return folder


@pytest.mark.slow
def test_encrypted_keys_sign_promote_and_revoke_with_their_passphrase_alone(locked):
    host = {"APPLIANCE_REGISTRY": "registry", "APPLIANCE_TRUST": "state"}
    acts = (
        ("artifact", "sign", "router", "--role", "import-officer"),
        ("artifact", "promote", "default", "1.0.0"),
        ("artifact", "revoke", "default", "1.0.0"),
    )
    (locked / "registry").mkdir()
    for act in acts:
        assert appliance(*act, cwd=locked, **host) == "TRUST_PASSPHRASE"
        assert appliance(*act, "--passphrase-file", "wrong", cwd=locked, **host) == "TRUST_KEY_LOCKED"
        assert isinstance(appliance(*act, "--passphrase-file", "secret", cwd=locked, **host), dict)
        if act[1] == "sign":
            assert appliance("artifact", "verify", "router", cwd=locked, **host)["verdict"]["role"] == "import-officer"
            appliance("artifact", "publish", "router", cwd=locked, **host)


def test_every_command_that_opens_an_authority_takes_passphrases_and_keys():
    top = typer.main.get_command(app)
    for verb in VERBS:
        for name, command in _commands(verb, top.get_command(None, verb)):
            options = {option for parameter in command.params for option in parameter.opts}
            if "--authority" in options:
                assert {"--passphrase-file", "--key"} <= options, name


def _commands(name, command):
    """A command, or every command below a group, with its full name."""
    below = getattr(command, "commands", None)
    if below is None:
        return [(name, command)]
    return [found for each, inner in below.items() for found in _commands(f"{name} {each}", inner)]


@pytest.fixture(scope="module")
def token_zone(softhsm, tmp_path_factory):
    """An authority whose signing keys live in one token, and how to name them to a command."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "secret").write_text("correct horse\n")
    places = {f"{service}-1": softhsm("online", f"{service}-1") for service in SIGNING_SERVICES}
    keys = " ".join(f"{name}={uri}" for name, uri in places.items())
    arguments = ("--recipes", RECIPES, "--out", "ca", "--passphrase-file", "secret")
    appliance("ca", "init", *arguments, cwd=folder, APPLIANCE_CA_KEYS=keys)
    return folder, places


@pytest.mark.slow
def test_a_token_signs_an_artifact_and_model_signing_accepts_it(token_zone, tmp_path):
    folder, places = token_zone
    assert not {path.stem for path in (folder / "ca/keys").iterdir()} & places.keys()
    files = router_files()
    write(files, tmp_path / "router")
    sign = ("artifact", "sign", tmp_path / "router", "--authority", "ca")
    assert appliance(*sign, cwd=folder) == "TRUST_KEY_MISSING"
    half = [f"--key={name}={uri}" for name, uri in places.items() if name != "log-1"]
    assert appliance(*sign, *half, cwd=folder) == "TRUST_KEY_MISSING"
    assert not (tmp_path / "router" / SIGNATURE_NAME).exists()
    rest = " ".join(each.removeprefix("--key=") for each in half)
    appliance(*sign, f"--key=log-1={places['log-1']}", cwd=folder, APPLIANCE_CA_KEYS=rest)  # each names some of them
    bundle = (tmp_path / "router" / SIGNATURE_NAME).read_bytes()
    stock = ModelSigning(tmp_path, folder / "ca/trust_config.json")
    result = stock(files, bundle, identity="producer@appliance.internal")
    assert result.returncode == 0, result.stderr
    assert stock({**files, "model.json": b"[]"}, bundle, identity="producer@appliance.internal").returncode == 1


@pytest.mark.slow
def test_a_token_signs_a_release_and_sigstore_accepts_it(token_zone, tmp_path):
    folder, places = token_zone
    opened = {name: open_token_key(uri) for name, uri in places.items()}
    bundle = open_signer(folder / "ca", "release-signer", elsewhere=opened).sign_statement(PAYLOAD)
    stock = Sigstore(tmp_path, folder / "ca/trust_config.json")
    assert stock(PAYLOAD, bundle).returncode == 0
    assert stock(PAYLOAD.replace(b"1.2.3", b"6.6.6"), bundle).returncode == 1
