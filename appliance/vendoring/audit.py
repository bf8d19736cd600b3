"""The whole audit of a folder of wheels: admission, completeness, and the difference to the release before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.errors import VendorError
from appliance.vendoring.admission import Admission, admit
from appliance.vendoring.closure import check_closure, roots_of
from appliance.vendoring.difference import Difference, compare, read_report_file
from appliance.vendoring.fetch import Progress, silent
from appliance.vendoring.policy import Policy
from appliance.vendoring.rules import Notice
from appliance.vendoring.targets import Targets
from appliance.vendoring.vex import read_vex, stale
from appliance.vendoring.wheel import Inspection


@dataclass(frozen=True)
class Audit:
    """What an approver is shown.

    Attributes:
        admission: the verdict.
        unneeded: wheels of the profile that nothing asks for on this target.
        differences: to the previous release; None where there was none to compare with.
    """

    admission: Admission
    unneeded: tuple[str, ...]
    differences: list[Difference] | None

    def as_dict(self) -> dict[str, Any]:
        """The audit as `--json` prints it."""
        return {
            "admitted": not self.admission.refusals,
            "refusals": [refusal.as_dict()["error"] for refusal in self.admission.refusals],
            "notices": [asdict(notice) for notice in self.admission.notices],
            "unneeded": self.unneeded,
            "differences": None
            if self.differences is None
            else [{**asdict(difference), "weighty": difference.weighty} for difference in self.differences],
            "wheels": [wheel.model_dump(mode="json") for wheel in self.admission.inspections],
        }


def audit(
    directory: Path,
    vendor: Path,
    *,
    profile: str | None,
    target: str,
    now: datetime,
    against: Path | None = None,
    progress: Progress = silent,
) -> Audit:
    """Audit a folder of wheels.

    Args:
        directory: the wheels.
        vendor: the folder of locks, targets and policy.
        profile: where given, exactly this profile's wheels count and must be complete and closed.
        target: name of the target that must be able to run them.
        now: against which ages are measured.
        against: the previous release, a folder of wheels or a report of one.
        progress: told wheels done and in all.

    Raises:
        VendorError, DocumentError, FileError: the audit cannot be made; what is refused stands in the result.
    """
    targets = Targets.read(vendor)
    host = targets.target(target)
    pins = targets.pins(profile, target) if profile else None
    admission = admit(directory, Policy.read(vendor), now=now, target=host, pins=pins, progress=progress)
    unneeded: tuple[str, ...] = ()
    if profile and not admission.refusals:
        roots = roots_of(vendor, targets.locks(profile, target))
        try:
            unneeded = check_closure(roots, admission.inspections, host)
        except VendorError as error:
            admission = replace(admission, refusals=(error,))
    outdated = stale((document for document, _ in read_vex(vendor).values()), admission.inspections)
    admission = replace(admission, notices=(*admission.notices, *(Notice("vex", text) for text in outdated)))
    differences = None if against is None else compare(_previous(against, progress), admission.inspections)
    return Audit(admission, unneeded, differences)


def _previous(against: Path, progress: Progress) -> tuple[Inspection, ...]:
    if against.is_file():
        return read_report_file(against)
    nothing = Policy.model_validate({"schema_version": 1, "ripening": {"minimum_days": 0}})
    return admit(against, nothing, now=datetime.now(UTC), progress=progress).inspections
