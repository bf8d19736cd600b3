"""TLS certificates for the zone's servers and clients: issue, renew, revoke, and the revocation list."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, ConfigDict

from appliance import documents
from appliance.errors import DocumentError, FileError, TrustError
from appliance.files import read_regular, translated, write_atomic
from appliance.trust import certificates as x
from appliance.trust import keys
from appliance.trust.authority import Authority

TlsProfile = Literal["tls-server", "tls-client"]
TLS_PROFILES: tuple[TlsProfile, ...] = ("tls-server", "tls-client")
ROOTS_NAME = "ca.pem"
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(\*\.)?{_LABEL}(\.{_LABEL})*")  # RFC 1123, with the names of services
_MAX_NAME = 64  # characters of a common name (RFC 5280 appendix A.1)


@dataclass(frozen=True)
class TlsIdentity:
    """A certificate with its key.

    Attributes:
        certificate_pem: the certificate followed by its issuing authority.
        key_pem: the private key, PKCS#8, in the clear: its file's mode protects it.
        ca_pem: the roots that a peer must trust.
        certificate: the certificate itself.
    """

    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    certificate: x509.Certificate

    def write(self, directory: Path, name: str) -> None:
        """Write `<name>.key` (mode 0600), `<name>.pem` and `ca.pem` (`ROOTS_NAME`)."""
        with translated(directory):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / f"{name}.key", self.key_pem, mode=0o600)
        write_atomic(directory / f"{name}.pem", self.certificate_pem)
        write_atomic(directory / ROOTS_NAME, self.ca_pem)


class Revoked(BaseModel):
    """A revoked TLS certificate: serial (hex) and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serial: str
    at: datetime


def issue_tls(
    authority: Authority | Path,
    profile: TlsProfile,
    name: str,
    *,
    sans: Sequence[str] = (),
    at: datetime | None = None,
    lifetime: timedelta | None = None,
) -> TlsIdentity:
    """Issue a TLS certificate with a fresh key; the authority keeps a copy of the certificate, never of the key.

    Args:
        authority: the authority or its folder.
        profile: `tls-server` (needs at least one SAN) or `tls-client`.
        name: common name.
        sans: DNS names and IP addresses.
        at: start of validity; None takes the clock.
        lifetime: None takes the profile's.

    Raises:
        TrustError: TRUST_TLS_NAMES, and what `Authority` raises.
    """
    opened = Authority.open(authority) if isinstance(authority, Path) else authority
    now = (at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    if profile == "tls-server" and not sans:
        raise TrustError("TRUST_TLS_NAMES", "a server certificate needs a host name or address", profile=profile)
    if not 1 <= len(name) <= _MAX_NAME or "/" in name:
        raise TrustError("TRUST_TLS_NAMES", f"a certificate's own name has 1 to {_MAX_NAME} characters and no slash")
    if f"{name}.pem" == ROOTS_NAME:
        raise TrustError("TRUST_TLS_NAMES", f"{ROOTS_NAME} holds the roots: the certificate needs another name")
    issuer = opened.current("tls", now)
    issuer_certificate = opened.certificate(issuer.name)
    key = keys.generate()
    certificate = x.end_entity_certificate(
        key.public_key(),
        name,
        [x.Usage.TLS_SERVER if profile == "tls-server" else x.Usage.TLS_CLIENT],
        [_alternative_name(san) for san in sans],
        x.Issuer(issuer_certificate, opened.keys.load(issuer.name)),
        at=now,
        lifetime=min(lifetime or opened.state.profiles.certificates[profile].span, issuer.end - now),
    )
    own = certificate.public_bytes(Encoding.PEM)
    _issued(opened).mkdir(exist_ok=True)
    write_atomic(_issued(opened) / f"{certificate.serial_number:x}.pem", own)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsIdentity(own + issuer_certificate.public_bytes(Encoding.PEM), key_pem, tls_roots(opened), certificate)


def renew_tls(authority: Authority, name: str, *, at: datetime) -> TlsIdentity:
    """Issue the successor of the newest certificate of a name: same profile and SANs, fresh key.

    Raises:
        TrustError: TRUST_TLS_UNKNOWN.
    """
    known = [each for each in issued_tls(authority) if common_name(each) == name]
    if not known:
        raise TrustError("TRUST_TLS_UNKNOWN", f"no TLS certificate was issued for {name!r}", name=name)
    newest = max(known, key=lambda each: each.not_valid_before_utc)
    usages = newest.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    profile: TlsProfile = "tls-server" if ExtendedKeyUsageOID.SERVER_AUTH in usages else "tls-client"
    return issue_tls(authority, profile, name, sans=alternative_names(newest), at=at)


def issued_tls(authority: Authority) -> list[x509.Certificate]:
    """Every TLS certificate the authority has issued.

    Raises:
        TrustError: TRUST_AUTHORITY_DAMAGED.
    """
    paths = sorted(_issued(authority).glob("*.pem"))
    try:
        return [x509.load_pem_x509_certificate(read_regular(path, max_bytes=64 * 1024)) for path in paths]
    except ValueError as error:
        raise TrustError("TRUST_AUTHORITY_DAMAGED", f"issued/: {error}", path=str(authority.path)) from None


def revoked_tls(authority: Authority) -> list[Revoked]:
    """The revoked TLS certificates.

    Raises:
        TrustError: TRUST_AUTHORITY_DAMAGED.
    """
    try:
        listed = documents.read_json(_read_revoked(authority), what="revoked.json")
        return [documents.validate(Revoked, each, what="revoked.json") for each in listed]
    except (DocumentError, TypeError) as error:
        raise TrustError("TRUST_AUTHORITY_DAMAGED", f"revoked.json: {error}", path=str(authority.path)) from None


def revoke_tls(authority: Authority, serials: Sequence[str], *, now: datetime) -> None:
    """Put issued TLS certificates on the revocation list, all or none; a second time changes nothing.

    Raises:
        TrustError: TRUST_TLS_UNKNOWN.
    """
    issued = {f"{each.serial_number:x}" for each in issued_tls(authority)}
    for serial in serials:
        if serial not in issued:
            raise TrustError("TRUST_TLS_UNKNOWN", f"no TLS certificate with serial {serial} was issued", serial=serial)
    present = revoked_tls(authority)
    known = {each.serial for each in present}
    present += [Revoked(serial=serial, at=now) for serial in dict.fromkeys(serials) if serial not in known]
    data = documents.write_json([each.model_dump(mode="json") for each in present])
    write_atomic(authority.path / "revoked.json", data)


def revocation_list(authority: Authority, *, now: datetime) -> bytes:
    """The CRL of every generation of the TLS authority (RFC 5280 section 5), PEM."""
    now = now.astimezone(UTC).replace(microsecond=0)
    revoked, issued = revoked_tls(authority), {f"{c.serial_number:x}": c for c in issued_tls(authority)}
    lists = b""
    for instance in authority.state.instances:
        if instance.service != "tls" or (instance.end <= now and not authority.keys.has(instance.name)):
            continue  # of a retired generation nothing is valid any more, and its key may be gone
        certificate = authority.certificate(instance.name)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(certificate.subject)
            .last_update(now)
            .next_update(now + authority.state.profiles.revocation_list.span)
            .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                critical=False,
            )
        )
        for each in revoked:
            if each.serial in issued and issued[each.serial].issuer == certificate.subject:
                entry = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16)).revocation_date(each.at)
                builder = builder.add_revoked_certificate(entry.build())
        lists += builder.sign(authority.keys.load(instance.name), hashes.SHA256()).public_bytes(Encoding.PEM)
    return lists


def tls_roots(authority: Authority) -> bytes:
    """Every root a TLS peer may meet, PEM."""
    roots = [each for each in authority.state.instances if each.service == "root"]
    return b"".join(authority.certificate(each.name).public_bytes(Encoding.PEM) for each in roots)


def common_name(certificate: x509.Certificate) -> str:
    """The subject's common name."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def alternative_names(certificate: x509.Certificate) -> list[str]:
    """The SANs as they were given."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _alternative_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        if _HOST.fullmatch(text) is None:
            raise ValueError("labels of 1 to 63 letters, digits and hyphens, with points between")
        return x509.DNSName(text)
    except ValueError as error:
        raise TrustError("TRUST_TLS_NAMES", f"{text!r} is neither a host name nor an address: {error}") from None


def _issued(authority: Authority) -> Path:
    return authority.path / "issued"


def _read_revoked(authority: Authority) -> bytes:
    try:
        return read_regular(authority.path / "revoked.json", max_bytes=documents.MAX_BYTES)
    except FileError as error:
        if error.code == "FILE_MISSING":
            return b"[]"
        raise
