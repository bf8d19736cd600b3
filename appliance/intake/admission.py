"""`artifact admit` and `artifact approve`: a case, from quarantine to the registry.

One officer examines (quarantine, signature, formats, tripwires, conversion, behaviour), which makes a case with a
report. Two officers, two different identities, sign the same statement about it. Then, and only then, the zone signs
the converted artifact and it is published. Every step is a line of the journal; a refused source leaves nothing else.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance import documents
from appliance.artifact import SIGNATURE_NAME, ArtifactFiles, from_files, read, router_metadata
from appliance.errors import ApplianceError, IntakeError
from appliance.files import read_regular, sha256_hex, sync_directory, translated, write_atomic
from appliance.intake import approval, scanners
from appliance.intake.behaviour import Probe, choices, judge, readable
from appliance.intake.conversion import convert
from appliance.intake.formats import check_formats
from appliance.intake.journal import Journal
from appliance.intake.sandbox import Limits
from appliance.intake.scoring import score
from appliance.registry.registry import Registry
from appliance.routers.loading import LoadedRouter
from appliance.trust.signing import Signer
from appliance.trust.verification import TrustMaterial, Verdict, verify_artifact

REPORT_MAX_BYTES = 4 * 1024 * 1024
DEFAULT_LIMITS = Limits()
_LEGACY_FORMATS = ("pickle", "torch")  # may be in a producer's hand-in, never in what the zone signs


@dataclass(frozen=True)
class Case:
    """An examined source, waiting for approvals or admitted.

    Attributes:
        identity: sixteen hex digits.
        report: what the examination found, JSON.
        artifact: what would be signed.
    """

    identity: str
    report: dict[str, Any]
    artifact: ArtifactFiles


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

    def examine(
        self, source: Path, *, probe: Probe, current: LoadedRouter | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> Case:
        """Examine a source; nothing of it stays where it is refused.

        Args:
            source: the producer's artifact folder.
            probe: recorded prompts of the zone's encoder.
            current: the router served today, for the comparison.
            limits: of the confined conversion.

        Raises:
            ApplianceError: the reason for the refusal, which is in the journal too.
        """
        identity = secrets.token_hex(8)
        folder = self._folder(identity)
        with translated(folder):
            folder.mkdir(mode=0o700, parents=True)
        try:
            report, artifact = self._examine(identity, source, folder, probe, current, limits)
            _write(folder / "artifact", artifact.files)
            data = documents.write_json(report)
            write_atomic(folder / "report.json", data, mode=0o600)
            details = {"report": sha256_hex(data), "digest": artifact.digest, "source": report["source"]["digest"]}
            self.journal.append("examined", identity, details, at=self._clock())
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, ApplianceError):
                self.journal.append("refused", identity, error.as_dict()["error"], at=self._clock())
            raise
        return Case(identity, report, artifact)

    def _examine(
        self,
        identity: str,
        source: Path,
        folder: Path,
        probe: Probe,
        current: LoadedRouter | None,
        limits: Limits,
    ) -> tuple[dict[str, Any], ArtifactFiles]:
        """The steps, in the order in which less is trusted less: bytes, signature, form, scanners, content, deeds."""
        handed_in = read(source)  # (1) once, links not followed
        details = {"path": str(source)[:500], "digest": handed_in.digest, "files": sorted(handed_in.files)}
        self.journal.append("received", identity, details, at=self._clock())
        verdict = self._verify(handed_in)  # (2) the producer's signature, over these bytes
        legacy = check_formats(handed_in.files)  # (3) the rule
        quarantine = folder / "source"
        _write(quarantine, {name: handed_in.files[name] for name in legacy})
        said = scanners.scan(quarantine, legacy)  # (4) the tripwires
        artifact, conversion = convert(handed_in, legacy, probe, limits=limits)  # (5) confined, and shown to agree
        metadata = router_metadata(artifact)
        after = choices(score(artifact, probe.prompts, limits=limits), metadata)  # (6) what it does, confined too
        before = choices(current.scores(probe.prompts), current.metadata) if current else None
        behaviour = judge(after, before, probe, labels=len(metadata.labels))
        report = {
            "case": identity,
            "name": metadata.name,
            "version": metadata.version,
            "strategy": metadata.strategy,
            "evaluation": metadata.evaluation,
            "source": {
                "digest": handed_in.digest,
                "producer": verdict.identity,
                "signed_at": verdict.signed_at.isoformat(),
            },
            "scanners": said,
            "conversion": conversion,
            "behaviour": behaviour,
            "digest": artifact.digest,
            "files": {name: sha256_hex(data) for name, data in artifact.files.items()},
        }
        return documents.read_json(documents.write_json(report), what="report"), artifact

    def _verify(self, handed_in: ArtifactFiles) -> Verdict:
        """The producer's signature. Legacy formats pass here and nowhere else; the zone's list stands for the rest."""
        material = self._material()
        formats = (*material.policy.model_formats, *_LEGACY_FORMATS)
        lenient = replace(material, policy=material.policy.model_copy(update={"model_formats": formats}))
        verdict = verify_artifact(handed_in, material=lenient, at=self._clock(), role="producer")
        if handed_in.kind != "router":
            raise IntakeError("INTAKE_SOURCE", "only routers are admitted here", kind=handed_in.kind)
        router_metadata(handed_in)
        return verdict

    def case(self, identity: str) -> Case:
        """A case as it was examined, held against the journal.

        Raises:
            IntakeError: INTAKE_CASE, INTAKE_JOURNAL_BROKEN.
        """
        examined = [line for line in self.journal.verify().lines if line.case == identity and line.event == "examined"]
        folder = self._folder(identity)
        if not examined or not folder.is_dir():
            raise IntakeError("INTAKE_CASE", f"no case {identity[:32]!r} waits here", case=identity[:32])
        data = read_regular(folder / "report.json", max_bytes=REPORT_MAX_BYTES)
        artifact = read(folder / "artifact")
        if sha256_hex(data) != examined[0].details["report"] or artifact.digest != examined[0].details["digest"]:
            raise IntakeError("INTAKE_CASE", f"case {identity} was changed after it was examined", case=identity)
        return Case(identity, documents.read_json(data, what="report"), from_files(dict(artifact.files)))

    def cases(self) -> list[str]:
        """The cases that wait for approvals."""
        lines = self.journal.verify().lines
        admitted = {line.case for line in lines if line.event == "admitted"}
        return [line.case for line in lines if line.event == "examined" and line.case not in admitted]

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
        signature = signer.sign_artifact(case.artifact.files)
        signed = from_files({**case.artifact.files, SIGNATURE_NAME: signature})
        name, version = str(case.report["name"]), str(case.report["version"])
        registry.publish(signed, name=name, version=version)
        details = {
            "name": name,
            "version": version,
            "digest": signed.digest,
            "signature": sha256_hex(signature),
            "officers": list(officers),
            "registry": registry.store.location,
        }
        self.journal.append("admitted", case.identity, details, at=self._clock())
        shutil.rmtree(self._folder(case.identity), ignore_errors=True)

    def _folder(self, identity: str) -> Path:
        if len(identity) != 16 or not set(identity) <= set("0123456789abcdef"):
            raise IntakeError("INTAKE_CASE", f"{identity[:32]!r} is no case", case=identity[:32])
        return self._directory / "cases" / identity


def describe(case: Case) -> list[str]:
    """A case for a person to judge."""
    report = case.report
    lines = [
        f"case {case.identity}: {report['name']} {report['version']} ({report['strategy']})",
        f"handed in by {report['source']['producer']}, signed {report['source']['signed_at']}",
    ]
    if conversion := report["conversion"]:
        lines.append(
            f"converted from {conversion['original']} to {conversion['family']}: decides alike on"
            f" {conversion['agreement']:.2%} of {conversion['probes']} probes (behind {', '.join(conversion['walls'])})"
        )
    lines += [f"{scanner}: {said}" for scanner, said in report["scanners"].items()]
    return [*lines, *readable(report["behaviour"]), f"digest {report['digest']}"]


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files privately; a folder appears even for none."""
    with translated(folder):
        folder.mkdir(mode=0o700)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, data, mode=0o600)
        sync_directory(folder)
