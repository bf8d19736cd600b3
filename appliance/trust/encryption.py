"""Private keys under a passphrase: PKCS#8 with PBES2, scrypt (RFC 7914) and AES-256-CBC.

The library's own encryption derives its key with 2,048 rounds of PBKDF2, a millisecond of one core: a copied root key
would stand as long as its passphrase stands against a graphics card. scrypt takes 16 MiB and a quarter of a second for
each guess (https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html), and is the most that a
stock `openssl pkey` still opens: its limit is 32 MiB.
"""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ObjectIdentifier

from appliance.trust.der import SEQUENCE, der, tlv

COST: Final = (2**14, 8, 5)  # N, r, p: 128 * N * r bytes of memory, p times over
_PBES2: Final = ObjectIdentifier("1.2.840.113549.1.5.13")
_SCRYPT: Final = ObjectIdentifier("1.3.6.1.4.1.11591.4.11")
_AES_256_CBC: Final = ObjectIdentifier("2.16.840.1.101.3.4.1.42")
_LABEL: Final = "ENCRYPTED PRIVATE KEY"
_LINE: Final = 64  # characters of base64


def encrypted_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:
    """A key as `ENCRYPTED PRIVATE KEY` (RFC 5958 section 3, RFC 7914 section 7), PEM."""
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    salt, start, (n, r, p) = os.urandom(16), os.urandom(16), COST
    secret = Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(start)).encryptor()
    body = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    derivation = tlv(SEQUENCE, der(_SCRYPT), tlv(SEQUENCE, der(salt), der(n), der(r), der(p)))
    cipher = tlv(SEQUENCE, der(_AES_256_CBC), der(start))
    scheme = tlv(SEQUENCE, der(_PBES2), tlv(SEQUENCE, derivation, cipher))
    text = base64.b64encode(tlv(SEQUENCE, scheme, der(body))).decode()
    lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
    return "\n".join(
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    ).encode()
