"""The import border for tests: a producer who hands in, officers who admit, prompts with light embeddings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from appliance.artifact import ArtifactFiles
from appliance.files import sha256_hex
from appliance.intake.admission import Border
from appliance.intake.behaviour import Probe, make_probe
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from appliance.routers.loading import write_strategy_files
from appliance.routers.strategies import StrategyFiles
from tests.support.artifacts import signed, write
from tests.support.trust import DevelopmentAuthority

DIMENSIONS = 8
ENCODER = sha256_hex(b"a light encoder for tests")
LABELS = ("small", "medium", "large")
TEXTS = tuple(f"recorded prompt number {number}" for number in range(60))


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors that depend on the text alone."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIMENSIONS) for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def probe() -> Probe:
    return make_probe(TEXTS, embed, ENCODER)


def training_set(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and the label that is best for each."""
    points = embed([f"training prompt {number}" for number in range(rows)])
    best = np.argmax(points[:, : len(LABELS)], axis=1)
    return points, np.array(LABELS)[best]


def router(payload: Mapping[str, bytes], **changes: Any) -> dict[str, bytes]:
    """The files of a producer's router around a payload."""
    metadata = {
        "schema_version": 1,
        "name": "default",
        "version": "1.0.0",
        "strategy": "knn",
        "hyperparameters": {},
        "labels": {label: f"{label}-model" for label in LABELS},
        "files": {name: sha256_hex(data) for name, data in payload.items()},
        "encoder_digest": ENCODER,
        "training_data_digest": "1" * 64,
        "evaluation": {"accuracy": 0.9},
        "created": "2026-11-23T12:00:00Z",
        "minimum_appliance_version": "0.1.0",
        **changes,
    }
    return {**payload, "router.yaml": yaml.safe_dump(metadata, sort_keys=False).encode()}


def knn_payload(points: np.ndarray | None = None, outcomes: np.ndarray | None = None) -> dict[str, bytes]:
    """strategy.json and weights.safetensors of a nearest-neighbour router."""
    own, best = training_set()
    points = own if points is None else points
    if outcomes is None:
        outcomes = (best[:, None] == np.array(LABELS)[None, :]).astype(np.float32)
    return write_strategy_files(StrategyFiles({"k": 3}, {"embeddings": points, "outcomes": outcomes}))


@dataclass
class Desk:
    """A border with its producer, officers and registry."""

    root: Path
    authority: DevelopmentAuthority
    material: Any = field(init=False)

    def __post_init__(self) -> None:
        self.material = self.authority.material
        (self.root / "registry").mkdir(parents=True)
        store = DirectoryStore(self.root / "registry")
        self.registry = Registry(store, material=lambda: self.material, clock=self.now)
        self.border = Border(self.root / "border", material=lambda: self.material, clock=self.now)

    @staticmethod
    def now() -> datetime:
        return datetime.now(UTC)

    def hand_in(self, files: dict[str, bytes], *, role: str = "producer") -> Path:
        """A signed artifact folder from a producer."""
        return write(signed(files, self.authority.signer(role)), self.root / "media" / "router")

    def hand_in_unsigned(self, artifact: ArtifactFiles | dict[str, bytes]) -> Path:
        return write(artifact, self.root / "media" / "router")

    def officer(self, number: int = 1) -> Any:
        identity = f"import-officer{'' if number == 1 else f'-{number}'}@appliance.internal"
        return self.authority.signer("import-officer", identity=identity)
