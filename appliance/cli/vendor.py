"""`appliance vendor`: lock, fetch and audit what goes into a release; write its SBOM."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from appliance.cli.output import Json, Steps, refusals, show

app = typer.Typer(no_args_is_help=True, help="Lock, fetch and audit what goes into a release; write its SBOM.")

VendorFolder = Annotated[
    Path, typer.Option("--vendor", exists=True, file_okay=False, help="The folder of locks, pins and policy.")
]
Profile = Annotated[str, typer.Option(help="What the host shall do: gateway, training or full.")]
TargetName = Annotated[str, typer.Option("--target", help="Kind of host, a name of vendor/targets.yaml.")]
DEFAULT_TARGET = "cp311-manylinux_x86_64"


@app.command()
def lock(
    names: Annotated[
        list[str] | None, typer.Argument(help="Locks to write; all of them where none is named.", metavar="[LOCK]...")
    ] = None,
    upgrade: Annotated[
        list[str] | None, typer.Option("--upgrade", help="Move this package to its newest version; repeatable.")
    ] = None,
    vendor: VendorFolder = Path("vendor"),
    as_json: Json = False,
) -> None:
    """Resolve the requirements with pip-tools and write hashed locks (connected side; takes minutes)."""
    from appliance.vendoring import locking

    unknown = sorted(set(names or ()) - set(locking.ORDER))
    if unknown:
        raise typer.BadParameter(f"no lock {', '.join(unknown)}; there are {', '.join(locking.ORDER)}")
    chosen = [name for name in locking.ORDER if not names or name in names]
    with refusals(as_json):
        changes = locking.lock(vendor / "requirements", chosen, upgrade=upgrade or (), progress=Steps(as_json))

        def text(out: Console) -> None:
            for name, changed in changes.items():
                out.print(f"{name}.lock: {len(changed)} changed" if changed else f"{name}.lock: unchanged")
                for change in changed:
                    out.print(f"  {change.package} {change.before or '(new)'} -> {change.after or '(gone)'}")

        show({name: [vars(change) for change in changed] for name, changed in changes.items()}, as_json, text)


@app.command()
def fetch(
    *,
    profile: Profile = "gateway",
    target: TargetName = DEFAULT_TARGET,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the wheels; vendor/wheelhouse/PROFILE-TARGET by default.")
    ] = None,
    models: Annotated[bool, typer.Option("--models/--no-models", help="Fetch the pinned models too.")] = True,
    vendor: VendorFolder = Path("vendor"),
    as_json: Json = False,
) -> None:
    """Download exactly the locked wheels and pinned models, and verify every digest. What is there is kept."""
    from appliance.vendoring.fetch import fetch as fetch_wheels
    from appliance.vendoring.index import Index, Sources
    from appliance.vendoring.models import fetch_model, read_models
    from appliance.vendoring.targets import Targets

    with refusals(as_json):
        started = time.monotonic()
        steps = Steps(as_json)
        targets = Targets.read(vendor)
        place = out or vendor / "wheelhouse" / f"{profile}-{target}"

        def open_index() -> Index:
            return Index(Sources.from_pip())

        house = fetch_wheels(
            targets.pins(profile, target), targets.target(target), place, open_index=open_index, progress=steps
        )
        fetched = {
            name: fetch_model(
                name, pin, targets.target(target), vendor / "models", open_index=open_index, progress=steps
            )
            for name, pin in (read_models(vendor) if models else {}).items()
        }
        report: dict[str, Any] = {
            "profile": profile,
            "target": target,
            "directory": str(house.directory),
            "wheels": len(house.wheels),
            "bytes": house.size_bytes,
            "downloaded": house.downloaded,
            "removed": house.removed,
            "models": {name: str(model.directory) for name, model in fetched.items()},
        }

        def text(out: Console) -> None:
            kept = len(house.wheels) - house.downloaded
            out.print(
                f"{len(house.wheels)} wheels, {house.size_bytes / 1e6:.0f} MB in {house.directory}: "
                f"{house.downloaded} fetched, {kept} kept, {len(house.removed)} removed, every digest verified "
                f"({time.monotonic() - started:.1f} s)"
            )
            for name, model in fetched.items():
                out.print(
                    f"model {name}: {len(model.pin.files)} files in {model.directory}, licence {model.pin.licence}"
                )

        show(report, as_json, text)
