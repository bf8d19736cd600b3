"""An authority, a trust store and signers for tests: built once for a session, fast to use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.trust.authority import Authority
from appliance.trust.ceremony import create_authority
from appliance.trust.profiles import read_recipes
from appliance.trust.repository import TRUSTED_ROOT, Repository
from appliance.trust.signing import Signer, open_signer
from appliance.trust.store import TrustStore
from appliance.trust.tls import TlsIdentity, issue_tls
from appliance.trust.verification import TrustMaterial

RECIPES = Path(__file__).parents[2] / "ca"


@dataclass(frozen=True)
class DevelopmentAuthority:
    """A development authority in a temporary folder."""

    path: Path

    @property
    def repository(self) -> Path:
        """The TUF repository: `source` of a TrustStore."""
        return self.path / "repository"

    @property
    def anchor(self) -> bytes:
        """`anchor.json`."""
        return (self.path / "anchor.json").read_bytes()

    @property
    def material(self) -> TrustMaterial:
        """What verification needs, straight from the authority (a host gets it through a TrustStore)."""
        repository = Repository(Authority.open(self.path))
        return TrustMaterial(repository.target(TRUSTED_ROOT), repository.policy())

    def signer(self, role: str, *, identity: str | None = None, at: datetime | None = None) -> Signer:
        """A role's signer."""
        return open_signer(self.path, role, identity=identity, at=at)

    def store(self, directory: Path, *, now: datetime | None = None) -> TrustStore:
        """A host's trust store, initialised from this authority."""
        return TrustStore.initialise(directory, self.anchor, self.repository, now=now or datetime.now(UTC))

    def tls_server(self, *names: str, at: datetime | None = None, lifetime: timedelta | None = None) -> TlsIdentity:
        """A server certificate for host names and addresses."""
        sans = names or ("localhost", "127.0.0.1")
        return issue_tls(self.path, "tls-server", sans[0], sans=sans, at=at, lifetime=lifetime)

    def tls_client(self, name: str) -> TlsIdentity:
        """A client certificate."""
        return issue_tls(self.path, "tls-client", name)


def make_authority(path: Path, *, now: datetime | None = None) -> DevelopmentAuthority:
    """A fresh development authority; `now` sets its birth."""
    create_authority(path, read_recipes(RECIPES), development=True, now=now or datetime.now(UTC))
    return DevelopmentAuthority(path)


_made: dict[Path, DevelopmentAuthority] = {}


def development_authority(tmp_path_factory) -> DevelopmentAuthority:
    """One authority for the whole test session. Tests that change it make their own with `make_authority`."""
    base = tmp_path_factory.getbasetemp()
    if base not in _made:
        _made[base] = make_authority(tmp_path_factory.mktemp("authority") / "ca")
    return _made[base]
