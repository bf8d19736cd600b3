"""How findings are told: one line for Nagios, metrics for a node exporter's text-file folder, the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from appliance.operations.doctor.finding import Finding, Severity, worst


def nagios_line(findings: Sequence[Finding]) -> str:
    """One line of plugin output with performance data (Monitoring Plugins guidelines, 2.1 and 2.6)."""
    severity = worst(findings)
    counts = {each: sum(f.severity is each for f in findings) for each in Severity}
    ill = [f for f in findings if f.severity is not Severity.OK]
    said = "; ".join(f"{f.code}: {f.text}" for f in sorted(ill, key=lambda f: -f.severity.rank)[:3]) or (
        f"{len(findings)} checks are well"
    )
    more = f" (and {len(ill) - 3} more)" if len(ill) > 3 else ""
    performance = " ".join(f"{each.word}={count};;;0;{len(findings)}" for each, count in counts.items())
    # a pipe begins performance data, a newline ends the line: neither may come from a finding
    clean = f"{said}{more}".replace("|", "/").replace("\n", " ")
    return f"APPLIANCE {severity.name} - {clean} | {performance}"


def prometheus_text(findings: Sequence[Finding], at: datetime) -> str:
    """Metrics in the text exposition format."""
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    lines = [
        "# HELP appliance_doctor_severity Worst finding of a check: 0 ok, 1 warning, 2 critical, 3 unknown.",
        "# TYPE appliance_doctor_severity gauge",
        *(f'appliance_doctor_severity{{check="{name}"}} {int(worst(each))}' for name, each in sorted(by_check.items())),
        "# HELP appliance_doctor_last_run_timestamp_seconds When the doctor last looked.",
        "# TYPE appliance_doctor_last_run_timestamp_seconds gauge",
        f"appliance_doctor_last_run_timestamp_seconds {at.timestamp():.0f}",
    ]
    return "\n".join(lines) + "\n"


def exit_status(findings: Sequence[Finding], *, nagios: bool) -> int:
    """0 where all is well; else 1, or the plugin's own number for Nagios."""
    severity = worst(findings)
    return int(severity) if nagios else int(severity is not Severity.OK)
