"""Private keys on disk: what a thief of the file has to do, and that no mistake leaves one in the clear."""

import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from typer.testing import CliRunner

from appliance.cli.keyring import Passphrases
from appliance.cli.main import app
from appliance.errors import TrustError
from appliance.trust.encryption import COST
from appliance.trust.keys import KeyRing, generate, public_der
from appliance.trust.signing import open_signer


def ring(folder, secret):
    return KeyRing(folder, lambda _name: secret)


def test_a_copied_key_costs_a_thief_sixteen_mebibytes_a_guess_and_stock_openssl_opens_it(tmp_path):
    key = ring(tmp_path, b"correct horse").make("tuf-root-1")
    path = tmp_path / "tuf-root-1.pem"
    outline = subprocess.run(["openssl", "asn1parse", "-in", path], capture_output=True, text=True, check=True).stdout
    assert "PBES2" in outline
    assert "scrypt" in outline
    assert [f":{number:02X}" in outline for number in COST] == [True] * 3
    n, r, p = COST
    assert n * r * 128 >= 16 * 1024**2  # bytes
    assert p >= 5
    command = ["openssl", "pkey", "-in", path, "-passin", "pass:correct horse", "-pubout", "-outform", "DER"]
    opened = subprocess.run(command, capture_output=True, check=True).stdout
    assert opened == public_der(key.public_key())


def test_a_key_opens_with_its_passphrase_alone_also_one_of_an_earlier_version(tmp_path):
    key = generate()
    earlier = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (tmp_path / "earlier.pem").write_bytes(earlier)
    ring(tmp_path, b"secret").keep("now", key)
    for name in ("earlier", "now"):
        assert ring(tmp_path, b"secret").load(name).private_numbers() == key.private_numbers()
        for wrong in (b"Secret", None):
            with pytest.raises(TrustError) as refusal:
                ring(tmp_path, wrong).load(name)
            assert refusal.value.code == "TRUST_KEY_LOCKED"


def test_an_empty_passphrase_writes_no_key(tmp_path):
    with pytest.raises(TrustError) as refusal:
        ring(tmp_path / "keys", b"").make("tuf-root-1")
    assert refusal.value.code == "TRUST_PASSPHRASE"
    assert not (tmp_path / "keys").exists()
    ring(tmp_path / "keys", None).make("tuf-root-1")  # a development key is in the clear, on purpose


@pytest.mark.parametrize("text", [b"", b"\n \n", b"default=\n", b"tuf-root-1=a\ntuf-root-2= \n", b"\xff\xfe"])
def test_a_file_with_an_empty_or_unreadable_passphrase_is_refused_before_a_key_is_made(text, tmp_path):
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(TrustError) as refusal:
        Passphrases(tmp_path / "file")
    assert refusal.value.code == "TRUST_PASSPHRASE"


def test_a_file_of_one_passphrase_or_of_names_is_read(tmp_path):
    (tmp_path / "file").write_text("one secret\n")
    assert Passphrases(tmp_path / "file")("anything") == b"one secret"
    (tmp_path / "file").write_text("default=online\ntuf-root-1=mine=all mine\n")
    names = Passphrases(tmp_path / "file")
    assert (names("tsa-1"), names("tuf-root-1")) == (b"online", b"mine=all mine")


@pytest.mark.parametrize(
    "name", ["é@zone.example", "a\nb@c", "\x1b[2J@x", "", "nobody", "a b@c", "a<b@c>", "a(b)@c", "x" * 300 + "@c"]
)
def test_nobody_signs_under_a_name_that_a_certificate_cannot_carry(name, zone, now):
    with pytest.raises(TrustError) as refusal:
        open_signer(zone.path, "release-signer", identity=name, at=now)
    assert refusal.value.code == "TRUST_IDENTITY"
    for honest in ("release-signer@appliance.internal", "https://ci.example/release/1?a=b@c"):
        assert open_signer(zone.path, "release-signer", identity=honest, at=now).identity == honest


@pytest.mark.parametrize(
    "domain", ["../x", "a\nb.c", "UPPER.example", "nodot", "", ".example", "a-.b", "x." + "y" * 64, "x." + "y" * 47]
)
def test_an_authority_is_not_made_under_a_name_that_is_no_domain(domain, tmp_path):
    result = CliRunner().invoke(app, ["ca", "init", "--out", str(tmp_path / "ca"), "--domain", domain, "--development"])
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())
