"""`appliance validate`: the acceptance of an installed appliance, with a report that can be signed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.doctor import DEFAULT_PREFIX
from appliance.cli.keyring import KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, Steps, refusals, show


def validate(
    prefix: Annotated[Path, typer.Option("--prefix", help="Where the appliance lives.")] = DEFAULT_PREFIX,
    config: Annotated[
        Path | None, typer.Option("--config", help="appliance.yaml; default PREFIX/etc/appliance.yaml.")
    ] = None,
    router: Annotated[
        Path | None, typer.Option("--router", help="Folder of a signed router; default the installed one.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for validation.json, .html and .pdf.")] = None,
    authority: Annotated[
        Path | None, typer.Option("--authority", help="Sign the report with this authority (or a role's part of it).")
    ] = None,
    role: Annotated[str, typer.Option("--role", help="The role that signs.")] = "zone-host",
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="HOST:PORT outside the zone; must not be reached.")
    ] = None,
    endurance: Annotated[
        float,
        typer.Option("--endurance", min=0, max=86400, help="Seconds of mixed traffic with faults; 3600 for an hour."),
    ] = 0.0,
    rate: Annotated[float, typer.Option("--rate", min=1, max=1000, help="Requests a second of --endurance.")] = 20.0,
    upgrade: Annotated[
        Path | None,
        typer.Option("--upgrade", help="Media of a newer release: the upgrade in the midst of --endurance."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the acceptance beside the running gateway. Exit 0 where every requirement holds, else 1."""
    with refusals(as_json):
        from appliance.files import write_atomic
        from appliance.operations.acceptance import report
        from appliance.operations.acceptance.run import accept
        from appliance.operations.doctor.gather import Places

        signing = None if authority is None else open_role(authority, role, passphrase_file, key)
        now = datetime.now(UTC)
        steps = Steps(quiet=as_json)
        places = Places.below(prefix.absolute(), config.absolute() if config else None)
        results, release = accept(
            places, now=now, say=steps, router=router, probe=probe or (), endurance_s=endurance, rate_per_s=rate,
            upgrade=upgrade,
        )  # fmt: skip
        statement = report.statement(results, at=now, release=release)
        signer = None
        if signing is not None:
            signature, signer = signing.sign_statement(statement), role
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "validation.json", statement)
            write_atomic(out / "validation.html", report.page(statement, signer=signer).encode())
            write_atomic(out / "validation.pdf", report.paper(statement, signer=signer))
            if signer is not None:
                write_atomic(out / "validation.sigstore.json", signature)
        value = {
            "passed": all(r.passed for r in results),
            "release": release,
            "results": [r.as_dict() for r in results],
        }
        show(value, as_json, lambda console: _print(console, value))
        raise typer.Exit(0 if value["passed"] else 1)


def _print(out: Any, value: dict[str, Any]) -> None:
    for result in value["results"]:
        out.print(
            "holds  " if result["passed"] else "FAILS  ", style="green" if result["passed"] else "bold red", end=""
        )
        out.print(f"{result['name']}: {result['requirement']}", markup=False)
        for name, evidence in result["evidence"].items():
            if evidence not in ([], {}, None):
                out.print(f"         {name}: {evidence}", markup=False)
    out.print("accepted" if value["passed"] else "not accepted", style="bold")
