"""From a recipe to a release in a folder: locks, wheels, models, signer, archive, and the second channel's files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import appliance
from appliance.bundle.build import Built, Identity, Progress, StatementSigner, build, read_trust
from appliance.bundle.inputs import Payload, collect, select_wheels
from appliance.bundle.own_wheel import DISTRIBUTION
from appliance.bundle.parts import parts
from appliance.bundle.stage0 import assemble
from appliance.errors import BundleError
from appliance.files import write_atomic
from appliance.trust.anchor import RELEASE_ROLE
from appliance.trust.signing import open_signer
from appliance.vendoring.locks import merged, read_lock
from appliance.vendoring.provenance import Build as ReleaseBuild
from appliance.vendoring.release import release_papers, source_revision
from appliance.vendoring.rules import Notice
from appliance.vendoring.targets import Targets
from appliance.vendoring.wheel import inspect_wheel

NAME = "llm-routing-appliance"
BUILDER = "https://appliance.internal/builder/release-signer"  # who says so is known by the release's signature
STATE_VERSION = 1  # layout of PREFIX/state and PREFIX/etc that this appliance reads


@dataclass(frozen=True)
class Recipe:
    """What to build.

    Attributes:
        profile, target: names in `vendor/targets.yaml`.
        authority: folder of the authority that signs.
        vendor: folder of targets, locks and wheelhouse.
        wheelhouse: folder of wheels; default `vendor/wheelhouse/<target>`.
        locks: lock files instead of the profile's.
        encoder, router: signed artifacts, or None.
        configuration: folder of the default configuration; the source tree's `bundle/defaults` where it is None.
        evidence: further files to carry along, beside the papers that every release gets.
        version: None for the appliance's own.
        epoch: rises with every release.
        created: the release's time.
        volume_bytes: cut into volumes of at most so many bytes, with parity; None for one file only.
        source: tree of the appliance's sources, for runbooks, units and the like; None carries none of them.
        manual: manual pages and completions: path in the payload -> content.
    """

    profile: str
    target: str
    authority: Path
    created: datetime
    vendor: Path = Path("vendor")
    wheelhouse: Path | None = None
    locks: tuple[Path, ...] = ()
    encoder: Path | None = None
    router: Path | None = None
    configuration: Path | None = None
    evidence: tuple[Path, ...] = ()
    version: str | None = None
    epoch: int = 1
    volume_bytes: int | None = None
    source: Path | None = None
    manual: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleaseFiles:
    """What `build_release` wrote: the archive, its volumes, and what the release engineer should see before sending."""

    built: Built
    volumes: tuple[Path, ...]
    notices: tuple[Notice, ...]


def build_release(
    recipe: Recipe,
    out: Path,
    *,
    signer: StatementSigner | None = None,
    trust: dict[str, bytes] | None = None,
    now: datetime | None = None,
    progress: Progress = lambda _text, _done, _all: None,
) -> ReleaseFiles:
    """Build, sign and write a release. Nothing is built from wheels that vendoring does not admit.

    Args:
        recipe: what to build.
        out: folder for the files.
        signer: who signs; None opens the recipe's authority, whose keys must then be in the clear.
        trust: the trust metadata to carry; the authority's where it is None.
        now: against which the age of the wheels is measured; the clock where None. It enters no byte of the release.
        progress: told each step.

    Raises:
        VendorError, ArtifactError, TrustError, BundleError, FileError: what is missing, refused or not fit.
    """
    targets = Targets.read(recipe.vendor)
    target = targets.target(recipe.target)
    if recipe.locks:
        lock_files = list(recipe.locks)
        pins = [pin for pin in merged(map(read_lock, lock_files)) if any(map(pin.applies, target.environments))]
    else:
        lock_files = [
            recipe.vendor / "requirements" / lock.name for lock in targets.locks(recipe.profile, recipe.target)
        ]
        pins = list(targets.pins(recipe.profile, recipe.target))
    wheelhouse = recipe.wheelhouse or recipe.vendor / "wheelhouse" / recipe.target
    if not wheelhouse.is_dir():
        raise BundleError("BUNDLE_INPUT", f"there is no wheelhouse at {wheelhouse}", wheelhouse=str(wheelhouse))
    wheels, requirements = select_wheels(pins, wheelhouse)
    payload = collect(
        wheels=wheels,
        requirements=requirements,
        locks=lock_files,
        encoder=recipe.encoder,
        router=recipe.router,
        configuration=recipe.configuration or (recipe.source and recipe.source / "bundle" / "defaults"),
        evidence=list(recipe.evidence),
        parts=parts(recipe.source, recipe.manual) if recipe.source else (),
    )
    version = recipe.version or appliance.__version__
    papers = release_papers(
        recipe.vendor,
        wheelhouse,
        locks=[read_lock(path) for path in lock_files],
        target=target,
        build=_provenance(recipe, version),
        subjects={file.path: file.sha256() for file in payload},
        now=now or datetime.now(UTC),
        own=[
            inspect_wheel(file.content, file.path.partition("/")[2])
            for file in payload
            if file.path.startswith(f"wheels/{DISTRIBUTION}-") and isinstance(file.content, bytes)
        ],
        progress=progress,
    )
    payload += [Payload(f"evidence/{name}", data) for name, data in sorted(papers.files.items())]
    identity = Identity(
        name=NAME,
        version=version,
        epoch=recipe.epoch,
        profile=recipe.profile,
        target={
            "python": ".".join(map(str, target.python)),
            "architecture": target.architecture,
            "glibc": ".".join(map(str, target.glibc)),
        },
        created=recipe.created,
        state_version=STATE_VERSION,
    )
    trust = trust or read_trust(recipe.authority / "anchor.json", recipe.authority / "repository")
    built = build(
        identity, payload, trust, signer or open_signer(recipe.authority, RELEASE_ROLE), out, progress=progress
    )
    write_second_channel(built, trust["anchor.json"], out)
    volumes: tuple[Path, ...] = ()
    if recipe.volume_bytes is not None:
        from appliance.bundle.volumes import split

        volumes = split(built.path, out, volume_bytes=recipe.volume_bytes, progress=progress)
    return ReleaseFiles(built, volumes, papers.notices)


def write_second_channel(built: Built, anchor: bytes, out: Path) -> None:
    """Put `stage0.py`, `anchor.json` and the archive's SHA-256 beside it; their digests go by the second channel."""
    stage0 = assemble.assemble().encode()
    write_atomic(out / "stage0.py", stage0, mode=0o755)
    write_atomic(out / "anchor.json", anchor)
    lines = [
        f"{built.sha256}  {built.path.name}\n",
        f"{hashlib.sha256(stage0).hexdigest()}  stage0.py\n",
        f"{built.anchor_sha256}  anchor.json\n",
    ]
    write_atomic(out / f"{built.path.name}.sha256", "".join(lines).encode())


def _provenance(recipe: Recipe, version: str) -> ReleaseBuild:
    revision, changed = source_revision(Path(appliance.__file__).parents[1])
    return ReleaseBuild(recipe.profile, recipe.target, version, revision, changed, BUILDER, recipe.created)
