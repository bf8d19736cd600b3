"""`appliance doctor`: what is wrong, how one sees it, what to type next."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.output import Json, refusals, show

if TYPE_CHECKING:
    from appliance.operations.doctor.finding import Finding

DEFAULT_PREFIX = Path("/opt/appliance")
MARKS = {"ok": "green", "warning": "yellow", "critical": "bold red", "unknown": "magenta"}


def doctor(
    prefix: Annotated[Path, typer.Option("--prefix", help="Where the appliance lives.")] = DEFAULT_PREFIX,
    config: Annotated[
        Path | None, typer.Option("--config", help="appliance.yaml; default PREFIX/etc/appliance.yaml.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Hash every installed byte instead of small files.")] = False,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="HOST:PORT outside the zone to try; must fail. Repeat for more.")
    ] = None,
    nagios: Annotated[bool, typer.Option("--nagios", help="One line and exit status of a Nagios plugin.")] = False,
    textfile: Annotated[
        Path | None, typer.Option("--textfile", help="Also write metrics there, for a node exporter.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the host and the appliance. Exit 0 where all is well, else 1 (with --nagios 1, 2 or 3)."""
    from appliance.files import write_atomic
    from appliance.operations.doctor import report
    from appliance.operations.doctor.checks import examine
    from appliance.operations.doctor.finding import worst
    from appliance.operations.doctor.gather import Places, gather

    for target in probe or ():
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise typer.BadParameter(f"{target!r} is not HOST:PORT", param_hint="--probe")
    with refusals(as_json):
        now = datetime.now(UTC)
        findings = examine(gather(Places.below(prefix, config), now=now, deep=deep, probe=probe or ()))
        if textfile is not None:
            write_atomic(textfile, report.prometheus_text(findings, now).encode())
        if nagios:
            print(report.nagios_line(findings))
        else:
            value = {"at": now, "severity": worst(findings).word, "findings": [each.as_dict() for each in findings]}
            show(value, as_json, lambda out: _print(out, findings))
        raise typer.Exit(report.exit_status(findings, nagios=nagios))


def _print(out: Any, findings: list[Finding]) -> None:
    for each in findings:
        word = each.severity.word
        out.print(f"{word:8} ", style=MARKS[word], end="")
        out.print(f"{each.check:15} {each.text}", markup=False)
        if each.code:
            for name, value in each.evidence.items():
                if value not in {None, ""} if not isinstance(value, list | dict) else value:
                    out.print(f"{'':24} {name}: {value}", markup=False)
            out.print(f"{'':24} {each.code}\n{'':24} next: {each.remedy}", markup=False)
    ill = [each for each in findings if each.code]
    said = "all is well" if not ill else f"{len(ill)} of {len(findings)} findings want a hand"
    out.print(f"{said} ({len(findings)} looked at)" if not ill else said)
