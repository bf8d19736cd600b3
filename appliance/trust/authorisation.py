"""Authorisations: what a host never does of itself, done once because enough root key holders signed for it.

Two acts exist: installing an older release (`downgrade`), and lowering the time high-water mark that a wrong clock has
raised (`clock`). A token names one machine and one version, holds for days, and is used up before it takes effect.
The root role's threshold signs it; its `_type` keeps it apart from everything else these keys sign.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.trust import keys
from appliance.trust.authority import Authority
from appliance.trust.keys import PrivateKey, is_canonical
from appliance.trust.names import statement_type
from appliance.trust.repository import Repository
from appliance.trust.trusted_root import parse_rfc3339, rfc3339
from appliance.trust.tuf_api import CryptoSigner, Root, Signature

Action = Literal["downgrade", "clock"]
ACTIONS: tuple[Action, ...] = ("downgrade", "clock")
_MAX_BYTES = 64 * 1024
_MAX_VERSION = 128  # characters
_MACHINE = re.compile(r"[0-9a-f]{64}")


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Statement(_Document):
    """What is authorised.

    Attributes:
        type: the statement's `_type`.
        machine: `machine_identity()` of the one host.
        version: the release version to install, or the time (RFC 3339) to set the mark to.
        nonce: makes the token one of its kind.
    """

    type: Literal["https://appliance.internal/authorisation/v1"] = Field(alias="_type")
    schema_version: Literal[1]
    action: Action
    machine: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    version: Annotated[str, Field(min_length=1, max_length=_MAX_VERSION)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    issued: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    expires: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class _Token(_Document):
    statement: Statement
    signatures: Annotated[dict[str, str], Field(max_length=16)]


@dataclass(frozen=True)
class Authorisation:
    """A token that fits this host, act and moment."""

    action: Action
    version: str
    nonce: str


def write_token(
    authority: Authority,
    action: Action,
    *,
    machine: str,
    version: str,
    now: datetime,
    lifetime: timedelta,
    partial: bool = False,
) -> bytes:
    """Sign an authorisation with the root keys at hand.

    Args:
        authority: the authority.
        action, machine, version, lifetime: what is authorised, where, and for how long.
        now: the time of signing.
        partial: too few root keys will do: their holders add what is missing (`add_signature`).

    Raises:
        TrustError: TRUST_THRESHOLD (too few root keys are here), TRUST_TOKEN_MALFORMED (not a machine identity, or no
            version).
    """
    repository = Repository(authority)
    if not partial:
        repository.check_root_signers()
    if not _MACHINE.fullmatch(machine):
        raise TrustError("TRUST_TOKEN_MALFORMED", f"{machine[:80]!r} is not a machine identity (64 hex digits)")
    if not 1 <= len(version) <= _MAX_VERSION:
        raise TrustError("TRUST_TOKEN_MALFORMED", f"a version has 1 to {_MAX_VERSION} characters, not {len(version)}")
    statement = Statement(
        type=statement_type("authorisation"),
        schema_version=1,
        action=action,
        machine=machine,
        version=version,
        nonce=secrets.token_hex(16),
        issued=rfc3339(now),
        expires=rfc3339(now + lifetime),
    )
    payload = documents.write_json(statement.model_dump(by_alias=True))
    at_hand = [authority.keys.load(name) for name in repository.root_keys_at_hand()]
    return _token(statement, dict(_signed(key, payload) for key in at_hand))


def is_token(data: bytes) -> bool:
    """Whether bytes look like an authorisation rather than another document."""
    return data.startswith(b'{"signatures":')


def add_signature(token: bytes, key: PrivateKey) -> tuple[bytes, Statement]:
    """Add a root key holder's signature to an authorisation.

    Returns:
        The token, and what it authorises.

    Raises:
        TrustError: TRUST_TOKEN_MALFORMED.
    """
    parsed = _parse(token)
    payload = documents.write_json(parsed.statement.model_dump(by_alias=True))
    return _token(parsed.statement, {**parsed.signatures, **dict([_signed(key, payload)])}), parsed.statement


def _signed(key: PrivateKey, payload: bytes) -> tuple[str, str]:
    return str(CryptoSigner(key).public_key.keyid), keys.sign(key, payload).hex()


def _token(statement: Statement, signatures: dict[str, str]) -> bytes:
    return documents.write_json({"statement": statement.model_dump(by_alias=True), "signatures": signatures})


def check_token(
    token: bytes,
    *,
    action: Action,
    version: str,
    machine: str | None,
    root: Root,
    used: Mapping[str, Any],
    now: datetime,
) -> Authorisation:
    """Check a token against the act it is presented for. Pure.

    Args:
        token: its bytes.
        action, version: what is about to be done.
        machine: this host's identity; a host without one cannot be authorised.
        root: the trusted TUF root, whose root role's keys and threshold count.
        used: nonces that were used up on this host.
        now: the checked present.

    Raises:
        TrustError: TRUST_TOKEN_MALFORMED, TRUST_THRESHOLD, TRUST_TOKEN_ACTION, TRUST_TOKEN_MACHINE,
            TRUST_TOKEN_VERSION, TRUST_TOKEN_EXPIRED, TRUST_TOKEN_USED.
    """
    statement = _authentic(token, root)
    issued, expires = parse_rfc3339(statement.issued), parse_rfc3339(statement.expires)
    if statement.action != action:
        raise TrustError("TRUST_TOKEN_ACTION", f"the token authorises a {statement.action}, not a {action}")
    if machine is None or statement.machine != machine:
        raise TrustError(
            "TRUST_TOKEN_MACHINE", "the token is for another machine", token=statement.machine[:16], here=machine
        )
    if statement.version != version:
        raise TrustError("TRUST_TOKEN_VERSION", f"the token is for {statement.version}, not for {version}")
    if not issued - timedelta(days=1) <= now <= expires:
        raise TrustError("TRUST_TOKEN_EXPIRED", "the token does not hold now", issued=issued, expires=expires, now=now)
    if statement.nonce in used:
        raise TrustError("TRUST_TOKEN_USED", "the token was used on this host before", used=used[statement.nonce])
    return Authorisation(statement.action, statement.version, statement.nonce)


def _parse(token: bytes) -> _Token:
    """Parse a token; nothing is said about its signatures.

    Raises:
        TrustError: TRUST_TOKEN_MALFORMED.
    """
    try:
        document = documents.read_canonical_json(token, what="authorisation", max_bytes=_MAX_BYTES)
        parsed = documents.validate(_Token, document, what="authorisation")
        parse_rfc3339(parsed.statement.issued), parse_rfc3339(parsed.statement.expires)
    except DocumentError as error:
        raise TrustError("TRUST_TOKEN_MALFORMED", error.cause, **error.evidence) from None
    except ValueError as error:
        raise TrustError("TRUST_TOKEN_MALFORMED", f"authorisation: {error}") from None
    return parsed


def _authentic(token: bytes, root: Root) -> Statement:
    """Parse a token whose every signature is a root key's, enough of them."""
    parsed = _parse(token)
    statement = parsed.statement
    payload = documents.write_json(statement.model_dump(by_alias=True))
    signatures = {key_id: Signature(key_id, value) for key_id, value in parsed.signatures.items()}
    result = root.get_verification_result("root", payload, signatures)
    if not result:
        raise TrustError(
            "TRUST_THRESHOLD",
            f"the authorisation needs {result.threshold} root signatures, {len(result.signed)} hold",
            signed=sorted(result.signed),
        )
    if len(result.signed) != len(signatures) or not all(_exact(each) for each in parsed.signatures.values()):
        # a surplus signature that does not hold is no ornament: somebody has been at the token
        raise TrustError("TRUST_TOKEN_MALFORMED", "a signature of the authorisation does not hold, or is not canonical")
    return statement


def _exact(signature: str) -> bool:
    """Whether a signature is in the one form our signers write."""
    try:
        return bytes.fromhex(signature).hex() == signature and is_canonical(bytes.fromhex(signature))
    except ValueError:
        return False
