"""`appliance doctor`: what is wrong, how one sees it, what to type next."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.output import Json, as_refusal, hang, refusals, show

if TYPE_CHECKING:
    from appliance.operations.doctor.finding import Finding

DEFAULT_PREFIX = Path("/opt/appliance")
DETAIL = " " * 9
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
    from appliance.errors import ApplianceError
    from appliance.files import write_atomic
    from appliance.operations.doctor import report
    from appliance.operations.doctor.checks import examine
    from appliance.operations.doctor.finding import Finding, unknown, worst
    from appliance.operations.doctor.gather import Places, gather

    for target in probe or ():
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise typer.BadParameter(f"{target!r} is not HOST:PORT", param_hint="--probe")
    with refusals(as_json):
        now, findings = datetime.now(UTC), list[Finding]()
        try:
            findings = examine(gather(Places.below(prefix, config), now=now, deep=deep, probe=probe or ()))
            if textfile is not None:
                write_atomic(textfile, report.prometheus_text(findings, now).encode())
        except (ApplianceError, OSError) as error:
            if not nagios:
                raise
            findings = [*findings, unknown("doctor", as_refusal(error))]  # a plugin owes its one line, whatever happens
        if nagios:
            print(report.nagios_line(findings))
        else:
            value = {"at": now, "severity": worst(findings).word, "findings": [each.as_dict() for each in findings]}
            show(value, as_json, lambda out: _print(out, findings))
        raise typer.Exit(report.exit_status(findings, nagios=nagios))


def _print(out: Any, findings: list[Finding]) -> None:
    """What is well first, the worst last: right above the prompt stands what to begin with."""
    for each in sorted(findings, key=lambda finding: finding.severity.rank):
        word = each.severity.word
        out.print(f"{word:9}", style=MARKS[word], end="")
        hang(out, f"{each.check:15} ", each.text, column=9)
        if each.code:
            hang(out, DETAIL, each.code)
            for name, value in each.evidence.items():
                for item in value if isinstance(value, list | tuple) else [value]:
                    if item not in (None, "", {}):
                        hang(out, f"{DETAIL}{name}: ", str(item))
            hang(out, f"{DETAIL}next: ", each.remedy)
    ill = Counter(each.severity for each in findings if each.code)
    if not ill:
        out.print(f"all is well ({len(findings)} looked at)")
        return
    counts = ", ".join(f"{ill[kind]} {kind.word}" for kind in sorted(ill, key=lambda kind: -kind.rank))
    out.print(f"{sum(ill.values())} of {len(findings)} findings want a hand: {counts}")
