"""`appliance vendor`: lock, fetch and audit what goes into a release; write its SBOM."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from appliance.cli.output import Json, Steps, refusals, show

if TYPE_CHECKING:
    from appliance.vendoring.audit import Audit
    from appliance.vendoring.index import Index
    from appliance.vendoring.targets import Targets

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
    from appliance.vendoring.index import Index, Sources
    from appliance.vendoring.policy import Policy

    unknown = sorted(set(names or ()) - set(locking.ORDER))
    if unknown:
        raise typer.BadParameter(f"no lock {', '.join(unknown)}; there are {', '.join(locking.ORDER)}")
    chosen = [name for name in locking.ORDER if not names or name in names]
    with refusals(as_json), Index(Sources.from_pip()) as index:
        ripeness = locking.Ripeness(Policy.read(vendor).ripening, datetime.now(UTC), index)
        outcome = locking.lock(
            vendor / "requirements", chosen, upgrade=upgrade or (), ripeness=ripeness, progress=Steps(as_json)
        )

        def text(out: Console) -> None:
            for name, locked in outcome.items():
                count = len(locked.changes) + len(locked.rehashed)
                out.print(f"{name}.lock: {f'{count} changed' if count else 'unchanged'}")
                for release, (came, went) in locked.rehashed.items():
                    out.print(f"  {release}: {came} hashes new, {went} gone")
                for change in locked.changes:
                    out.print(f"  {change.package} {change.before or '(new)'} -> {change.after or '(gone)'}")
                for release in locked.passed_over:
                    out.print(f"  passed over {release}: younger than {ripeness.rule.minimum_days} days")

        show({name: asdict(locked) for name, locked in outcome.items()}, as_json, text)


@app.command()
def fetch(
    *,
    profile: Profile = "gateway",
    target: TargetName = DEFAULT_TARGET,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the wheels; vendor/wheelhouse/TARGET by default.")
    ] = None,
    models: Annotated[bool, typer.Option("--models/--no-models", help="Fetch the pinned models too.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only ask the index whether every locked package has a fitting wheel.")
    ] = False,
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
        place = out or vendor / "wheelhouse" / target

        def open_index() -> Index:
            return Index(Sources.from_pip())

        if dry_run:
            _check_target(targets, profile, target, open_index, as_json)
            return
        house = fetch_wheels(
            targets.pins(profile, target),
            targets.target(target),
            place,
            open_index=open_index,
            others=targets.every_pin(target),
            progress=steps,
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


def _check_target(targets: Targets, profile: str, target: str, open_index: Callable[[], Index], as_json: bool) -> None:
    from appliance.vendoring.selection import select

    with open_index() as index:
        selected = select(targets.pins(profile, target), targets.target(target), index)
    size = sum(item.file.size_bytes or 0 for item in selected)
    unsized = [item.file.filename for item in selected if item.file.size_bytes is None]
    value = {
        "profile": profile, "target": target, "wheels": [item.file.filename for item in selected], "bytes": size,
        "unsized": unsized,
    }  # fmt: skip

    def text(out: Console) -> None:
        more = f", and of untold size {', '.join(unsized)}" if unsized else ""
        out.print(f"{target}: {profile} is complete, {len(selected)} wheels, {size / 1e6:.0f} MB{more}")

    show(value, as_json, text)


@app.command()
def audit(
    directory: Annotated[Path, typer.Argument(help="The folder of wheels.", exists=True, file_okay=False)],
    *,
    profile: Annotated[str | None, typer.Option(help="Check that the folder holds this profile, complete.")] = None,
    target: TargetName = DEFAULT_TARGET,
    against: Annotated[
        Path | None, typer.Option("--against", exists=True, help="The previous release: its wheels, or its report.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the admission report here, to compare the next release with.")
    ] = None,
    vendor: VendorFolder = Path("vendor"),
    as_json: Json = False,
) -> None:
    """Look into every wheel and judge it by vendor/policy.yaml; exit 1 where anything is refused."""
    from appliance.files import write_atomic
    from appliance.vendoring import audit as auditing
    from appliance.vendoring.difference import write_report

    with refusals(as_json):
        result = auditing.audit(
            directory,
            vendor,
            profile=profile,
            target=target,
            against=against,
            now=datetime.now(UTC),
            progress=Steps(as_json),
        )
        if report is not None and not result.admission.refusals:
            write_atomic(report, write_report(result.admission.inspections))
        show(result.as_dict(), as_json, lambda out: _print_audit(out, result))
        if result.admission.refusals:
            raise typer.Exit(1)


@app.command()
def sbom(
    directory: Annotated[
        Path | None, typer.Argument(help="The folder of wheels; vendor/wheelhouse/TARGET by default.")
    ] = None,
    *,
    profile: Profile = "gateway",
    target: TargetName = DEFAULT_TARGET,
    out: Annotated[Path, typer.Option("--out", help="Folder for the papers.")] = Path("dist/papers"),
    epoch: Annotated[
        int, typer.Option(envvar="SOURCE_DATE_EPOCH", min=0, help="The release's time, seconds since 1970.")
    ] = 0,
    vendor: VendorFolder = Path("vendor"),
    as_json: Json = False,
) -> None:
    """Write the papers of a set of wheels: CycloneDX SBOM, admission report, licences, VEX."""
    from appliance import __version__
    from appliance.files import write_atomic
    from appliance.vendoring.admission import admit
    from appliance.vendoring.evidence import evidence
    from appliance.vendoring.models import read_models
    from appliance.vendoring.policy import Policy
    from appliance.vendoring.sbom import licences
    from appliance.vendoring.targets import Targets

    with refusals(as_json):
        targets = Targets.read(vendor)
        host = targets.target(target)
        wheels = admit(
            directory or vendor / "wheelhouse" / target,
            Policy.read(vendor),
            now=datetime.now(UTC),
            target=host,
            pins=targets.pins(profile, target),
            progress=Steps(as_json),
        ).require()
        models = read_models(vendor)
        moment = datetime.fromtimestamp(epoch, UTC)
        papers = evidence(vendor, wheels, models, version=__version__, target=host, at=moment)
        for name, data in papers.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out / name, data)
        groups = licences(wheels, models)

        def text(console: Console) -> None:
            for licence, packages in sorted(groups.items(), key=lambda item: -len(item[1])):
                shown = f"{', '.join(packages[:4])}{', ...' if len(packages) > 4 else ''}"
                console.print(f"{len(packages):4} {licence}: {shown}", markup=False)
            console.print(f"{len(wheels)} wheels, {len(models)} models; papers in {out}: {', '.join(papers)}")

        report = {"directory": str(out), "papers": list(papers), "wheels": len(wheels), "licences": groups}
        show(report, as_json, text)


def _print_audit(out: Console, result: Audit) -> None:
    from appliance.vendoring.difference import summary

    admission = result.admission
    for notice in admission.notices:
        out.print(f"notice   {notice.wheel}: {notice.text}", markup=False)
    if result.unneeded:
        out.print(f"notice   not needed on this target: {', '.join(result.unneeded)}", markup=False)
    for line in summary(result.differences or ()):
        out.print(line, markup=False)
    if result.differences == []:
        out.print("no difference to the previous release")
    for refusal in admission.refusals:
        out.print(f"refused  {refusal.code} {refusal.cause}", markup=False, style="red")
    natives = sum(len(wheel.native) for wheel in admission.inspections)
    newest = max((library.glibc_pair for w in admission.inspections for library in w.native), default=(0, 0))
    out.print(
        f"{len(admission.inspections)} wheels looked into: {sum(w.files for w in admission.inspections)} files, "
        f"{natives} native libraries (highest glibc {newest[0]}.{newest[1]}), "
        f"{sum(len(w.startup) for w in admission.inspections)} start-up files, "
        f"{sum(len(w.programs) for w in admission.inspections)} programs"
    )
    if admission.refusals:
        codes = ", ".join(sorted({refusal.code for refusal in admission.refusals}))
        out.print(f"NOT ADMITTED: {len(admission.refusals)} refusals. What to do: appliance explain CODE ({codes})")
    else:
        out.print("admitted")
