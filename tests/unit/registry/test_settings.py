"""Settings, credentials and TLS material: what an operator gets wrong is said before any connection."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, RegistryError
from appliance.registry.homes import open_store
from appliance.registry.settings import DirectorySettings, S3Settings, read_credentials, read_settings
from appliance.registry.tls import client_context, spki_pin
from tests.support.small_authority import SmallAuthority


def test_a_directory_and_a_settings_file_open_the_same_registry(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "registry.yaml").write_text(f"registry: {{home: directory, path: {tmp_path / 'home'}}}\n")
    assert read_settings(tmp_path / "registry.yaml") == DirectorySettings(home="directory", path=tmp_path / "home")
    for location in (tmp_path / "home", str(tmp_path / "registry.yaml")):
        assert open_store(location).location == str(tmp_path / "home")


def test_paths_in_a_settings_file_count_from_its_folder_wherever_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("etc", "elsewhere"):
        (tmp_path / folder).mkdir()
    text = "registry: {home: s3, endpoint: 'h:1', bucket: abc, ca_file: tls/ca.pem, credentials_file: /k, slots: "
    text += "{postgres: {host: h, user: u, database: d, password_file: ../db.password, ca_file: ca.pem}}}"
    (tmp_path / "etc" / "registry.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = read_settings(Path("../etc/registry.yaml"))
    assert isinstance(found, S3Settings)
    assert found.ca_file.resolve() == tmp_path / "etc" / "tls" / "ca.pem"
    assert found.credentials_file == Path("/k")
    assert found.slots is not None
    assert found.slots.postgres is not None
    assert found.slots.postgres.password_file is not None
    assert found.slots.postgres.password_file.resolve() == tmp_path / "db.password"


def test_a_place_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as info:
        open_store(tmp_path / "nowhere")
    assert info.value.code == "REGISTRY_LOCATION"


@pytest.mark.parametrize(
    "text",
    [
        "registry: {home: s3}",
        "registry: {home: ftp}",
        "registry: {home: directory, path: /x, extra: 1}",
        "registry: {home: s3, endpoint: 'http://h:1', bucket: abc, ca_file: /c, credentials_file: /k}",
        "registry: {home: s3, endpoint: 'h:1', bucket: abc, ca_file: /c, credentials_file: /k, spki_pins: [x]}",
        "other: {}",
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.yaml").write_text(text)
    with pytest.raises(ApplianceError) as info:
        read_settings(tmp_path / "registry.yaml")
    assert info.value.code == "DOCUMENT_SCHEMA"


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "credentials.yaml"
    path.write_text("access_key: a\nsecret_key: s\n")
    path.chmod(0o640)
    with pytest.raises(RegistryError) as info:
        read_credentials(path)
    assert info.value.code == "REGISTRY_CREDENTIALS_OPEN"
    path.chmod(0o600)
    assert read_credentials(path).access_key == "a"
    assert repr(read_credentials(path))[-3:-2] != "s", "a secret is not printed"


def test_tls_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path) -> None:
    authority = SmallAuthority()
    certificate, key, ca = authority.issue("client", client=True).write(tmp_path, "client")
    client_context(ca, client_certificate=certificate, client_key=key)
    (tmp_path / "empty.pem").write_text("no certificate")
    for arguments in (
        {"ca_file": tmp_path / "empty.pem"},
        {"ca_file": ca, "client_certificate": certificate},
        {"ca_file": ca, "client_certificate": certificate, "client_key": tmp_path / "empty.pem"},
    ):
        with pytest.raises(RegistryError) as info:
            client_context(**arguments)
        assert info.value.code == "REGISTRY_TLS_SETUP"


def test_a_context_trusts_nothing_but_our_authority(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(SmallAuthority("Ours").pem)
    context = client_context(tmp_path / "ca.pem")
    assert [one["subject"] for one in context.get_ca_certs()] == [((("commonName", "Ours"),),)]
    assert spki_pin(context.get_ca_certs(binary_form=True)[0]).startswith("sha256/")


FULL = """
from pathlib import Path
import sys
from appliance.errors import RegistryError
from appliance.registry.directory import DirectoryStore
root = Path(sys.argv[1])
store = DirectoryStore(root)
store.put("channels/a.json", b"old")
try:
    store.put("channels/a.json", bytes(1_000_000))
except RegistryError as error:
    print(error.code)
print(store.get("channels/a.json", max_bytes=10).data.decode(), *(path.name for path in (root / "channels").iterdir()))
"""


def test_a_full_volume_is_said_and_what_was_begun_is_undone(tmp_path: Path) -> None:
    """On a real file system of 64 kB."""
    mounted = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$0" -c "$1" {tmp_path}'
    command = ["unshare", "-rm", "sh", "-c", mounted, sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["REGISTRY_NO_SPACE", "old a.json"], done.stderr
