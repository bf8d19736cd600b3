"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from appliance.errors import ApplianceError, catalogue


class Severity(IntEnum):
    """How much it matters; the numbers are the exit codes of a Nagios plugin."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3

    @property
    def word(self) -> str:
        """Lower case."""
        return self.name.lower()

    @property
    def rank(self) -> int:
        """How bad: unknown is worse than a warning, nobody looked; and better than what is known to be broken."""
        return (Severity.OK, Severity.WARNING, Severity.UNKNOWN, Severity.CRITICAL).index(self)


@dataclass(frozen=True)
class Finding:
    """One judgement.

    Attributes:
        check: name of the check, stable.
        severity: how much it matters.
        text: one sentence.
        code: of the catalogue; empty where all is well.
        remedy: the next command to type; empty where all is well.
        evidence: the values that show it.
    """

    check: str
    severity: Severity
    text: str
    code: str = ""
    remedy: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "check": self.check,
            "severity": self.severity.word,
            "text": self.text,
            "code": self.code,
            "remedy": self.remedy,
            "evidence": dict(self.evidence),
        }


def fine(check: str, text: str, **evidence: Any) -> Finding:
    """All is well."""
    return Finding(check, Severity.OK, text, evidence=evidence)


def warning(check: str, code: str, text: str, *, remedy: str | None = None, **evidence: Any) -> Finding:
    """It will hurt later, or costs quality now."""
    return _ill(check, Severity.WARNING, code, text, remedy, evidence)


def critical(check: str, code: str, text: str, *, remedy: str | None = None, **evidence: Any) -> Finding:
    """It hurts now, or something is not what was signed."""
    return _ill(check, Severity.CRITICAL, code, text, remedy, evidence)


def unknown(check: str, error: ApplianceError) -> Finding:
    """The facts could not be had."""
    return Finding(check, Severity.UNKNOWN, error.cause, error.code, error.remedy, error.evidence)


def worst(findings: Iterable[Finding]) -> Severity:
    """The severity of the whole."""
    return max((finding.severity for finding in findings), key=lambda severity: severity.rank, default=Severity.OK)


def _ill(
    check: str, severity: Severity, code: str, text: str, remedy: str | None, evidence: Mapping[str, Any]
) -> Finding:
    return Finding(check, severity, text, code, remedy or catalogue()[code].remedy, evidence)
