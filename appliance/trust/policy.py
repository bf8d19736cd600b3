"""The zone's trust policy: who may sign what, what is denied, how old an epoch may be.

It travels as the TUF target `policy.json`; `ca/policy.yaml` is the recipe it is made from.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, TrustError

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$"), AfterValidator(lambda text: text.lstrip("0") or "0")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Epoch = Annotated[int, Field(ge=0, lt=2**63)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Document):
    """A signer: the SAN of the certificate and the issuer that vouched for it."""

    identity: Text
    issuer: Text


class Role(_Document):
    """Who acts in a role, and which statement and artifact kinds the role may sign."""

    identities: tuple[Identity, ...]
    kinds: tuple[Name, ...]


class LogIndex(_Document):
    """One entry of one log; a rotated log counts from zero again, so the index alone names nothing.

    Attributes:
        log: SHA-256 of the log's public key, hex.
        index: the entry's index.
    """

    log: Sha256
    index: Annotated[int, Field(ge=0)]


class Denied(_Document):
    """What is refused although its signature is right.

    Attributes:
        certificate_serials: serial numbers of signing certificates, lower-case hex; leading zeros (`openssl` prints
            an even number of digits) say nothing.
        log_indices: entries of the transparency log.
        digests: SHA-256 of statements, or `ArtifactFiles.digest` of artifacts.
    """

    certificate_serials: tuple[Serial, ...] = ()
    log_indices: tuple[LogIndex, ...] = ()
    digests: tuple[Sha256, ...] = ()


class Policy(_Document):
    """The policy document.

    Attributes:
        roles: role -> identities and kinds; the first role that fits is the one a verdict names.
        denied: the deny-list.
        lowest_epochs: statement kind, or `kind:name`, -> lowest accepted `epoch`.
        model_formats: file formats that a router or encoder may be loaded from.
    """

    schema_version: Literal[1]
    roles: dict[Name, Role]
    denied: Denied = Denied()
    lowest_epochs: dict[Text, Epoch] = {}
    model_formats: tuple[Text, ...] = ("onnx", "safetensors", "json", "skops")

    def role_of(self, identity: str, issuer: str, kind: str, *, role: str | None = None) -> str | None:
        """The role in which this identity may sign this kind, or None.

        Args:
            role: consider this role alone.
        """
        signer = Identity(identity=identity, issuer=issuer)
        for each, entry in self.roles.items():
            if (role is None or each == role) and signer in entry.identities and kind in entry.kinds:
                return each
        return None

    def may_have_signed(self, identity: str, issuer: str, kind: str) -> bool:
        """Whether somebody who may not sign a kind today can have been allowed to.

        That is who still may (this one signature was taken back) or who left the policy altogether, vouched for by an
        issuer whose people sign the kind; not somebody who has another role, nor another authority's.
        """
        known = {each for role in self.roles.values() for each in role.identities}
        issuers = {each.issuer for role in self.roles.values() if kind in role.kinds for each in role.identities}
        left = issuer in issuers and Identity(identity=identity, issuer=issuer) not in known
        return left or self.role_of(identity, issuer, kind) is not None

    def lowest_epoch(self, kind: str, name: str | None) -> int:
        """The lowest epoch accepted of a statement kind, and of one named object of it."""
        return max(self.lowest_epochs.get(kind, 0), self.lowest_epochs.get(f"{kind}:{name}", 0))


def read_policy(data: bytes) -> Policy:
    """Parse `policy.json`.

    Raises:
        TrustError: TRUST_POLICY_MALFORMED.
    """
    try:
        return documents.validate(Policy, documents.read_json(data, what="policy.json"), what="policy.json")
    except DocumentError as error:
        raise TrustError("TRUST_POLICY_MALFORMED", error.cause, **error.evidence) from None


def write_policy(policy: Policy) -> bytes:
    """`policy.json` as it is signed."""
    return documents.write_json(policy.model_dump(mode="json"))
