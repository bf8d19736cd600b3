"""Admission: every wheel of a folder looked into, all of them judged by the policy, all refusals named at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from packaging.version import Version

from appliance.errors import ApplianceError, VendorError
from appliance.files import read_regular, translated
from appliance.vendoring import rules
from appliance.vendoring.fetch import MAX_WHEEL_BYTES, Progress, read_fetched, silent
from appliance.vendoring.locks import Pin
from appliance.vendoring.policy import Policy
from appliance.vendoring.rules import Circumstances, Finding, Notice
from appliance.vendoring.selection import wheel_name
from appliance.vendoring.targets import Target
from appliance.vendoring.wheel import Inspection, inspect_wheel

WHEELS_AT_ONCE = 4


@dataclass(frozen=True)
class Admission:
    """The verdict on a set of wheels.

    Attributes:
        inspections: of the wheels that could be read, sorted by file name.
        refusals: why the set may not enter; empty where it may.
        notices: what the approver should see besides.
    """

    inspections: tuple[Inspection, ...]
    refusals: tuple[VendorError, ...]
    notices: tuple[Notice, ...]

    def require(self) -> tuple[Inspection, ...]:
        """The inspections, where nothing was refused.

        Raises:
            VendorError: the refusal itself where there is one, VENDOR_NOT_ADMITTED naming all where there are several.
        """
        if len(self.refusals) == 1:
            raise self.refusals[0]
        if self.refusals:
            raise VendorError(
                "VENDOR_NOT_ADMITTED",
                f"{len(self.refusals)} reasons to refuse: {', '.join(sorted({r.code for r in self.refusals}))}",
                refusals=[f"{refusal.code}: {refusal.cause}" for refusal in self.refusals],
            )
        return self.inspections


def admit(
    directory: Path,
    policy: Policy,
    *,
    now: datetime,
    target: Target | None = None,
    pins: Sequence[Pin] | None = None,
    progress: Progress = silent,
) -> Admission:
    """Judge the wheels of a folder.

    Args:
        directory: holds wheels, and perhaps what the index said of them (`fetched.json`).
        policy: the rules.
        now: the time against which the age of releases is measured, with a zone.
        target: where given, every wheel and native library must run there.
        pins: where given, only these count: each must be there with a locked hash; other wheels are ignored.
        progress: told wheels done and in all.

    Raises:
        VendorError: VENDOR_EMPTY where there is nothing to judge.
        FileError: the folder cannot be read.
    """
    with translated(directory):
        files = sorted(path for path in directory.iterdir() if path.suffix.lower() == ".whl")
    refusals: list[VendorError] = []
    if pins is not None:
        files, refusals = _locked_files(files, pins)
    if not files and not refusals:
        raise VendorError("VENDOR_EMPTY", f"{directory} holds no wheel", path=str(directory))
    inspections: list[Inspection] = []
    with ThreadPoolExecutor(WHEELS_AT_ONCE) as pool:
        for done, result in enumerate(pool.map(_inspect, files), 1):
            progress("looking into the wheels", done, len(files))
            if isinstance(result, Inspection):
                inspections.append(result)
            else:
                refusals.append(result)
    if pins is not None:
        refusals += _not_locked(inspections, pins)
    told = {wheel.sha256: wheel for wheel in read_fetched(directory)}
    verdict = judge(inspections, Circumstances(policy, now, target, told))
    return Admission(verdict.inspections, (*refusals, *verdict.refusals), verdict.notices)


def judge(inspections: Iterable[Inspection], circumstances: Circumstances) -> Admission:
    """Apply every rule to inspections, without touching a file."""
    ordered = tuple(sorted(inspections, key=lambda inspection: inspection.filename))
    findings: list[Finding] = [
        finding for wheel in ordered for rule in rules.EACH for finding in rule(wheel, circumstances)
    ]
    findings += rules.collisions(ordered)
    return Admission(
        ordered,
        tuple(finding for finding in findings if isinstance(finding, VendorError)),
        tuple(finding for finding in findings if isinstance(finding, Notice)),
    )


def _inspect(path: Path) -> Inspection | VendorError:
    try:
        return inspect_wheel(read_regular(path, max_bytes=MAX_WHEEL_BYTES), path.name)
    except VendorError as error:
        return error
    except ApplianceError as error:  # a link, a device, no permission
        return VendorError("VENDOR_ARCHIVE", f"{path.name}: {error.cause}", wheel=path.name)


def _locked_files(files: Sequence[Path], pins: Sequence[Pin]) -> tuple[list[Path], list[VendorError]]:
    """The files that stand for pins, and a refusal naming the pins that have none."""
    found: dict[tuple[str, Version], list[Path]] = {}
    for path in files:
        name = wheel_name(path.name)
        if name is not None:
            found.setdefault((name.project, name.version), []).append(path)
    missing = [str(pin) for pin in pins if (pin.name, pin.version) not in found]
    chosen = sorted(path for pin in pins for path in found.get((pin.name, pin.version), []))
    if not missing:
        return chosen, []
    cause = f"{len(missing)} locked packages are not there: {', '.join(missing[:5])}"
    return chosen, [VendorError("VENDOR_WHEEL_MISSING", cause, missing=missing)]


def _not_locked(inspections: Iterable[Inspection], pins: Sequence[Pin]) -> list[VendorError]:
    hashes = {pin.name: pin.hashes for pin in pins}
    return [
        VendorError(
            "VENDOR_HASH_MISMATCH",
            f"{wheel.filename} is not what the lock names",
            package=f"{wheel.name}=={wheel.version}",
            sha256=wheel.sha256,
        )
        for wheel in inspections
        if wheel.sha256 not in hashes[wheel.name]
    ]
