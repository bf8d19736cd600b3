"""`appliance artifact`: from a folder to a channel, and back out of it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli import intake, serving
from appliance.cli.keyring import DEFAULT_AUTHORITY, AuthorityFolder, KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, Steps, refusals, show
from appliance.cli.serving import (
    Identity,
    Name,
    RegistryAt,
    Role,
    TrustAt,
    channel_dict,
    kind_of,
    open_registry,
    say_channel,
    verdict_dict,
)

if TYPE_CHECKING:
    from appliance.registry.registry import Registry

app = typer.Typer(no_args_is_help=True, help="Pack, sign, admit, publish, promote and revoke routers.")
app.command()(intake.admit)
app.command()(intake.approve)
app.command()(intake.decline)
app.add_typer(intake.journal, name="journal")

Folder = Annotated[Path, typer.Argument(help="The artifact's folder.")]


@app.command()
def pack(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="Where the packed artifact goes; must not exist.")],
    name: Annotated[str | None, typer.Option("--name", help="Give it this name.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Give it this version.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a router's files in its router.yaml and write the artifact, ready to sign."""
    with refusals(as_json):
        from appliance.intake.packing import pack as pack_folder

        artifact = pack_folder(folder, out, name=name, version=version)
        report = {"path": str(out), "digest": artifact.digest, "kind": artifact.kind, "files": sorted(artifact.files)}
        show(report, as_json, lambda console: console.print(f"packed {out}: {artifact.kind} {artifact.digest}"))


@app.command()
def sign(
    folder: Folder,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    role: Role = "producer",
    identity: Identity = None,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Sign an artifact's folder; the signature is written into it."""
    with refusals(as_json):
        from appliance.artifact import SIGNATURE_NAME, read
        from appliance.files import write_atomic

        artifact = read(folder)
        signature = open_role(authority, role, passphrase_file, key, identity=identity).sign_artifact(artifact.files)
        write_atomic(folder / SIGNATURE_NAME, signature)
        report = {"path": str(folder), "digest": artifact.digest, "role": role, "signature": SIGNATURE_NAME}
        show(report, as_json, lambda console: console.print(f"signed {folder} as {role}: {artifact.digest}"))


@app.command()
def verify(
    folder: Folder,
    trust: TrustAt,
    role: Annotated[str | None, typer.Option("--role", help="Only this role may have signed.")] = None,
    as_json: Json = False,
) -> None:
    """Check an artifact's signature, role and description; print who signed what, and when."""
    with refusals(as_json):
        from appliance.artifact import encoder_metadata, read, router_metadata
        from appliance.registry.trust_source import TrustSource
        from appliance.trust.verification import verify_artifact

        source = TrustSource(trust)
        artifact = read(folder)
        verdict = verify_artifact(artifact, material=source.material(), at=source.now(), role=role)
        metadata = router_metadata(artifact) if artifact.kind == "router" else encoder_metadata(artifact)
        version = getattr(metadata, "version", None)
        report = {"name": metadata.name, "version": version, "verdict": verdict_dict(verdict)}
        show(
            report,
            as_json,
            lambda console: console.print(
                f"good: {verdict.kind} {metadata.name} {version or ''}\n"
                f"signed by {verdict.identity} ({verdict.role}) at {verdict.signed_at.isoformat()}\n"
                f"digest {verdict.digest}",
                markup=False,
            ),
        )


@app.command()
def publish(
    folder: Folder,
    registry: RegistryAt,
    trust: TrustAt,
    version: Annotated[str | None, typer.Option("--version", help="For an encoder, which names none itself.")] = None,
    as_json: Json = False,
) -> None:
    """Put a signed artifact into the registry, for ever."""
    with refusals(as_json):
        from appliance.artifact import encoder_metadata, read, router_metadata
        from appliance.registry.trust_source import TrustSource
        from appliance.trust.verification import verify_artifact

        artifact = read(folder)
        source = TrustSource(trust)
        verify_artifact(artifact, material=source.material(), at=source.now())
        if artifact.kind == "router":
            router = router_metadata(artifact)
            name, version = router.name, router.version
        else:
            name, version = encoder_metadata(artifact).name.lower(), version or artifact.digest[:16]
        Steps(as_json)(f"publishing {name} {version} to {registry}")
        open_registry(registry, trust).publish(artifact, name=name, version=version)
        report = {"kind": artifact.kind, "name": name, "version": version, "digest": artifact.digest}
        show(report, as_json, lambda console: console.print(f"published {name} {version}: {artifact.digest}"))


@app.command("list")
def list_(registry: RegistryAt, trust: TrustAt, as_json: Json = False) -> None:
    """What the registry holds: channels, and every version with its size."""
    with refusals(as_json):
        home = open_registry(registry, trust)
        versions = [*home.versions("router"), *home.versions("encoder")]
        states = [state for state in (home.current(name) for name in home.channels()) if state is not None]
        serving: dict[tuple[str, str], list[str]] = {}
        for state in states:
            if (target := state.pointer.target) is not None:
                serving.setdefault((target.name, target.version), []).append(state.pointer.name)
        report = {
            "registry": home.store.location,
            "channels": [channel_dict(state) for state in states],
            "versions": [{**asdict(one), "channels": serving.get((one.name, one.version), [])} for one in versions],
        }

        def text(console: Any) -> None:
            for state in states:
                console.print(say_channel(state), markup=False)
            for one in versions:
                mark = "" if one.complete else "  INCOMPLETE"
                on = "".join(f"  <- {name}" for name in serving.get((one.name, one.version), []))
                line = f"{one.kind:8} {one.name:24} {one.version:20} {one.size_bytes / 1e6:9.2f} MB{mark}{on}"
                console.print(line, markup=False)
            if not versions:
                console.print(f"{home.store.location} holds nothing yet")

        show(report, as_json, text)


@app.command("show")
def show_(
    name: Name,
    *,
    registry: RegistryAt,
    trust: TrustAt,
    version: Annotated[str | None, typer.Argument(help="A version; without it the channel NAME is shown.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the channel's statement and bundle, or the version's folder, here."),
    ] = None,
    as_json: Json = False,
) -> None:
    """One channel's pointer, or one version: what it is, who signed it, how it was evaluated."""
    with refusals(as_json):
        home = open_registry(registry, trust)
        if version is None:
            _show_channel(home, name, out, as_json)
            return
        from appliance.artifact import encoder_metadata, router_metadata
        from appliance.intake.packing import write_folder
        from appliance.registry.admitted import verify_admitted
        from appliance.registry.trust_source import TrustSource

        source = TrustSource(trust)
        artifact = home.fetch(name, version, kind=kind_of(home, name, version))
        verdict = verify_admitted(artifact, material=source.material(), at=source.now())
        router = router_metadata(artifact) if artifact.kind == "router" else None
        described = router or encoder_metadata(artifact)
        if out is not None:
            write_folder(artifact, out)
        report = {
            "digest": artifact.digest,
            "files": {file: len(data) for file, data in artifact.files.items()},
            artifact.kind: described.model_dump(mode="json"),
            "signed_by": verdict_dict(verdict),
            "out": None if out is None else str(out),
        }

        def text(console: Any) -> None:
            kind = router.strategy if router is not None else "encoder"
            console.print(f"{described.name} {version} ({kind}), {artifact.digest}", markup=False)
            console.print(f"signed by {verdict.identity} ({verdict.role}) at {verdict.signed_at:%Y-%m-%d %H:%M} UTC")
            for label, model in (router.labels if router is not None else {}).items():
                console.print(f"  {label} -> {model}", markup=False)
            for key, value in (router.evaluation if router is not None else {}).items():
                console.print(f"  {key}: {value}", markup=False)
            if out is not None:
                console.print(f"written to {out}, signature included", markup=False)

        show(report, as_json, text)


def _show_channel(home: Registry, name: str, out: Path | None, as_json: bool) -> None:
    from appliance.errors import RegistryError
    from appliance.files import write_atomic
    from appliance.registry.channel import split

    state = home.channel(name)
    if state is None:
        raise RegistryError("REGISTRY_NOT_FOUND", f"no channel {name}", channel=name)
    if out is not None:
        statement, bundle = split(state.envelope)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / f"{name}.json", statement)
        write_atomic(out / f"{name}.json.sigstore.json", bundle)

    def text(console: Any) -> None:
        console.print(say_channel(state), markup=False)
        console.print(f"signed by {state.verdict.identity} at {state.verdict.signed_at:%Y-%m-%d %H:%M} UTC")
        if state.pointer.expires_at < datetime.now(UTC):
            console.print("EXPIRED: followers serve on, with an alarm", style="bold red")

    show(channel_dict(state), as_json, text)


for _command in (serving.promote, serving.revoke, serving.collect):
    app.command()(_command)
