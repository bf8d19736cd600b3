"""The ground of a drill: an authority, two small releases, a few routers and a registry, in one folder."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from appliance.bundle.build import Identity, build, read_trust
from appliance.bundle.inputs import Payload
from appliance.bundle.own_wheel import own_wheel
from appliance.bundle.stage0 import assemble
from appliance.errors import OperationError
from appliance.files import sha256_hex
from appliance.operations.throwaway import OFFICERS, make_authority
from appliance.trust.signing import Signer, open_signer

NAME = "drill"
VERSIONS = ("1.0.0", "1.1.0")
_NEEDED = ("pyyaml", "uv")  # what a release needs to be installed and to start its own command
_CALLS = 160
_KINDS = ("hard prove the theorem of", "easy what is the capital of")
_WORDS = (
    "rivers", "prisms", "orchards", "engines", "harbours", "lattices", "glaciers", "markets", "violins", "comets",
    "bridges", "gardens", "circuits", "islands", "ledgers", "castles", "turbines", "forests", "mirrors", "railways",
)  # fmt: skip
_CONFIGURATION = b"schema_version: 1\nstate_dir: ../state/gateway\n"


@dataclass(frozen=True)
class Ground:
    """Where the drill takes place.

    Attributes:
        directory: holds all of it.
        prefix: where the releases are installed.
        authority: folder of the authority.
        registry: folder of the registry.
        media: the two releases, older first.
        encoder: folder of the encoder that prompts are embedded with.
    """

    directory: Path
    prefix: Path
    authority: Path
    registry: Path
    media: tuple[Path, ...]
    encoder: Path

    @property
    def repository(self) -> Path:
        """The trust repository, as it travels."""
        return self.authority / "repository"

    @property
    def anchor(self) -> Path:
        """As it reached the host by the second channel, and was kept: rotations since have made newer ones."""
        return self.directory / "anchor.json"

    @property
    def trust(self) -> Path:
        """The host's trust state."""
        return self.prefix / "state" / "trust"

    def router(self, version: str, *, signer: str | None = OFFICERS[0]) -> Path:
        """Folder of a router of this version, made when it is first asked for; `signer` None leaves it unsigned."""
        folder = self.directory / "routers" / version
        if not folder.is_dir():
            signing = open_signer(self.authority, "import-officer", identity=signer) if signer else None
            _write_router(folder, version, signing)
        return folder

    def traces(self, name: str, *, teaching: bool) -> Path:
        """Training sources: judged calls to two models, whose worth follows from the prompt, or from nothing."""
        folder = self.directory / name
        (folder / "traces").mkdir(parents=True, exist_ok=True)
        spans = "".join(json.dumps(_call(number, teaching=teaching)) + "\n" for number in range(_CALLS))
        (folder / "traces" / "week.jsonl").write_text(spans)
        return folder


def make_ground(directory: Path, *, scripts: Path, wheels: Path, encoder: Path, now: datetime) -> Ground:
    """Make it.

    Args:
        directory: an empty folder.
        scripts: the runbooks, which the releases carry.
        wheels: holds wheels of PyYAML and uv, as every release does in `payload/wheels`.
        encoder: a release's, in `payload/encoder`.
        now: the clock.

    Raises:
        OperationError: OPERATION_DRILL_SETUP.
        ApplianceError: what building a release refuses.
    """
    authority = make_authority(directory / "authority", now=now)
    payload = [*_payload(wheels), *_runbooks(scripts)]
    (directory / "registry").mkdir()
    target = {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}", "architecture": platform.machine(), "glibc": "2.17",
    }  # fmt: skip
    shutil.copy(authority.path / "anchor.json", directory / "anchor.json")
    trust = read_trust(authority.path / "anchor.json", authority.path / "repository")
    media = []
    for number, version in enumerate(VERSIONS, 1):
        identity = Identity("llm-routing-appliance", version, number, "drill", target, now)
        files = [*payload, Payload("evidence/note.txt", f"a drill's release {version}\n".encode())]
        signer = open_signer(authority.path, "release-signer")
        media.append(build(identity, files, trust, signer, directory / f"media-{version}").path)
    return Ground(directory, directory / "prefix", authority.path, directory / "registry", tuple(media), encoder)


def _payload(wheels: Path) -> list[Payload]:
    """The smallest set that installs and starts: our own wheel, what its command reads settings with, and uv."""
    chosen = [own_wheel(), *((path.name, path.read_bytes()) for path in (_wheel(wheels, n) for n in _NEEDED))]
    lines = []
    for filename, data in chosen:
        name, version = filename.split("-")[:2]
        if name.lower() != "uv":  # it makes the environment and is not needed in it
            digest = hashlib.sha256(data).hexdigest()
            lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    return [
        Payload("requirements.txt", "".join(lines).encode()),
        *(Payload(f"wheels/{filename}", data) for filename, data in sorted(chosen)),
        Payload("config/appliance.yaml", _CONFIGURATION),
    ]


def _runbooks(scripts: Path) -> list[Payload]:
    """The runbooks and stage 0, as every release carries them."""
    files = [*(path for path in sorted(scripts.iterdir()) if path.is_file()), *sorted((scripts / "lib").iterdir())]
    carried = [
        Payload(f"scripts/{path.relative_to(scripts)}", path.read_bytes(), executable=path.parent == scripts)
        for path in files
    ]
    return [*carried, Payload("stage0.py", assemble.assemble().encode(), executable=True)]


def _wheel(folder: Path, name: str) -> Path:
    found = sorted(path for path in folder.glob("*.whl") if path.name.split("-")[0].lower() == name)
    if not found:
        raise OperationError(
            "OPERATION_DRILL_SETUP", f"there is no wheel of {name} in {folder}", wheels=str(folder), missing=name
        )
    return found[-1]


def _call(number: int, *, teaching: bool) -> dict[str, Any]:
    """A span as the gateway exports it (OTLP as JSON) of a call that a judge has scored."""
    chance = random.Random(number)  # noqa: S311 (the same calls in every drill)
    kind, model = chance.randrange(2), chance.randrange(2)
    prompt = f"{_KINDS[kind]} {' and '.join(chance.sample(_WORDS, 4))}"
    worth = float(kind == model if teaching else chance.randrange(2))
    told: dict[str, dict[str, Any]] = {
        "litellm.call_id": {"stringValue": f"drill-{number}"},
        "llm.routing.selected_model": {"stringValue": ("large", "small")[model]},
        "gen_ai.input.messages": {"stringValue": json.dumps([{"role": "user", "content": prompt}])},
        "judge.score": {"doubleValue": worth},
        "router.propensity": {"doubleValue": 0.5},
    }
    values = [{"key": key, "value": value} for key, value in told.items()]
    begin = 10**18 + number * 10**9
    span = {
        "traceId": f"{number + 1:032x}", "spanId": f"{number + 1:016x}", "status": {"code": 1}, "attributes": values,
        "startTimeUnixNano": str(begin), "endTimeUnixNano": str(begin + 250_000_000),
    }  # fmt: skip
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def _write_router(folder: Path, version: str, signer: Signer | None) -> None:
    """A router that is carried about and never loaded."""
    files = {"model.json": f'{{"drill":"{version}"}}'.encode()}
    metadata = {
        "schema_version": 1, "name": NAME, "version": version, "strategy": "knn", "hyperparameters": {},
        "labels": {"small": "small", "large": "large"},
        "files": {name: sha256_hex(data) for name, data in files.items()},
        "encoder_digest": "0" * 64, "training_data_digest": "1" * 64, "evaluation": {},
        "created": "2026-01-01T00:00:00Z", "minimum_appliance_version": "0.1.0",
    }  # fmt: skip
    files["router.yaml"] = yaml.safe_dump(metadata, sort_keys=False).encode()
    if signer is not None:
        files["artifact.sigstore.json"] = signer.sign_artifact(files)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
