"""The anchor: what reaches the zone by the second channel, as a file or as its SHA-256.

It carries the TUF root (for the full verifier), the certificate chains and the release signer's identity (for stage
0, which has nothing but `openssl`), and the versions that were current when it was written, below which no trust
metadata is accepted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.files import read_regular
from appliance.trust.authority import Authority
from appliance.trust.names import domain_of, service_url, statement_type
from appliance.trust.peers import all_anchors
from appliance.trust.repository import Repository
from appliance.trust.trusted_root import Chain, parse_rfc3339, rfc3339

_MAX_BYTES = 256 * 1024
RELEASE_ROLE = "release-signer"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ReleaseSigner(_Document):
    """Who signs releases: certificate SAN, issuer, chain (PEM, issuing certificate first, root last)."""

    identity: str
    issuer: str
    certificate_chain: tuple[str, ...]


class Anchor(_Document):
    """`anchor.json`.

    Attributes:
        type: the document's `_type`.
        created: RFC 3339; no host that holds this anchor believes in an earlier time.
        root: TUF root metadata, its exact bytes as text.
        release: who signs releases.
        timestamp_chain: PEM, time-stamping certificate first, root last.
        lowest_versions: TUF role -> lowest metadata version to accept.
    """

    type: Literal["https://appliance.internal/anchor/v1"] = Field(alias="_type")
    schema_version: Literal[1]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    root: str
    release: ReleaseSigner
    timestamp_chain: tuple[str, ...]
    lowest_versions: dict[Literal["targets", "snapshot", "timestamp"], int]

    @property
    def created_at(self) -> datetime:
        """`created` as a time."""
        return parse_rfc3339(self.created)


def write_anchor(authority: Authority, *, now: datetime) -> bytes:
    """The anchor of an authority as it is today."""
    repository = Repository(authority)
    anchors = all_anchors(authority)
    signer = repository.policy().roles[RELEASE_ROLE].identities[0]
    chain = _newest(anchors.authorities, signer.issuer, now)
    stamps = _newest(anchors.timestampers, service_url("tsa", domain_of(signer.issuer)), now)
    anchor = Anchor(
        type=statement_type("anchor"),
        schema_version=1,
        created=rfc3339(now),
        root=repository.root_bytes().decode(),
        release=ReleaseSigner(identity=signer.identity, issuer=signer.issuer, certificate_chain=_pem(chain)),
        timestamp_chain=_pem(stamps),
        lowest_versions={role: repository.version(role) for role in ("targets", "snapshot", "timestamp")},
    )
    return documents.write_json(anchor.model_dump(mode="json", by_alias=True))


def is_announced(authority: Authority) -> bool:
    """Whether `anchor.json` carries the root in force: acts end by writing it, an interrupted one has not got there.

    Raises:
        FileError: FILE_MISSING.
        TrustError: TRUST_ANCHOR_MALFORMED.
    """
    anchor = read_anchor(read_regular(authority.path / "anchor.json", max_bytes=_MAX_BYTES))
    return anchor.root.encode() == Repository(authority).root_bytes()


def read_anchor(data: bytes) -> Anchor:
    """Parse `anchor.json`. Whether it is the right one, its SHA-256 over the second channel tells.

    Raises:
        TrustError: TRUST_ANCHOR_MALFORMED.
    """
    try:
        document = documents.read_json(data, what="anchor.json", max_bytes=_MAX_BYTES)
        anchor = documents.validate(Anchor, document, what="anchor.json")
        anchor.created_at  # noqa: B018 (a date such as 2026-02-31 fits the pattern and is none)
    except DocumentError as error:
        raise TrustError("TRUST_ANCHOR_MALFORMED", error.cause, **error.evidence) from None
    except ValueError as error:
        raise TrustError("TRUST_ANCHOR_MALFORMED", f"anchor.json: {error}") from None
    return anchor


def _newest(chains: tuple[Chain, ...], uri: str, now: datetime) -> Chain:
    """The newest chain of a name that is in use.

    Raises:
        TrustError: TRUST_AUTHORITY_EXPIRED, TRUST_PEER.
    """
    named = [chain for chain in chains if chain.uri == uri]
    if not named:
        raise TrustError("TRUST_PEER", f"releases are signed under {uri}, which is not enrolled here", name=uri)
    for chain in reversed(named):
        if chain.window.holds(now):
            return chain
    raise TrustError("TRUST_AUTHORITY_EXPIRED", f"no key of {uri} is valid at {now:%Y-%m-%d}", name=uri)


def _pem(chain: Chain) -> tuple[str, ...]:
    return tuple(each.public_bytes(Encoding.PEM).decode() for each in chain.certificates)
