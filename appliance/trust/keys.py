"""Private keys of the authority: made, kept (encrypted where there is a passphrase), found by name.

All keys are ECDSA on P-256. Signatures are normalised to low S, so that nobody can turn one valid signature into
another (the verifier refuses high S).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from appliance.errors import FileError, TrustError
from appliance.files import read_regular, write_atomic
from appliance.trust.encryption import encrypted_pem

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_MAX_KEY_BYTES: Final = 16 * 1024

Passphrase = Callable[[str], bytes | None]
PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def no_passphrase(_name: str) -> bytes | None:
    """Keys are kept in the clear (development)."""
    return None


def generate() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def sign(key: PrivateKey, data: bytes) -> bytes:
    """ECDSA over SHA-256 of `data`, DER-encoded, low S."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return encode_dss_signature(r, min(s, P256_ORDER - s))


def is_canonical(signature: bytes) -> bool:
    """Whether an ECDSA P-256 signature is strict DER with low S: the one form our signers write."""
    try:
        r, s = decode_dss_signature(signature)
    except ValueError:
        return False
    return 0 < r < P256_ORDER and 0 < s <= P256_ORDER // 2 and encode_dss_signature(r, s) == signature


def verifies(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether a signature is in canonical form and is this key's over `data`."""
    if not is_canonical(signature):
        return False
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def public_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 6962 section 3.2)."""
    return hashlib.sha256(public_der(key)).digest()


def read_public_key(path: Path) -> PublicKey:
    """Read a public key (PEM) that a key's holder has handed in.

    Raises:
        FileError: see `files.read_regular`.
        TrustError: TRUST_KEY_UNUSABLE.
    """
    try:
        key = serialization.load_pem_public_key(read_regular(path, max_bytes=_MAX_KEY_BYTES))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError("TRUST_KEY_UNUSABLE", f"{path} is not a public key: {error}", path=str(path)) from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("TRUST_KEY_UNUSABLE", f"{path} is not an ECDSA key on P-256", path=str(path))
    return key


@dataclass(frozen=True)
class KeyRing:
    """Where the authority's private keys are found.

    Attributes:
        directory: `<name>.pem` files, PKCS#8.
        passphrase: asked for a key's passphrase by name; None means the key is in the clear.
        elsewhere: name -> a file on removable media, or a key held by a token, for keys that are kept offline.
    """

    directory: Path
    passphrase: Passphrase = no_passphrase
    elsewhere: Mapping[str, Path | PrivateKey] = field(default_factory=dict)
    _decrypted: dict[bytes, PrivateKey] = field(default_factory=dict, repr=False, compare=False)  # by the file's bytes

    def path(self, name: str) -> Path:
        """The file a key is expected in."""
        place = self.elsewhere.get(name)
        return place if isinstance(place, Path) else self.directory / f"{name}.pem"

    def has(self, name: str) -> bool:
        """Whether the key can be reached here and now."""
        return isinstance(self.elsewhere.get(name), ec.EllipticCurvePrivateKey) or self.path(name).is_file()

    def make(self, name: str) -> PrivateKey:
        """Make a key and keep it (mode 0600), encrypted where there is a passphrase. Never replaces one.

        Raises:
            FileError: FILE_EXISTS.
        """
        if self.path(name).exists():
            raise FileError("FILE_EXISTS", f"{self.path(name)} exists already", path=str(self.path(name)))
        key = generate()
        self.keep(name, key)
        return key

    def keep(self, name: str, key: PrivateKey) -> None:
        """Write a key's file (mode 0600), encrypted where there is a passphrase.

        Raises:
            TrustError: TRUST_PASSPHRASE for an empty one, which would protect nothing.
        """
        secret = self.passphrase(name)
        if secret is None:
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        elif secret:
            pem = encrypted_pem(key, secret)
        else:
            raise TrustError("TRUST_PASSPHRASE", f"the passphrase of key {name} is empty", key=name)
        self.path(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self.path(name), pem, mode=0o600)

    def load(self, name: str) -> PrivateKey:
        """Read a key.

        Raises:
            TrustError: TRUST_KEY_MISSING, TRUST_KEY_LOCKED (no or wrong passphrase), TRUST_KEY_UNUSABLE.
        """
        held = self.elsewhere.get(name)
        if isinstance(held, ec.EllipticCurvePrivateKey):
            return held
        path = self.path(name)
        try:
            pem = read_regular(path, max_bytes=_MAX_KEY_BYTES)
        except FileError as error:
            raise TrustError("TRUST_KEY_MISSING", f"no key {name} here ({error.cause})", key=name) from None
        if pem in self._decrypted:  # a passphrase is slow to try on purpose, and one signature takes six keys
            return self._decrypted[pem]
        try:
            key = serialization.load_pem_private_key(pem, self.passphrase(name) if b"ENCRYPTED" in pem else None)
        except TypeError:
            raise TrustError(
                "TRUST_KEY_LOCKED", f"key {name} is encrypted; no passphrase was given", key=name
            ) from None
        except ValueError as error:
            code = "TRUST_KEY_LOCKED" if b"ENCRYPTED" in pem else "TRUST_KEY_UNUSABLE"
            raise TrustError(code, f"key {name} cannot be read: {error}", key=name) from None
        except UnsupportedAlgorithm as error:
            raise TrustError("TRUST_KEY_UNUSABLE", f"key {name}: {error}", key=name) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise TrustError("TRUST_KEY_UNUSABLE", f"key {name} is not an ECDSA key on P-256", key=name)
        self._decrypted[pem] = key
        return key
