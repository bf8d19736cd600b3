"""A zone made for one run: an authority of its own, a trust store, the encoder and router signed anew, a registry.

The endurance run promotes versions and rotates certificates. An accreditor's host holds no signing key, and the zone's
own registry is none of the run's business; so what is installed is copied and signed by an authority that ends with it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from appliance import artifact
from appliance.artifact import METADATA_NAMES, SIGNATURE_NAME, ArtifactFiles
from appliance.files import write_atomic
from appliance.operations.throwaway import make_authority
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from appliance.registry.trust_source import TrustSource
from appliance.trust.authority import Authority
from appliance.trust.ceremony import rotate_service
from appliance.trust.signing import Signer, open_signer
from appliance.trust.store import TrustStore
from appliance.trust.tls import issue_tls

CHANNEL = "acceptance"


@dataclass
class Zone:
    """What a gateway of the run finds in its zone.

    Attributes:
        directory: holds all of it.
        registry: the registry's folder, as a stand-in server shows it.
        models: the names that the router chooses from.
    """

    directory: Path
    registry: Path
    models: tuple[str, ...]
    _authority: Authority
    _signer: Signer
    _router: dict[str, bytes]
    _home: Registry
    _version: int = 0

    @classmethod
    def create(cls, directory: Path, *, router: Path, encoders: tuple[Path, ...]) -> Zone:
        """Make the zone and promote the router's first version.

        Args:
            directory: an empty folder.
            router: folder of the router to copy.
            encoders: folders of the encoders to copy.
        """
        now = datetime.now(UTC)
        authority = make_authority(directory / "authority", now=now)
        anchor = (authority.path / "anchor.json").read_bytes()
        TrustStore.initialise(directory / "trust", anchor, authority.path / "repository", now=now)
        signer = open_signer(authority.path, "import-officer")
        for number, folder in enumerate(encoders):
            _place(_signed(dict(artifact.read(folder).files), signer), directory / "encoders" / str(number))
        (directory / "registry").mkdir()
        source = TrustSource(directory / "trust")
        home = Registry(DirectoryStore(directory / "registry"), material=source.material, clock=source.now)
        found = artifact.read(router)
        models = tuple(sorted(set(artifact.router_metadata(found).labels.values())))
        made = cls(directory, directory / "registry", models, authority, signer, dict(found.files), home)
        made.promote()
        return made

    @property
    def encoders(self) -> list[Path]:
        """Folders of the encoders."""
        return sorted((self.directory / "encoders").iterdir())

    def promote(self) -> str:
        """Publish the router as its next version and serve that; returns its digest."""
        self._version += 1
        name, version = METADATA_NAMES["router"], f"1.0.{self._version}"
        document = {**yaml.safe_load(self._router[name]), "name": CHANNEL, "version": version}
        made = _signed({**self._router, name: yaml.safe_dump(document, sort_keys=False).encode()}, self._signer)
        self._home.publish(made, name=CHANNEL, version=version)
        self._home.promote(CHANNEL, version, self._signer)
        self._forget(self._version - 3)
        return made.digest

    def issue(self, folder: Path, name: str) -> bytes:
        """Write a server certificate for loopback, its key and its CA; returns the CA's certificates."""
        identity = issue_tls(self._authority, "tls-server", name, sans=["127.0.0.1"])
        identity.write(folder, name)
        return identity.ca_pem

    def rotate_tls_authority(self) -> None:
        """Let a new CA issue from now on."""
        rotate_service(self._authority, "tls", now=datetime.now(UTC))

    def _forget(self, version: int) -> None:
        """Old versions go, or an hour of promotions would fill the disk."""
        shutil.rmtree(self.registry / "routers" / CHANNEL / f"1.0.{version}", ignore_errors=True)


def _signed(files: dict[str, bytes], signer: Signer) -> ArtifactFiles:
    return artifact.from_files({**files, SIGNATURE_NAME: signer.sign_artifact(files)})


def _place(made: ArtifactFiles, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in {**made.files, SIGNATURE_NAME: made.require_signature()}.items():
        write_atomic(folder / name, data)
