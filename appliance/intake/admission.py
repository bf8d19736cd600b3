"""`artifact admit` and `artifact approve`: a case, from quarantine to the registry.

One officer examines (quarantine, signature, formats, tripwires, conversion, behaviour), which makes a case with a
report. Two officers, two different identities, sign the same statement about it. Then, and only then, the zone signs
the converted artifact and it is published. Every step is a line of the journal; a source that is refused, by the
examination or by an officer, leaves nothing else. What a kill leaves goes at the next examination.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance import documents
from appliance.artifact import SIGNATURE_NAME, ArtifactFiles, from_files, read
from appliance.errors import ApplianceError, IntakeError, TrustError
from appliance.files import locked, read_regular, sha256_hex, translated, write_atomic
from appliance.intake import approval
from appliance.intake.case import Case
from appliance.intake.examination import EncoderTrial, RouterTrial, digests, examine, verify, write_private
from appliance.intake.journal import Journal
from appliance.intake.sandbox import Limits
from appliance.registry.contract import SIGNATURE_MAX_BYTES
from appliance.registry.registry import Registry
from appliance.trust.signing import Signer
from appliance.trust.verification import TrustMaterial, verify_artifact

REPORT_MAX_BYTES = 4 * 1024 * 1024
DEFAULT_LIMITS = Limits()
_IDENTITY = re.compile(r"[0-9a-f]{16}\Z")
_ENDS = frozenset({"admitted", "refused"})  # a case that has such a line waits no more


class Border:
    """The import border's state: cases and journal.

    Args:
        directory: private to the officers.
        material: the zone's trust.
        clock: the checked time (UTC).
    """

    def __init__(
        self, directory: Path, *, material: Callable[[], TrustMaterial], clock: Callable[[], datetime]
    ) -> None:
        self._directory = directory
        self._material = material
        self._clock = clock
        self.journal = Journal(directory / "journal.jsonl")

    def examine(self, source: Path, trial: RouterTrial | EncoderTrial, *, limits: Limits = DEFAULT_LIMITS) -> Case:
        """Examine a source; nothing of it stays where it is refused.

        Args:
            source: the producer's artifact folder.
            trial: what it is tried on; of the artifact's kind.
            limits: of the confined worker.

        Raises:
            IntakeError: INTAKE_POLICY where nobody could approve the case.
            ApplianceError: the reason for the refusal, which is in the journal too.
        """
        self._check_policy()
        cases = self._directory / "cases"
        with translated(cases):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            cases.mkdir(mode=0o700, exist_ok=True)
        with self._alone("examining"):
            self._sweep()
            return self._examined(secrets.token_hex(8), source, trial, limits)

    def _examined(self, identity: str, source: Path, trial: RouterTrial | EncoderTrial, limits: Limits) -> Case:
        folder = self._folder(identity)
        with translated(folder):
            folder.mkdir(mode=0o700)
        try:
            report, artifact = self._examine(identity, source, folder, trial, limits)
            shutil.rmtree(folder / "source", ignore_errors=True)  # what could run waits for nobody's approval
            write_private(folder / "artifact", artifact.files)
            data = documents.write_json(report)
            write_atomic(folder / "report.json", data, mode=0o600)
            details = {"report": sha256_hex(data), "digest": artifact.digest, "source": report["source"]["digest"]}
            self.journal.append("examined", identity, details, at=self._clock())
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Exception):
                self.journal.append("refused", identity, _reason(error), at=self._clock())
            raise
        return Case(identity, report, artifact)

    def _examine(
        self, identity: str, source: Path, folder: Path, trial: RouterTrial | EncoderTrial, limits: Limits
    ) -> tuple[dict[str, Any], ArtifactFiles]:
        handed_in = read(source)  # once, links not followed; everything after works on these bytes
        details = {"path": str(source)[:500], "digest": handed_in.digest, "files": sorted(handed_in.files)}
        self.journal.append("received", identity, details, at=self._clock())
        verdict = verify(handed_in, material=self._material(), at=self._clock())
        found, artifact = examine(handed_in, trial, quarantine=folder / "source", limits=limits)
        report = {
            "case": identity,
            **found,
            "source": {
                "digest": handed_in.digest,
                "producer": verdict.identity,
                "signed_at": verdict.signed_at.isoformat(),
            },
            "digest": artifact.digest,
            "files": digests(artifact.files),
        }
        return documents.read_json(documents.write_json(report), what="report"), artifact

    def decline(self, identity: str, reason: str) -> None:
        """End a case that waits: whatever an officer read in its report, it is not admitted, and nothing of it stays.

        Args:
            identity: the case.
            reason: for the journal.

        Raises:
            IntakeError: INTAKE_CASE, INTAKE_JOURNAL_BROKEN.
        """
        folder = self._waiting(identity)
        with self._alone("approving"):
            if identity not in self.cases():
                raise _no_case(identity)
            refusal = IntakeError("INTAKE_DECLINED", reason[:1000])
            self.journal.append("refused", identity, _reason(refusal), at=self._clock())
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a kill left of earlier examinations, and say so in the journal; nobody else examines now."""
        with self._alone("approving"):
            lines, waiting = self.journal.verify().lines, set(self.cases())
            for folder in sorted((self._directory / "cases").iterdir()):
                if _IDENTITY.match(folder.name) and folder.name not in waiting:
                    shutil.rmtree(folder, ignore_errors=True)
            begun = {line.case for line in lines if line.event == "received"}
            for identity in sorted(begun - {line.case for line in lines if line.event in {"examined", *_ENDS}}):
                cut = IntakeError("INTAKE_INTERRUPTED", "the examination was killed before its end")
                self.journal.append("refused", identity, _reason(cut), at=self._clock())

    def _alone(self, act: str) -> AbstractContextManager[None]:
        """One process at a time; a killed one frees the lock."""
        return locked(self._directory / f".{act}.lock")

    def case(self, identity: str) -> Case:
        """A case as it was examined, held against the journal.

        Raises:
            IntakeError: INTAKE_CASE, INTAKE_JOURNAL_BROKEN.
        """
        lines = [line for line in self.journal.verify().lines if line.case == identity]
        examined = [line for line in lines if line.event == "examined"]
        folder = self._folder(identity)
        if any(line.event in _ENDS for line in lines):
            shutil.rmtree(folder, ignore_errors=True)  # a kill may have left it
        if not examined or not folder.is_dir():
            raise _no_case(identity)
        data = read_regular(folder / "report.json", max_bytes=REPORT_MAX_BYTES)
        artifact = read(folder / "artifact")
        if sha256_hex(data) != examined[0].details["report"] or artifact.digest != examined[0].details["digest"]:
            raise IntakeError("INTAKE_CASE", f"case {identity} was changed after it was examined", case=identity)
        return Case(identity, documents.read_json(data, what="report"), from_files(dict(artifact.files)))

    def cases(self) -> list[str]:
        """The cases that wait for approvals."""
        lines = self.journal.verify().lines
        ended = {line.case for line in lines if line.event in _ENDS}
        return [line.case for line in lines if line.event == "examined" and line.case not in ended]

    def approve(self, identity: str, signer: Signer, registry: Registry) -> tuple[tuple[str, ...], bool]:
        """Approve a case as one officer; the second approval signs and publishes it.

        Args:
            identity: the case.
            signer: the officer's.
            registry: where it is published.

        Returns:
            The identities that have approved, and whether it is now published.

        Raises:
            IntakeError: INTAKE_CASE, INTAKE_APPROVAL where this officer approved before.
            TrustError, RegistryError: the signature or the publication is refused.
        """
        self._check_policy()
        self._waiting(identity)
        with self._alone("approving"):  # the second of two at once must find the first one's approval, and one signs
            return self._approve(identity, signer, registry)

    def _approve(self, identity: str, signer: Signer, registry: Registry) -> tuple[tuple[str, ...], bool]:
        case = self.case(identity)
        before = self.journal.verify()
        officers = approval.officers(before, case, self.journal.heads(), material=self._material(), at=self._clock())
        statement = approval.statement(case, before.head, at=self._clock())
        bundle = signer.sign_statement(statement)
        verdict = approval.check(statement, bundle, case, material=self._material(), at=self._clock())
        if verdict.identity in officers and len(officers) < approval.REQUIRED:
            raise IntakeError(
                "INTAKE_APPROVAL", f"{verdict.identity} has approved already; another officer must", approved=officers
            )
        if verdict.identity not in officers:
            self.journal.append("approved", identity, approval.details(statement, bundle), at=self._clock())
            officers = (*officers, verdict.identity)
        if len(officers) < approval.REQUIRED:
            return officers, False
        self._admit(case, signer, registry, officers)
        return officers, True

    def _admit(self, case: Case, signer: Signer, registry: Registry, officers: tuple[str, ...]) -> None:
        """Sign for the zone, publish, record, and let the quarantined source go."""
        signed = self._signed(case, signer)
        name, version = str(case.report["name"]), str(case.report["version"])
        registry.publish(signed, name=name, version=version)
        details = {
            "kind": signed.kind,
            "name": name,
            "version": version,
            "digest": signed.digest,
            "signature": sha256_hex(signed.require_signature()),
            "officers": list(officers),
            "registry": registry.store.location,
        }
        self.journal.append("admitted", case.identity, details, at=self._clock())
        shutil.rmtree(self._folder(case.identity), ignore_errors=True)

    def _signed(self, case: Case, signer: Signer) -> ArtifactFiles:
        """The artifact with the zone's signature, which is kept before it is published.

        No signature comes out the same twice, and a published version never changes: an officer who goes on after a
        kill must bring the very bytes that may stand in the registry already.
        """
        kept = self._folder(case.identity) / SIGNATURE_NAME
        if kept.exists():
            signed = from_files(
                {**case.artifact.files, SIGNATURE_NAME: read_regular(kept, max_bytes=SIGNATURE_MAX_BYTES)}
            )
            with contextlib.suppress(TrustError):  # its signer may have been given up meanwhile
                verify_artifact(signed, material=self._material(), at=self._clock(), role=approval.ROLE)
                return signed
        signature = signer.sign_artifact(case.artifact.files)
        write_atomic(kept, signature, mode=0o600)
        return from_files({**case.artifact.files, SIGNATURE_NAME: signature})

    def _check_policy(self) -> None:
        """A case that nobody may approve is not begun: authorities made before approvals know no such statement."""
        roles = self._material().policy.roles
        if approval.KIND not in getattr(roles.get(approval.ROLE), "kinds", ()):
            raise IntakeError(
                "INTAKE_POLICY",
                f"no {approval.ROLE} of the zone's policy may sign the kind {approval.KIND}",
                roles={name: list(role.kinds) for name, role in roles.items()},
            )

    def _waiting(self, identity: str) -> Path:
        """A case's folder at a border that exists; one that was mistyped is not made."""
        if not (folder := self._folder(identity)).parent.is_dir():
            raise _no_case(identity)
        return folder

    def _folder(self, identity: str) -> Path:
        if not _IDENTITY.match(identity):
            raise IntakeError("INTAKE_CASE", f"{identity[:32]!r} is no case", case=identity[:32])
        return self._directory / "cases" / identity


def _no_case(identity: str) -> IntakeError:
    return IntakeError("INTAKE_CASE", f"no case {identity[:32]!r} waits here", case=identity[:32])


def _reason(error: Exception) -> dict[str, Any]:
    """Why an examination ended, for the journal: a refusal, or whatever else a stranger's file brought about."""
    if isinstance(error, ApplianceError):
        return dict(error.as_dict()["error"])
    return {"code": "OPERATION_DEFECT", "cause": f"{type(error).__name__}: {error}"[:500]}
