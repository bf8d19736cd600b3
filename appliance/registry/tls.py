"""TLS to the registry and the database: one authority, one protocol version, and the keys we expect.

The context is made from nothing but what is passed in: no system authorities, no `SSL_CERT_FILE`, no
`SSLKEYLOGFILE`. A pin names a public key (RFC 7469's SHA-256 of the SubjectPublicKeyInfo), not a certificate, so that
renewal with the same key needs no new configuration; two pins bridge the change of a key.
"""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
from collections.abc import Callable
from pathlib import Path

from appliance.errors import RegistryError
from appliance.files import read_regular

RevocationLists = Callable[[], bytes | None]  # PEM, authenticated; asked at each connection
_END_OF_LIST = b"-----END X509 CRL-----"
_PIN = re.compile(r"sha256/[A-Za-z0-9+/]{43}=\Z")


def client_context(
    ca_file: Path, *, client_certificate: Path | None = None, client_key: Path | None = None
) -> ssl.SSLContext:
    """A client context that trusts one authority.

    Args:
        ca_file: the internal CA's certificates, PEM.
        client_certificate: certificate chain for mutual TLS, PEM.
        client_key: its key, PEM.

    Returns:
        A context for TLS 1.3 that checks names, validity and, strictly (RFC 5280), the chain.

    Raises:
        RegistryError: REGISTRY_TLS_SETUP where a file is missing or not what it should be.
        FileError: FILE_MISSING, FILE_NOT_REGULAR, FILE_PERMISSION.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    pem = read_regular(ca_file, max_bytes=1024 * 1024)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise RegistryError("REGISTRY_TLS_SETUP", f"{ca_file} holds no usable certificate: {error}") from None
    if (client_certificate is None) != (client_key is None):
        raise RegistryError("REGISTRY_TLS_SETUP", "mutual TLS needs a certificate and its key")
    if client_certificate is not None and client_key is not None:
        try:
            context.load_cert_chain(client_certificate, client_key)
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(
                "REGISTRY_TLS_SETUP", f"client certificate or key: {error}", path=str(client_certificate)
            ) from None
    return context


def checked_pin(pin: str) -> str:
    """Accept `sha256/<base64>`.

    Raises:
        ValueError: for any other form.
    """
    if not _PIN.match(pin):
        raise ValueError("a pin looks like sha256/ and 44 characters of base64")
    return pin


def spki_pin(certificate: bytes) -> str:
    """The pin of a certificate's public key.

    Args:
        certificate: DER.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = x509.load_der_x509_certificate(certificate).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(spki).digest()).decode("ascii")


def check_pin(certificate: bytes, pins: frozenset[str]) -> None:
    """Refuse a peer whose public key is not one of ours; without pins every key of the authority passes.

    Raises:
        RegistryError: REGISTRY_PIN_MISMATCH.
    """
    if pins and (actual := spki_pin(certificate)) not in pins:
        raise RegistryError(
            "REGISTRY_PIN_MISMATCH",
            "the server has a certificate of our authority but another key than the ones pinned",
            actual=actual,
            pinned=sorted(pins),
        )


def no_revocations() -> None:
    """The lists of who knows of none."""
    return


def check_revoked(certificate: bytes, lists: RevocationLists) -> None:
    """Refuse a peer whose certificate its authority has revoked (RFC 5280 section 5).

    The lists come with the trust metadata, which authenticate them and tell their age; a list that is past its
    `nextUpdate` still names who was revoked, and ends no connection by its age.

    Args:
        certificate: the peer's, DER.
        lists: one of each generation of the TLS authority.

    Raises:
        RegistryError: REGISTRY_CERTIFICATE_REVOKED.
    """
    pem = lists()
    if not pem:
        return
    from cryptography import x509

    peer = x509.load_der_x509_certificate(certificate)
    for part in pem.split(_END_OF_LIST)[:-1]:
        revoked = x509.load_pem_x509_crl(part + _END_OF_LIST)
        if revoked.issuer != peer.issuer:
            continue
        entry = revoked.get_revoked_certificate_by_serial_number(peer.serial_number)
        if entry is not None:
            raise RegistryError(
                "REGISTRY_CERTIFICATE_REVOKED",
                "the server shows a certificate that was revoked",
                serial=f"{peer.serial_number:x}",
                revoked_at=entry.revocation_date_utc,
            )
