"""TLS certificates for the zone's servers and clients, from the TLS authority."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.errors import TrustError
from appliance.trust import certificates as x
from appliance.trust import keys
from appliance.trust.authority import Authority

TlsProfile = Literal["tls-server", "tls-client"]


@dataclass(frozen=True)
class TlsIdentity:
    """A certificate with its key.

    Attributes:
        certificate_pem: the certificate followed by its issuing authority.
        key_pem: the private key, PKCS#8, in the clear: its file's mode protects it.
        ca_pem: the root that a peer must trust.
        certificate: the certificate itself.
    """

    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    certificate: x509.Certificate

    def write(self, directory: Path, name: str) -> None:
        """Write `<name>.pem`, `<name>.key` (mode 0600) and `ca.pem`."""
        from appliance.files import write_atomic

        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / f"{name}.key", self.key_pem, mode=0o600)
        write_atomic(directory / f"{name}.pem", self.certificate_pem)
        write_atomic(directory / "ca.pem", self.ca_pem)


def issue_tls(
    authority: Authority | Path,
    profile: TlsProfile,
    name: str,
    *,
    sans: Sequence[str] = (),
    at: datetime | None = None,
    lifetime: timedelta | None = None,
) -> TlsIdentity:
    """Issue a TLS certificate with a fresh key.

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
    pem = certificate.public_bytes(Encoding.PEM) + issuer_certificate.public_bytes(Encoding.PEM)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return TlsIdentity(pem, key_pem, tls_roots(opened), certificate)


def tls_roots(authority: Authority) -> bytes:
    """Every root a TLS peer may meet, PEM."""
    roots = [each for each in authority.state.instances if each.service == "root"]
    return b"".join(authority.certificate(each.name).public_bytes(Encoding.PEM) for each in roots)


def _alternative_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        if not text or " " in text or "/" in text:
            raise ValueError("not a host name")
        return x509.DNSName(text)
    except ValueError as error:
        raise TrustError("TRUST_TLS_NAMES", f"{text!r} is neither a host name nor an address: {error}") from None
