"""Small router artifacts with honest metadata, for tests of what carries them."""

from __future__ import annotations

from pathlib import Path

import yaml

from appliance.artifact import SIGNATURE_NAME, ArtifactFiles, from_files
from appliance.files import sha256_hex
from appliance.trust.signing import Signer


def router_files(
    name: str = "default", version: str = "1.0.0", *, payload: bytes = b"weights", strategy: str = "knn"
) -> dict[str, bytes]:
    """The files of an unsigned router; the payload is carried, not meant to be loaded."""
    files = {"index.safetensors": payload, "model.json": b"{}"}
    metadata = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "strategy": strategy,
        "hyperparameters": {"k": 3},
        "labels": {"small": "small-model", "large": "large-model"},
        "files": {file: sha256_hex(data) for file, data in files.items()},
        "encoder_digest": "0" * 64,
        "training_data_digest": "1" * 64,
        "evaluation": {"accuracy": 0.5},
        "created": "2026-11-23T12:00:00Z",
        "minimum_appliance_version": "0.1.0",
    }
    return {**files, "router.yaml": yaml.safe_dump(metadata, sort_keys=False).encode()}


def signed(files: dict[str, bytes], signer: Signer) -> ArtifactFiles:
    """The artifact with its signature."""
    return from_files({**files, SIGNATURE_NAME: signer.sign_artifact(files)})


def write(artifact: ArtifactFiles | dict[str, bytes], folder: Path) -> Path:
    """Write an artifact's folder."""
    files = dict(artifact.files) if isinstance(artifact, ArtifactFiles) else artifact
    if isinstance(artifact, ArtifactFiles) and artifact.signature is not None:
        files[SIGNATURE_NAME] = artifact.signature
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
