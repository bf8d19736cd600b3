"""Two-person approval: two officers sign the same facts about one case, each with the journal's head as they saw it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.artifact import Sha256
from appliance.errors import ApplianceError, DocumentError, IntakeError, TrustError
from appliance.files import sha256_hex
from appliance.intake.case import Case
from appliance.intake.journal import Checked, encoded
from appliance.registry.registry import Registry
from appliance.trust.verification import TrustMaterial, Verdict, disowned, verify_artifact, verify_statement

REQUIRED = 2
ROLE = "import-officer"
KIND = "admission"
TYPE = "https://appliance.internal/admission/v1"


class Approval(BaseModel):
    """The statement `admission`.

    Attributes:
        case, report: which case, and the SHA-256 of its report.
        name, version, digest: what will be signed for the zone.
        journal_head: the journal's head before this approval; cutting lines below it off is seen for ever.
        approved: when, RFC 3339, UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type_: Annotated[Literal["https://appliance.internal/admission/v1"], Field(alias="_type")]
    case: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    report: Sha256
    name: str
    version: str
    digest: Sha256
    journal_head: Sha256
    approved: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


def statement(case: Case, journal_head: str, *, at: datetime) -> bytes:
    """What an officer signs."""
    return documents.write_json(
        {
            "_type": TYPE,
            "case": case.identity,
            "report": _report(case),
            "name": case.report["name"],
            "version": case.report["version"],
            "digest": case.artifact.digest,
            "journal_head": journal_head,
            "approved": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


def details(signed: bytes, bundle: bytes) -> dict[str, str]:
    """An approval as the journal keeps it."""
    return {"statement": encoded(signed), "bundle": encoded(bundle)}


def check(signed: bytes, bundle: bytes, case: Case, *, material: TrustMaterial, at: datetime) -> Verdict:
    """Verify one approval of a case.

    Raises:
        TrustError: the signature or the signer.
        IntakeError: INTAKE_APPROVAL where it approves something else.
    """
    return _check(signed, bundle, case, material=material, at=at)[0]


def officers(
    journal: Checked, case: Case, heads: set[str], *, material: TrustMaterial, at: datetime
) -> tuple[str, ...]:
    """Who has approved a case, each verified again; whoever the zone has given up since counts no more.

    Args:
        journal: verified.
        case: the case.
        heads: every head the journal has had.
        material: the zone's trust.
        at: the checked time.

    Raises:
        IntakeError: INTAKE_APPROVAL, INTAKE_JOURNAL_BROKEN where an officer saw lines that are gone.
        TrustError: a signature.
    """
    found: list[str] = []
    for line in journal.lines:
        if line.case != case.identity or line.event != "approved":
            continue
        signed, bundle = _decoded(line.details)
        try:
            verdict, approval = _check(signed, bundle, case, material=material, at=at)
        except TrustError as error:
            if not disowned(error, KIND, material.policy):
                raise
            continue
        if approval.journal_head not in heads:
            raise IntakeError(
                "INTAKE_JOURNAL_BROKEN", "an officer signed over journal lines that are gone", line=line.number
            )
        if verdict.identity not in found:
            found.append(verdict.identity)
    return tuple(found)


@dataclass(frozen=True)
class Signed:
    """An approval as it was signed, verified.

    Attributes:
        line: its number in the journal.
        officer: who signed.
        journal_head: what the officer saw; by it cut-off lines are told.
        digest: of the artifact approved.
    """

    line: int
    officer: str
    journal_head: str
    digest: str


def signed(journal: Checked, *, material: TrustMaterial, at: datetime) -> list[Signed]:
    """Every approval of every case.

    An officer who left, or whose key was given up, signed in due form when the line was written; what was seen then
    stays evidence.

    Raises:
        TrustError: a signature.
        IntakeError: INTAKE_APPROVAL for one that cannot be read.
    """
    found = []
    for line in journal.lines:
        if line.event == "approved":
            words, bundle = _decoded(line.details)
            try:
                signer = verify_statement(words, bundle, kind=KIND, material=material, at=at).identity
            except TrustError as error:
                if not disowned(error, KIND, material.policy):
                    raise
                signer = str(error.evidence["identity"])
            approval = documents.validate(Approval, documents.read_json(words, what="approval"), what="approval")
            found.append(Signed(line.number, signer, approval.journal_head, approval.digest))
    return found


def carried_around(
    registry: Registry, approvals: Iterable[Signed], *, material: TrustMaterial, at: datetime
) -> list[str]:
    """What an import officer signed and no two approved: whoever holds that role's key can sign without a case.

    Args:
        registry: every complete version of it is read.
        approvals: of the journal; see `signed`.
        material: the zone's trust.
        at: the checked time.

    Returns:
        `NAME VERSION` of each, with its signer.
    """
    officers: dict[str, set[str]] = {}
    for each in approvals:
        officers.setdefault(each.digest, set()).add(each.officer)
    found = []
    for one in (*registry.versions("router"), *registry.versions("encoder")):
        if one.complete:
            artifact = registry.fetch(one.name, one.version, kind=one.kind)
            try:
                verdict = verify_artifact(artifact, material=material, at=at)
            except ApplianceError:
                continue  # no host loads it either
            if verdict.role == ROLE and len(officers.get(artifact.digest, ())) < REQUIRED:
                found.append(f"{one.name} {one.version} (signed by {verdict.identity})")
    return found


def _check(
    signed: bytes, bundle: bytes, case: Case, *, material: TrustMaterial, at: datetime
) -> tuple[Verdict, Approval]:
    verdict = verify_statement(signed, bundle, kind=KIND, material=material, at=at)
    approval = documents.validate(Approval, documents.read_json(signed, what="approval"), what="approval")
    same = (approval.case, approval.report, approval.digest, approval.name, approval.version) == (
        case.identity,
        _report(case),
        case.artifact.digest,
        case.report["name"],
        case.report["version"],
    )
    if not same or verdict.role != ROLE:
        raise IntakeError("INTAKE_APPROVAL", f"{verdict.identity} approved something else", case=case.identity)
    return verdict, approval


def _report(case: Case) -> str:
    return sha256_hex(documents.write_json(case.report))


def _decoded(kept: dict[str, Any]) -> tuple[bytes, bytes]:
    try:
        return base64.b64decode(kept["statement"], validate=True), base64.b64decode(kept["bundle"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error, DocumentError):
        raise IntakeError("INTAKE_APPROVAL", "the journal holds an approval that cannot be read") from None
