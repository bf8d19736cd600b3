"""A root that waits for its signatures: it travels from key holder to key holder, and comes back.

The authority drafts the next TUF root; each holder signs the same draft on a machine of their own, one after the other
or each on a copy; the authority combines the signatures and enforces both thresholds, its own root's and the draft's
(TUF specification, section 6.1). No private root key ever meets another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.trust import keys
from appliance.trust.keys import PrivateKey
from appliance.trust.names import statement_type
from appliance.trust.profiles import TUF_ROLES
from appliance.trust.repository import NAME_FIELD
from appliance.trust.trusted_root import rfc3339
from appliance.trust.tuf_api import CryptoSigner, JSONSerializer, Metadata, Root, SSlibKey, refusal

_MAX_BYTES = 1024 * 1024


class _Document(BaseModel):
    """The file. Both roots are TUF metadata as text: what is signed is never written anew by us."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    type: Literal["https://appliance.internal/root-proposal/v1"] = Field(alias="_type")
    schema_version: Literal[1]
    previous: Annotated[str, Field(max_length=_MAX_BYTES)]
    proposed: Annotated[str, Field(max_length=_MAX_BYTES)]


@dataclass(frozen=True)
class Proposal:
    """A drafted root beside the one it follows.

    Attributes:
        previous: the root in force, fully signed.
        proposed: the draft, with the signatures it has so far; every one of them holds.
    """

    previous: Metadata[Root]
    proposed: Metadata[Root]

    @property
    def digest(self) -> str:
        """SHA-256 of what is signed: the number that holders read out to each other."""
        return hashlib.sha256(self.proposed.signed_bytes).hexdigest()

    def signed_by(self, root: Root) -> dict[str, str]:
        """The root keys of `root` that have signed the draft: key id -> name."""
        held = root.get_verification_result("root", self.proposed.signed_bytes, self.proposed.signatures).signed
        return {key_id: _name(key) for key_id, key in held.items()}


def write(proposal: Proposal) -> bytes:
    """The file that travels."""
    form = JSONSerializer(compact=False)
    document = _Document(
        type=statement_type("root-proposal"),
        schema_version=1,
        previous=proposal.previous.to_bytes(form).decode(),
        proposed=proposal.proposed.to_bytes(form).decode(),
    )
    return documents.write_json(document.model_dump(by_alias=True))


def read(data: bytes) -> Proposal:
    """Parse a proposal and check that it hangs together: it follows a signed root, and nobody signed it falsely.

    Raises:
        TrustError: TRUST_PROPOSAL.
    """
    try:
        document = documents.read_canonical_json(data, what="root proposal", max_bytes=2 * _MAX_BYTES)
        form = documents.validate(_Document, document, what="root proposal")
        for text in (form.previous, form.proposed):
            documents.read_json(text.encode(), what="root metadata")  # strictly: python-tuf takes the last of two keys
        previous, proposed = (Metadata[Root].from_bytes(each.encode()) for each in (form.previous, form.proposed))
        proposal = Proposal(previous, proposed)
        if not isinstance(previous.signed, Root) or not isinstance(proposed.signed, Root):
            raise TrustError("TRUST_PROPOSAL", "the proposal holds something else than two roots")
        previous.signed.verify_delegate("root", previous.signed_bytes, previous.signatures)
        holders = proposal.signed_by(previous.signed) | proposal.signed_by(proposed.signed)
    except DocumentError as error:
        raise TrustError("TRUST_PROPOSAL", error.cause, **error.evidence) from None
    except (refusal.RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise TrustError("TRUST_PROPOSAL", f"the proposal cannot be used ({reason})") from None
    if proposed.signed.version != previous.signed.version + 1:
        raise TrustError("TRUST_PROPOSAL", f"root {proposed.signed.version} does not follow {previous.signed.version}")
    if holders.keys() != proposed.signatures.keys():
        raise TrustError("TRUST_PROPOSAL", "a signature of the draft does not hold", signed=sorted(holders.values()))
    return proposal


def sign(proposal: Proposal, key: PrivateKey) -> Proposal:
    """Add one holder's signature; a copy, the given proposal stays as it is.

    Raises:
        TrustError: TRUST_KEY_UNKNOWN where neither root names the key as one of its root keys.
    """
    signer = CryptoSigner(key)
    roots = (proposal.previous.signed, proposal.proposed.signed)
    if not any(signer.public_key.keyid in root.roles["root"].keyids for root in roots):
        known = sorted({name for root in roots for name in root_key_names(root)})
        raise TrustError("TRUST_KEY_UNKNOWN", "this key is no root key, neither now nor in the draft", keys=known)
    signed = Metadata(proposal.proposed.signed, dict(proposal.proposed.signatures))
    signed.sign(signer, append=True)
    return Proposal(proposal.previous, signed)


def combine(proposals: Sequence[Proposal]) -> Proposal:
    """One proposal with the signatures of all.

    Raises:
        TrustError: TRUST_PROPOSAL where they are copies of several drafts.
    """
    first = proposals[0]
    digests = sorted({each.digest for each in proposals})
    if len(digests) != 1:
        raise TrustError("TRUST_PROPOSAL", "these are copies of several drafts", digests=digests)
    signatures = {key_id: value for each in proposals for key_id, value in each.proposed.signatures.items()}
    return Proposal(first.previous, Metadata(first.proposed.signed, signatures))


def describe(proposal: Proposal) -> dict[str, Any]:
    """What a holder must know before signing, as `--json` prints it: what the draft changes, and who has signed."""
    before, after = proposal.previous.signed, proposal.proposed.signed
    old, new = _keys(before), _keys(after)
    return {
        "root": f"{before.version} -> {after.version}",
        "expires": rfc3339(after.expires),
        "thresholds": {
            role: f"{after.roles[role].threshold} of {len(after.roles[role].keyids)}"
            + ("" if _threshold(before, role) == _threshold(after, role) else f" (was {_threshold(before, role)})")
            for role in TUF_ROLES
        },
        "keys_kept": {name: new[name] for name in sorted(new) if old.get(name) == new[name]},
        "keys_added": {name: new[name] for name in sorted(new) if old.get(name) != new[name]},
        "keys_retired": {name: old[name] for name in sorted(old) if old[name] != new.get(name)},
        "signed_by": sorted((proposal.signed_by(before) | proposal.signed_by(after)).values()),
        "still_needed": {f"of root {root.version}": _missing(proposal, root) for root in (before, after)},
        "digest": proposal.digest,
    }


def root_key_names(root: Root) -> list[str]:
    """Names of a root's root keys."""
    return [_name(root.keys[key_id]) for key_id in root.roles["root"].keyids]


def _missing(proposal: Proposal, root: Root) -> str:
    signed = proposal.signed_by(root)
    count = max(0, root.roles["root"].threshold - len(signed))
    others = sorted(set(root_key_names(root)) - set(signed.values()))
    return f"{count} of {', '.join(others)}" if count else "none"


def _keys(root: Root) -> dict[str, str]:
    """Every key of a root: role and name -> fingerprint; a key that changes its role is another key."""
    return {
        f"{role} {_name(root.keys[key_id])}": _fingerprint(root.keys[key_id])
        for role in root.roles
        for key_id in root.roles[role].keyids
    }


def _fingerprint(key: Any) -> str:
    """SHA-256 of the public key as `ca root key` prints it; another kind of key is told by its id."""
    try:
        public = load_pem_public_key(str(key.keyval["public"]).encode())
    except (KeyError, ValueError):
        return str(key.keyid)
    return keys.key_id(public).hex() if isinstance(public, keys.PublicKey) else str(key.keyid)


def _threshold(root: Root, role: str) -> str:
    return f"{root.roles[role].threshold} of {len(root.roles[role].keyids)}"


def _name(key: Any) -> str:
    """A key's name in the key ring; a key without one is told by its id."""
    return str(key.unrecognized_fields.get(NAME_FIELD, key.keyid)) if isinstance(key, SSlibKey) else str(key.keyid)
