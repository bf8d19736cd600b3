"""`appliance bundle`: build, inspect and verify a release, and build a delta of it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from appliance.cli.keyring import DEFAULT_AUTHORITY, AuthorityFolder, KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, Steps, refusals, show
from appliance.errors import BundleError

app = typer.Typer(help="Build, inspect and verify a release bundle.", no_args_is_help=True)

Media = Annotated[list[Path], typer.Argument(help="The archive, its volumes, or folders that hold them.")]

TargetName = Annotated[str, typer.Option("--target", help="A target of vendor/targets.yaml.")]
DEFAULT_TARGET = "cp311-manylinux_x86_64"
VendorFolder = Annotated[Path, typer.Option("--vendor", help="Folder of locks, targets and wheelhouse.")]


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder for the release.")],
    profile: Annotated[str, typer.Option("--profile", help="gateway, training or full.")] = "gateway",
    target: TargetName = DEFAULT_TARGET,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    encoder: Annotated[Path | None, typer.Option("--encoder", help="Signed encoder artifact.")] = None,
    router: Annotated[Path | None, typer.Option("--router", help="Signed router artifact.")] = None,
    vendor: VendorFolder = Path("vendor"),
    wheelhouse: Annotated[Path | None, typer.Option("--wheelhouse", help="Folder of wheels.")] = None,
    lock: Annotated[list[Path] | None, typer.Option("--lock", help="Lock file instead of the profile's.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Folder of the default configuration.")] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option("--evidence", help="SBOM, provenance, VEX to carry along.")
    ] = None,
    volume_size: Annotated[str | None, typer.Option("--volume-size", help="Cut into volumes, e.g. 3900M.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Version; default: the appliance's.")] = None,
    epoch: Annotated[int, typer.Option("--epoch", min=1, help="Rises with every release.")] = 1,
    as_json: Json = False,
) -> None:
    """Build and sign a release: the same inputs give the same bytes (SOURCE_DATE_EPOCH sets the time)."""
    from appliance.bundle.parts import source_tree
    from appliance.bundle.recipe import Recipe, build_release
    from appliance.trust.anchor import RELEASE_ROLE

    with refusals(as_json):
        steps = Steps(quiet=as_json)
        recipe = Recipe(
            profile=profile,
            target=target,
            authority=authority,
            vendor=vendor,
            wheelhouse=wheelhouse,
            locks=tuple(lock or ()),
            encoder=encoder,
            router=router,
            configuration=config,
            evidence=tuple(evidence or ()),
            version=version,
            epoch=epoch,
            created=_created(),
            volume_bytes=parse_size(volume_size) if volume_size else None,
            source=source_tree(),
            manual=_manual(),
        )
        signer = open_role(authority, RELEASE_ROLE, passphrase_file, key)
        release = build_release(recipe, out, signer=signer, progress=steps)
        built = release.built
        value = {
            "path": built.path,
            "sha256": built.sha256,
            "bytes": built.size_bytes,
            "manifest_digest": built.manifest.digest,
            "version": built.manifest.version,
            "members": len(built.manifest.members),
            "stage0_sha256": built.stage0_sha256,
            "anchor_sha256": built.anchor_sha256,
            "volumes": release.volumes,
            "notices": [asdict(notice) for notice in release.notices],
        }

        def text(out: Console) -> None:
            for notice in release.notices:
                out.print(f"notice   {notice.wheel}: {notice.text}", markup=False)
            out.print(
                f"{built.path}  {built.size_bytes / 1e6:.0f} MB, {len(built.manifest.members)} files", markup=False
            )
            for volume in release.volumes:
                out.print(f"{volume}", markup=False)
            out.print(f"manifest   {built.manifest.digest}", markup=False)
            out.print("by the second channel:", style="bold")
            out.print(f"  stage0.py    {built.stage0_sha256}", markup=False)
            out.print(f"  anchor.json  {built.anchor_sha256}", markup=False)

        show(value, as_json, text)


@app.command()
def reproduce(
    media: Media,
    out: Annotated[Path, typer.Option("--out", help="Folder for the release built here.")],
    target: TargetName = DEFAULT_TARGET,
    encoder: Annotated[Path | None, typer.Option("--encoder", help="Signed encoder artifact.")] = None,
    router: Annotated[Path | None, typer.Option("--router", help="Signed router artifact.")] = None,
    vendor: VendorFolder = Path("vendor"),
    config: Annotated[Path | None, typer.Option("--config", help="Folder of the default configuration.")] = None,
    evidence: Annotated[list[Path] | None, typer.Option("--evidence", help="Further files that it carries.")] = None,
    volume_size: Annotated[str | None, typer.Option("--volume-size", help="Cut into volumes, e.g. 3900M.")] = None,
    as_json: Json = False,
) -> None:
    """Build a published release again, without any key, and say whether it is the same to the byte."""
    from appliance.bundle.parts import source_tree
    from appliance.bundle.recipe import Recipe
    from appliance.bundle.reproduce import reproduce as build_again

    with refusals(as_json):
        recipe = Recipe(
            profile="",  # the release's own, like version, epoch and time
            target=target,
            authority=Path(os.devnull),
            created=datetime.now(UTC),
            vendor=vendor,
            encoder=encoder,
            router=router,
            configuration=config,
            evidence=tuple(evidence or ()),
            volume_bytes=parse_size(volume_size) if volume_size else None,
            source=source_tree(),
            manual=_manual(),
        )
        release = build_again(media, recipe, out, progress=Steps(quiet=as_json))
        value = {
            "reproduced": True,
            "path": release.built.path,
            "sha256": release.built.sha256,
            "manifest_digest": release.built.manifest.digest,
            "volumes": release.volumes,
        }

        def text(console: Console) -> None:
            console.print(f"reproduced: {release.built.path} is the release to the byte", markup=False)
            console.print(f"sha256     {release.built.sha256}", markup=False)
            console.print(f"manifest   {release.built.manifest.digest}", markup=False)

        show(value, as_json, text)


@app.command()
def split(
    archive: Annotated[Path, typer.Argument(help="The archive of a release or of a delta, whole.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the volumes.")],
    volume_size: Annotated[str, typer.Option("--volume-size", help="No volume becomes larger, e.g. 3900M.")],
    as_json: Json = False,
) -> None:
    """Cut a release that is there already into volumes with parity; needs no key, and the archive stays."""
    from appliance.bundle import volumes

    with refusals(as_json):
        written = volumes.split(archive, out, volume_bytes=parse_size(volume_size), progress=Steps(quiet=as_json))
        sizes = {str(path): path.stat().st_size for path in written}

        def text(console: Console) -> None:
            for path, size in sizes.items():
                console.print(f"{path}  {size / 1e6:.1f} MB", markup=False)

        show({"volumes": [{"path": path, "bytes": size} for path, size in sizes.items()]}, as_json, text)


@app.command()
def inspect(
    media: Media,
    members: Annotated[bool, typer.Option("--members", help="List every file.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a release claims to be, without trusting or verifying it."""
    from appliance.bundle.inspection import inspect_media

    with refusals(as_json):
        found = inspect_media(media)

        def text(out: Console) -> None:
            target = found["target"]
            out.print("not verified; this is what the media say of themselves", style="yellow")
            out.print(f"{found['name']} {found['version']} ({found['profile']}), epoch {found['epoch']}", markup=False)
            out.print(f"created   {found['created']}", markup=False)
            out.print(
                f"for       Python {target['python']}, {target['architecture']}, glibc {target['glibc']}", markup=False
            )
            out.print(f"manifest  {found['digest']}", markup=False)
            out.print(
                f"payload   {found['payload'] / 1e6:.0f} MB in {len(found['members'])} files (--members lists them)",
                markup=False,
            )
            if found["delta_base"]:
                out.print(f"delta     upon {found['delta_base']}", markup=False)
            for file in found["files"]:
                place = "" if file["of"] == 1 else f"  volume {file['volume']} of {file['of']}"
                out.print(f"on        {file['path']}{place}", markup=False)
            for path in found["unusable"]:
                out.print(f"unusable  {path}", markup=False, style="red")
            for member in found["members"] if members else ():
                out.print(f"  {member['mode']} {member['size']:>12} {member['path']}", markup=False)

        show(found, as_json, text)


@app.command()
def verify(
    media: Media,
    trust: Annotated[
        Path, typer.Option("--trust", help="anchor.json from the second channel, or a prefix's state/trust.")
    ],
    as_json: Json = False,
) -> None:
    """Verify a release completely: trust metadata, signature, and every byte; writes nothing."""
    from appliance.bundle.install import verify_media
    from appliance.bundle.stage0.preparing import Conduct
    from appliance.cli.progress import Rate
    from appliance.files import read_regular

    with refusals(as_json):
        state = trust if trust.is_dir() and not (trust / "anchor.json").is_file() else None
        anchor_file = trust / "anchor.json" if trust.is_dir() and state is None else trust
        anchor = read_regular(anchor_file, max_bytes=1024 * 1024) if state is None else None
        verified = verify_media(
            media, anchor, now=datetime.now(UTC), state=state, conduct=Conduct(progress=Rate(quiet=as_json))
        )
        manifest, verdict = verified.verdict.release.manifest, verified.verdict.verdict
        value: dict[str, Any] = {
            "verified": True,
            "name": manifest.name,
            "version": manifest.version,
            "profile": manifest.profile,
            "digest": manifest.digest,
            "members": len(manifest.members),
            "signer": verdict.identity,
            "role": verdict.role,
            "signed_at": verdict.signed_at,
            "log_index": verdict.log_index,
            "repaired": list(verified.repaired),
        }

        def text(out: Console) -> None:
            for line in verified.repaired:
                out.print(line, markup=False, style="yellow")
            out.print(
                f"verified: {manifest.name} {manifest.version} ({manifest.profile}), {len(manifest.members)} files",
                markup=False,
            )
            out.print(
                f"signed by {verdict.identity} ({verdict.role}) at {verdict.signed_at:%Y-%m-%d %H:%M:%S} UTC",
                markup=False,
            )
            out.print(f"manifest {manifest.digest}", markup=False)

        show(value, as_json, text)


@app.command()
def delta(
    media: Media,
    base: Annotated[Path, typer.Option("--base", help="The zone's signed inventory.json.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the delta.")],
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    volume_size: Annotated[str | None, typer.Option("--volume-size", help="Cut into volumes, e.g. 3900M.")] = None,
    as_json: Json = False,
) -> None:
    """Build a delta: only what a zone, by its inventory, does not have of a full release."""
    from appliance.bundle.delta import build_delta
    from appliance.bundle.inventory import read_inventory
    from appliance.bundle.stage0.workspace import workspace
    from appliance.bundle.volumes import split
    from appliance.files import read_regular
    from appliance.trust.anchor import RELEASE_ROLE
    from appliance.trust.store import TrustStore

    with refusals(as_json):
        now, steps = datetime.now(UTC), Steps(quiet=as_json)
        signer = open_role(authority, RELEASE_ROLE, passphrase_file, key)
        anchor = read_regular(authority / "anchor.json", max_bytes=1024 * 1024)
        with workspace("trust") as work:
            store = TrustStore.initialise(work / "state", anchor, authority / "repository", now=now)
            inventory = read_inventory(base, material=store.material(now=now), at=store.checked_time(now)).inventory
        built = build_delta(
            media,
            inventory,
            signer,
            out,
            anchor=anchor,
            now=now,
            progress=steps,
        )
        volumes = split(built.path, out, volume_bytes=parse_size(volume_size), progress=steps) if volume_size else ()
        value = {
            "path": built.path,
            "sha256": built.sha256,
            "bytes": built.size_bytes,
            "full_bytes": built.full_bytes,
            "base": built.base,
            "manifest_digest": built.manifest.digest,
            "carried": len(built.carried),
            "members": len(built.manifest.members),
            "volumes": volumes,
        }

        def text(out: Console) -> None:
            out.print(
                f"{built.path}  {built.size_bytes / 1e6:.1f} MB instead of {built.full_bytes / 1e6:.0f} MB, "
                f"{len(built.carried)} of {len(built.manifest.members)} files",
                markup=False,
            )
            out.print(f"from {inventory.version} ({built.base[:12]}) to {built.manifest.version}", markup=False)
            out.print(f"manifest   {built.manifest.digest}", markup=False)

        show(value, as_json, text)


def parse_size(text: str) -> int:
    """`3900M`, `4G`, `650000k` or bytes -> bytes (powers of 1024).

    Raises:
        BundleError: BUNDLE_VOLUME_SIZE.
    """
    number, unit = text.strip().rstrip("bB"), 1
    for suffix, factor in (("k", 1024), ("m", 1024**2), ("g", 1024**3)):
        if number.lower().endswith(suffix):
            number, unit = number[:-1], factor
    if not number.isdigit():
        raise BundleError("BUNDLE_VOLUME_SIZE", f"{text!r} is not a size", example="3900M")
    return int(number) * unit


def _manual() -> dict[str, bytes]:
    """Manual pages and completions of these very commands, by their place in the payload."""
    from appliance.cli.main import app as commands
    from appliance.cli.manual import completions, man_pages

    pages = {f"man/{name}": text for name, text in man_pages(commands).items()}
    return {
        path: text.encode() for path, text in (pages | {f"completion/{n}": t for n, t in completions().items()}).items()
    }


def _created() -> datetime:
    """The release's time: SOURCE_DATE_EPOCH, else the last commit's, else now."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not fixed:
        try:
            command = ["git", "log", "-1", "--format=%ct"]
            fixed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            fixed = ""
    return datetime.fromtimestamp(int(fixed), UTC) if fixed.isdigit() else datetime.now(UTC)
