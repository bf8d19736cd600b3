"""What is examined of a handed-in artifact: bytes, signature, form, tripwires, content, deeds, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.artifact import ArtifactFiles, encoder_metadata, from_files, router_metadata
from appliance.errors import IntakeError
from appliance.files import sha256_hex, sync_directory, translated, write_atomic
from appliance.intake import embedding, scanners
from appliance.intake.behaviour import Probe, check_prompts, choices, judge
from appliance.intake.conversion import convert
from appliance.intake.formats import check_formats
from appliance.intake.sandbox import Limits
from appliance.intake.scoring import score
from appliance.registry.contract import checked_name
from appliance.routers.loading import LoadedRouter
from appliance.trust.verification import TrustMaterial, Verdict, verify_artifact

_LEGACY_FORMATS = ("pickle", "skops", "torch")  # may be in a producer's hand-in, never in what the zone signs


@dataclass(frozen=True)
class RouterTrial:
    """What a handed-in router is tried on.

    Attributes:
        probe: recorded prompts of the zone's encoder.
        current: the router served today, for the comparison.
    """

    probe: Probe
    current: LoadedRouter | None = None


@dataclass(frozen=True)
class EncoderTrial:
    """What a handed-in encoder is tried on.

    Attributes:
        texts: recorded prompts.
        zone: the same through the zone's encoder of today, for the comparison.
    """

    texts: Sequence[str]
    zone: Probe | None = None


def verify(handed_in: ArtifactFiles, *, material: TrustMaterial, at: datetime) -> Verdict:
    """The producer's signature. Legacy formats pass here and nowhere else; the zone's list stands for the rest."""
    formats = (*material.policy.model_formats, *_LEGACY_FORMATS)
    lenient = replace(material, policy=material.policy.model_copy(update={"model_formats": formats}))
    verdict = verify_artifact(handed_in, material=lenient, at=at, role="producer")
    if handed_in.kind == "router":
        router_metadata(handed_in)
    else:
        encoder_metadata(handed_in)
    return verdict


def examine(
    handed_in: ArtifactFiles, trial: RouterTrial | EncoderTrial, *, quarantine: Path, limits: Limits
) -> tuple[dict[str, Any], ArtifactFiles]:
    """Examine a verified artifact.

    Args:
        handed_in: its signature is good.
        trial: of its kind.
        quarantine: a folder to make, for the tripwires.
        limits: of the confined worker.

    Returns:
        What to report, and the unsigned artifact that would be signed.

    Raises:
        IntakeError: INTAKE_SOURCE for a trial of the other kind, and the reason of a refusal.
        ArtifactError, RouterError, RegistryError: the metadata, its own loader, its name.
    """
    if isinstance(trial, RouterTrial) != (handed_in.kind == "router"):
        raise IntakeError("INTAKE_SOURCE", f"a {handed_in.kind} needs a trial of its own", kind=handed_in.kind)
    legacy = check_formats(handed_in.files)  # the rule
    if isinstance(trial, EncoderTrial):
        return _encoder(handed_in, legacy, trial, limits=limits)
    write_private(quarantine, {name: handed_in.files[name] for name in legacy})
    said = scanners.scan(quarantine, legacy)  # the tripwires, for what holds a pickle
    artifact, conversion = convert(handed_in, legacy, trial.probe, limits=limits)  # confined, and shown to agree
    metadata, prompts = router_metadata(artifact), trial.probe.prompts
    after = choices(score(artifact, prompts, limits=limits, alone=True), metadata)  # what it does, confined too
    before = choices(trial.current.scores(prompts), trial.current.metadata) if trial.current else None
    report = {
        "kind": "router",
        "name": metadata.name,
        "version": metadata.version,
        "strategy": metadata.strategy,
        "evaluation": metadata.evaluation,
        "scanners": said,
        "conversion": conversion,
        "behaviour": judge(after, before, trial.probe),
    }
    return report, artifact


def _encoder(
    handed_in: ArtifactFiles, legacy: Mapping[str, Any], trial: EncoderTrial, *, limits: Limits
) -> tuple[dict[str, Any], ArtifactFiles]:
    if legacy:
        raise IntakeError("INTAKE_FORMAT", "an encoder is ONNX; nothing of it is converted here", files=sorted(legacy))
    artifact, metadata = from_files(dict(handed_in.files)), encoder_metadata(handed_in)
    named = {metadata.network, metadata.tokenizer}
    spare = sorted(name for name in artifact.files if name not in named and name.endswith((".onnx", ".safetensors")))
    if spare:
        raise IntakeError("INTAKE_FORMAT", f"{spare[0]} is no part of the encoder", file=spare[0])
    texts = check_prompts(trial.texts)
    vectors, ms_a_text = embedding.embed(artifact, texts, limits=limits)
    report = {
        "kind": "encoder",
        "name": checked_name(metadata.name.lower()),
        "version": artifact.digest[:12],  # an encoder is known by its digest: routers name it so
        "dimensions": metadata.dimensions,
        "origin": metadata.source,
        "evaluation": metadata.fidelity,
        "scanners": {},
        "conversion": {},
        "behaviour": embedding.judge(vectors, artifact, trial.zone, ms_a_text=ms_a_text),
    }
    return report, artifact


def write_private(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files for the officer alone; a folder appears even for none."""
    with translated(folder):
        folder.mkdir(mode=0o700)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, data, mode=0o600)
        sync_directory(folder)


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Name -> SHA-256."""
    return {name: sha256_hex(data) for name, data in files.items()}
