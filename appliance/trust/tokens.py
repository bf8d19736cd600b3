"""Private keys that never leave a PKCS#11 token (a smart card, an HSM; SoftHSM in tests).

A token's key behaves as an ECDSA key of `cryptography`: it signs certificates, revocation lists and TUF metadata
like any other. Keys are named by RFC 7512 URIs:
`pkcs11:token=zone;object=tuf-root-1?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import load_der_public_key

from appliance.errors import FileError, TrustError
from appliance.files import read_regular

_SCHEME = "pkcs11:"


def is_token_uri(text: str) -> bool:
    """Whether a key's place is a token rather than a file."""
    return text.startswith(_SCHEME)


@dataclass(frozen=True)
class TokenUri:
    """The parts of a PKCS#11 URI that we use."""

    token: str
    label: str
    module: str
    pin: str | None


def read_uri(text: str) -> TokenUri:
    """Parse an RFC 7512 URI.

    Raises:
        TrustError: TRUST_TOKEN_KEY.
    """
    path, _, query = text.removeprefix(_SCHEME).partition("?")
    attributes = dict(part.partition("=")[::2] for part in path.split(";") if part)
    options = {name: unquote(value) for name, _, value in (each.partition("=") for each in query.split("&") if each)}
    known, asked = {"token", "object"}, {"module-path", "pin-source", "pin-value"}
    if attributes.keys() != known or not options.keys() <= asked or "module-path" not in options:
        raise TrustError(
            "TRUST_TOKEN_KEY",
            "a token's key is named pkcs11:token=NAME;object=LABEL?module-path=FILE&pin-source=file:FILE",
            given=sorted([*attributes, *options]),
        )
    pin = options.get("pin-value")
    if "pin-source" in options:
        try:
            source = Path(options["pin-source"].removeprefix("file:"))
            pin = read_regular(source, max_bytes=4096).decode("utf-8").rstrip("\r\n")
        except (FileError, UnicodeDecodeError) as error:
            raise TrustError("TRUST_TOKEN_KEY", f"the PIN cannot be read: {error}") from None
    return TokenUri(unquote(attributes["token"]), unquote(attributes["object"]), options["module-path"], pin)


def open_token_key(text: str, *, make: bool = False) -> TokenKey:
    """Open a key in a token.

    Args:
        text: the key's URI.
        make: make the key (unextractable, P-256) where the token has none of that label.

    Raises:
        TrustError: TRUST_TOKEN_KEY (module, token, PIN or key not usable).
    """
    import pkcs11
    from pkcs11.exceptions import PKCS11Error, UserAlreadyLoggedIn
    from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

    uri = read_uri(text)
    try:
        token = pkcs11.lib(uri.module).get_token(token_label=uri.token)
        try:
            session = token.open(user_pin=uri.pin, rw=make)
        except UserAlreadyLoggedIn:  # another key of this token is open: one login serves the process
            session = token.open(rw=make)
        try:
            private = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=uri.label)
        except pkcs11.NoSuchKey:
            if not make:
                raise
            parameters = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            domain = session.create_domain_parameters(pkcs11.KeyType.EC, parameters, local=True)
            _, private = domain.generate_keypair(store=True, label=uri.label)
        public_object = session.get_key(object_class=pkcs11.ObjectClass.PUBLIC_KEY, label=uri.label)
        public = load_der_public_key(encode_ec_public_key(public_object))
    except (PKCS11Error, RuntimeError, OSError) as error:
        reason = f"{type(error).__name__} {error}".strip()
        raise TrustError(
            "TRUST_TOKEN_KEY", f"the token's key cannot be used ({reason})", token=uri.token, object=uri.label
        ) from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise TrustError("TRUST_KEY_UNUSABLE", f"the token's key {uri.label} is not ECDSA on P-256")
    return TokenKey(private, public, session)


class TokenKey(ec.EllipticCurvePrivateKey):
    """An ECDSA P-256 key inside a token."""

    def __init__(self, private: Any, public: ec.EllipticCurvePublicKey, session: Any) -> None:
        self._private = private
        self._public = public
        self._session = session  # the key is usable as long as its session is open

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA over SHA-256, DER; the hash is made here, the signature in the token."""
        from pkcs11 import Mechanism

        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.SHA256):
            raise TrustError("TRUST_TOKEN_KEY", "a token's key signs SHA-256 alone")
        digest = hashes.Hash(hashes.SHA256())
        digest.update(bytes(data))
        raw = bytes(self._private.sign(digest.finalize(), mechanism=Mechanism.ECDSA))
        half = len(raw) // 2
        return utils.encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Its public key."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """Bits."""
        return self.curve.key_size

    def exchange(self, algorithm: Any, peer_public_key: Any) -> NoReturn:  # noqa: ARG002 (the interface's names)
        """Not for key agreement."""
        raise TrustError("TRUST_TOKEN_KEY", "a token's key signs, and does nothing else")

    def private_numbers(self) -> NoReturn:
        """The key does not leave its token."""
        raise TrustError("TRUST_TOKEN_KEY", "the key does not leave its token")

    def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> NoReturn:  # noqa: A002, ARG002
        """The key does not leave its token."""
        raise TrustError("TRUST_TOKEN_KEY", "the key does not leave its token")

    def __copy__(self) -> TokenKey:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenKey:
        return self
