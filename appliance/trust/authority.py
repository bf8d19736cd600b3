"""The zone's authority on disk: keys, certificates, two logs, and the trust repository it feeds.

Layout: `authority.json` (what exists since when), `keys/` (private), `certificates/`, `log/` (transparency), `ct/`
(certificates), `repository/` (TUF, what travels), `anchor.json` and `trust_config.json` (what is handed out).
Keys of different duties are different keys: CA root, signing authority, TLS authority, certificate log, transparency
log, time-stamping, and the TUF roles.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict

from appliance import documents
from appliance.errors import DocumentError, FileError, TrustError
from appliance.files import read_regular, write_atomic
from appliance.trust import certificates as x
from appliance.trust import timestamping
from appliance.trust.keys import KeyRing, Passphrase, PrivateKey, key_id, no_passphrase
from appliance.trust.log import MerkleLog
from appliance.trust.names import DOMAIN, service_url
from appliance.trust.profiles import Profiles, Recipes
from appliance.trust.trusted_root import Anchors, Chain, LogKey, Window

Service = Literal["root", "signing", "tls", "tsa", "log", "ct"]
_LOGS: tuple[Literal["log", "ct"], ...] = ("log", "ct")


class Instance(BaseModel):
    """One generation of a service's key: `signing-1`, `log-2`, ... and the window in which it is to be believed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    service: Service
    name: str
    start: datetime
    end: datetime


class AuthorityState(BaseModel):
    """`authority.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    development: bool
    domain: str = DOMAIN
    created: datetime
    profiles: Profiles
    instances: tuple[Instance, ...]


@dataclass
class Authority:
    """An opened authority.

    Attributes:
        path: its folder.
        keys: where its private keys are found.
        state: what exists.
    """

    path: Path
    keys: KeyRing
    state: AuthorityState

    @classmethod
    def create(
        cls,
        path: Path,
        recipes: Recipes,
        *,
        development: bool,
        now: datetime,
        domain: str = DOMAIN,
        passphrase: Passphrase = no_passphrase,
        elsewhere: Mapping[str, Path | PrivateKey] | None = None,
    ) -> Authority:
        """Make an authority in a new folder: every key, every certificate, and an empty pair of logs."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        ring = KeyRing(path / "keys", passphrase, elsewhere or {})
        created = now.astimezone(UTC).replace(microsecond=0)
        state = AuthorityState(
            development=development, domain=domain, created=created, profiles=recipes.profiles, instances=()
        )
        authority = cls(path, ring, state)
        for service in ("root", "signing", "tls", "tsa", "log", "ct"):
            authority.add_instance(service, now=created)
        authority.update()
        return authority

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        passphrase: Passphrase = no_passphrase,
        elsewhere: Mapping[str, Path | PrivateKey] | None = None,
    ) -> Authority:
        """Open an authority's folder.

        Raises:
            TrustError: TRUST_AUTHORITY_MISSING, TRUST_AUTHORITY_DAMAGED.
        """
        return cls(path, KeyRing(path / "keys", passphrase, elsewhere or {}), _read_state(path))

    def reload(self) -> None:
        """Take over what another process has changed since this one opened the authority."""
        self.state = _read_state(self.path)

    def check_clock(self, now: datetime) -> None:
        """Refuse a time before the authority was made: what is written under it would be over before it began.

        Raises:
            TrustError: TRUST_CLOCK_BEHIND.
        """
        if now < self.state.created:
            born = self.state.created
            raise TrustError(
                "TRUST_CLOCK_BEHIND",
                f"this host's clock says {now:%Y-%m-%d %H:%M}; the authority was made at {born:%Y-%m-%d %H:%M}",
                clock=now,
                at_least=born,
            )

    def add_instance(self, service: Service, *, now: datetime) -> Instance:
        """Make the next generation of a service: its key, and its certificate where it has one.

        It is not in force before `update`: who is killed on the way finds key and certificate by their names again.
        """
        number = 1 + sum(each.service == service for each in self.state.instances)
        name = f"{service}-{number}"
        key = self.keys.load(name) if self.keys.has(name) else self.keys.make(name)
        certificate = self._certificate(service, name, key, now)
        if certificate is None:
            logs = self.state.profiles.logs
            end = now + (logs.transparency if service == "log" else logs.certificates).span
        else:
            self._keep_certificate(name, certificate)
            end = certificate.not_valid_after_utc
        instance = Instance(service=service, name=name, start=now, end=end)
        self.state = self.state.model_copy(update={"instances": (*self.state.instances, instance)})
        return instance

    def update(self, **changes: object) -> None:
        """Change `authority.json`."""
        self.state = self.state.model_copy(update=changes)
        write_atomic(self.path / "authority.json", documents.write_json(self.state.model_dump(mode="json")), mode=0o600)

    def current(self, service: Service, at: datetime) -> Instance:
        """The newest generation of a service whose window holds `at`.

        Raises:
            TrustError: TRUST_AUTHORITY_EXPIRED, TRUST_CLOCK_BEHIND.
        """
        self.check_clock(at)
        for each in reversed(self.state.instances):
            if each.service == service and each.start <= at <= each.end:
                return each
        raise TrustError("TRUST_AUTHORITY_EXPIRED", f"no {service} key of the authority is valid at {at:%Y-%m-%d}")

    def certificate(self, name: str) -> x509.Certificate:
        """A certificate of the authority's own, e.g. `signing-1`.

        Raises:
            TrustError: TRUST_AUTHORITY_DAMAGED.
        """
        try:
            pem = read_regular(self.path / "certificates" / f"{name}.pem", max_bytes=64 * 1024)
            return x509.load_pem_x509_certificate(pem)
        except (FileError, ValueError) as error:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"certificate {name}: {error}", path=str(self.path)) from None

    def issue_signing_certificate(
        self, key: ec.EllipticCurvePublicKey, identity: str, *, at: datetime
    ) -> x509.Certificate:
        """A short-lived signing leaf with its SCT; the certificate log gets the entry first."""
        signing, ct = self.current("signing", at), self.current("ct", at)
        builder = x.signing_builder(
            key,
            identity,
            self.issuer,
            self.certificate(signing.name),
            at=at,
            lifetime=self.state.profiles.certificates["signer"].span,
        )
        leaf, entry = x.with_sct(builder, self.keys.load(signing.name), self.keys.load(ct.name), at=at)
        self.log("ct", at=at).append(entry)
        return leaf

    def timestamp(self, message: bytes, *, at: datetime) -> bytes:
        """An RFC 3161 token over `message`."""
        instance = self.current("tsa", at)
        key, certificate = self.keys.load(instance.name), self.certificate(instance.name)
        return timestamping.issue(key, certificate, message, at=at, serial=secrets.randbits(128) | 1 << 127)

    def log(self, name: str, *, at: datetime) -> MerkleLog:
        """The transparency log (`log`) or the certificate log (`ct`) in use at a time, or one by its name (`log-1`).

        Raises:
            TrustError: TRUST_LOG_UNKNOWN, TRUST_AUTHORITY_EXPIRED, TRUST_CLOCK_BEHIND, TRUST_KEY_MISSING and others.
        """
        known = {each.name: each for each in self.state.instances if each.service in _LOGS}
        instance = known.get(name)
        for service in _LOGS:
            if service == name:
                instance = self.current(service, at)
        if instance is None:
            raise TrustError(
                "TRUST_LOG_UNKNOWN",
                f"the authority has no log {name!r}",
                logs=sorted(known),
                remedy="Name one of the authority's logs.",
            )
        directory = self.path / instance.service / instance.name
        return MerkleLog(directory, self._url(instance.name), self.keys.load(instance.name))

    @property
    def issuer(self) -> str:
        """The issuer in whose name this authority vouches for identities."""
        return self._url("ca")

    def _url(self, service: str) -> str:
        return service_url(service, self.state.domain)

    def anchors(self) -> Anchors:
        """Every generation of every own service, as `trusted_root.json` names them."""

        def chain(each: Instance, uri: str) -> Chain:
            own = self.certificate(each.name)
            return Chain((own, self._issuer_of(own)), Window(each.start, each.end), uri)

        def logs(service: Service) -> dict[bytes, LogKey]:
            made = [each for each in self.state.instances if each.service == service]
            keys = [(each, self._public_key(each.name)) for each in made]
            return {key_id(key): LogKey(self._url(each.name), key, Window(each.start, each.end)) for each, key in keys}

        return Anchors(
            tuple(chain(each, self.issuer) for each in self.state.instances if each.service == "signing"),
            tuple(chain(each, self._url("tsa")) for each in self.state.instances if each.service == "tsa"),
            logs("log"),
            logs("ct"),
        )

    def _certificate(self, service: Service, name: str, key: PrivateKey, now: datetime) -> x509.Certificate | None:
        spans = {profile: entry.span for profile, entry in self.state.profiles.certificates.items()}
        public, title = key.public_key(), f"{self.state.domain} {name}"
        if service == "root":
            return x.root_certificate(key, title, at=now, lifetime=spans["root"])
        if service in {"log", "ct"}:
            public_path = self.path / "certificates" / f"{name}.pub.pem"
            public_path.parent.mkdir(exist_ok=True)
            write_atomic(public_path, _public_pem(public))
            return None
        issuer = self.current("root", now)
        signer = x.Issuer(self.certificate(issuer.name), self.keys.load(issuer.name))
        if service == "tsa":
            return x.end_entity_certificate(
                public, title, [x.Usage.TIME_STAMPING], [], signer,
                at=now, lifetime=spans["time-stamping"],
            )  # fmt: skip
        usages = [x.Usage.CODE_SIGNING] if service == "signing" else [x.Usage.TLS_SERVER, x.Usage.TLS_CLIENT]
        profile: Literal["signing-authority", "tls-authority"] = (
            "signing-authority" if service == "signing" else "tls-authority"
        )
        return x.issuing_certificate(public, title, usages, signer, at=now, lifetime=spans[profile])

    def _keep_certificate(self, name: str, certificate: x509.Certificate) -> None:
        path = self.path / "certificates" / f"{name}.pem"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, certificate.public_bytes(Encoding.PEM))

    def _issuer_of(self, certificate: x509.Certificate) -> x509.Certificate:
        for each in self.state.instances:
            if each.service == "root" and self.certificate(each.name).subject == certificate.issuer:
                return self.certificate(each.name)
        raise TrustError("TRUST_AUTHORITY_DAMAGED", "a certificate's root is not here", path=str(self.path))

    def _public_key(self, name: str) -> ec.EllipticCurvePublicKey:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(read_regular(self.path / "certificates" / f"{name}.pub.pem", max_bytes=4096))
        except (FileError, ValueError) as error:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"public key {name}: {error}", path=str(self.path)) from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"public key {name} is not ECDSA", path=str(self.path))
        return key


def _read_state(path: Path) -> AuthorityState:
    try:
        data = read_regular(path / "authority.json", max_bytes=documents.MAX_BYTES)
        document = documents.read_json(data, what="authority.json")
        return documents.validate(AuthorityState, document, what="authority.json")
    except FileError as error:
        raise TrustError("TRUST_AUTHORITY_MISSING", f"no authority in {path} ({error.cause})") from None
    except DocumentError as error:
        raise TrustError("TRUST_AUTHORITY_DAMAGED", error.cause, path=str(path)) from None


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
