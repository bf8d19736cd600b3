"""The rules of admission: each looks at one report (or at all of them together) and yields what it finds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.errors import VendorError
from appliance.vendoring.fetch import FetchedWheel
from appliance.vendoring.policy import Policy
from appliance.vendoring.selection import rank, wheel_name
from appliance.vendoring.targets import Target
from appliance.vendoring.wheel import Inspection


@dataclass(frozen=True)
class Notice:
    """Something the approver should see that does not refuse the wheel."""

    wheel: str
    text: str


Finding = VendorError | Notice


@dataclass(frozen=True)
class Circumstances:
    """What the rules need to know besides the wheel.

    Attributes:
        policy: the owners' rules.
        now: against which ages are measured, with a zone.
        target: where the wheels shall run; None checks no tags and no glibc.
        told: SHA-256 -> what the index said of the wheel.
    """

    policy: Policy
    now: datetime
    target: Target | None
    told: Mapping[str, FetchedWheel]


def versions(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Known-vulnerable and malicious releases."""
    reason = at.policy.refused_packages.get(wheel.name)
    if reason is not None:
        yield VendorError("VENDOR_VULNERABLE", f"{wheel.name} is refused: {reason}", wheel=wheel.filename)
    for rule in at.policy.refused_versions:
        if rule.covers(wheel.name, wheel.version):
            yield VendorError(
                "VENDOR_VULNERABLE",
                f"{wheel.name} {wheel.version} is refused ({rule.versions}): {rule.reason}",
                wheel=wheel.filename,
                advisories=rule.advisories,
            )


def startup(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Files that Python reads or runs at every start: refused unless a person read and allowed that very content."""
    for file in wheel.startup:
        does = "runs code" if file.executes else "changes what is imported"
        if at.policy.allows_startup(wheel.name, file.path, file.sha256):
            yield Notice(wheel.filename, f"{file.path} {does} at every interpreter start; allowed by its digest")
            continue
        yield VendorError(
            "VENDOR_STARTUP_FILE",
            f"{wheel.filename}: {file.path} {does} at every interpreter start",
            wheel=wheel.filename,
            file=file.path,
            sha256=file.sha256,
        )


def outside(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Files that land outside the package's own folder."""
    refused = [path for path in wheel.outside if not at.policy.allows_outside(wheel.name, path)]
    if refused:
        yield VendorError(
            "VENDOR_INSTALLS_OUTSIDE",
            f"{wheel.filename}: {refused[0]} lands outside the package's folder",
            wheel=wheel.filename,
            files=refused[:10],
        )
    elif wheel.outside:
        yield Notice(wheel.filename, f"{len(wheel.outside)} files outside its folder, all where the policy allows them")


def hidden_code(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Compiled Python (it may differ from the source beside it) is refused; pickles are told."""
    allowed = at.policy.bytecode.get(wheel.name)
    if wheel.bytecode and allowed is None:
        yield VendorError(
            "VENDOR_BYTECODE",
            f"{wheel.filename}: {wheel.bytecode[0]} is compiled Python",
            wheel=wheel.filename,
            files=wheel.bytecode[:10],
        )
    elif wheel.bytecode:
        yield Notice(wheel.filename, f"{len(wheel.bytecode)} files of compiled Python; allowed: {allowed}")
    if wheel.pickles:
        yield Notice(wheel.filename, f"{len(wheel.pickles)} pickle files, e.g. {wheel.pickles[0]}")


def licence(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Licences that the owners do not take, and those they want to see."""
    told = wheel.licence
    words = " ".join(filter(None, (told.expression, told.text, *told.classifiers))).lower()
    if not words and not told.files:
        yield Notice(wheel.filename, "names no licence")
    if wheel.name in at.policy.licence_exceptions:
        return
    for refused in at.policy.refused_licences:
        if refused.lower() in words:
            cause = f"{wheel.filename}: its licence names {refused}"
            yield VendorError("VENDOR_LICENCE", cause, wheel=wheel.filename, licence=" / ".join(told.names))
    if any(reported.lower() in words for reported in at.policy.reported_licences):
        yield Notice(wheel.filename, f"licence {' / '.join(told.names)}")


def withdrawn(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Releases their publisher has yanked (PEP 592)."""
    told = at.told.get(wheel.sha256)
    if told is None or not told.yanked:
        return
    allowed = at.policy.yanked.get(wheel.name)
    if allowed is None:
        yield VendorError("VENDOR_YANKED", f"{wheel.filename} was withdrawn by its publisher", wheel=wheel.filename)
    else:
        yield Notice(wheel.filename, f"withdrawn by its publisher; allowed: {allowed}")


def ripe(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Releases ripen before they are taken: most malicious ones are found within days (PEP 700 tells the time)."""
    rule = at.policy.ripening
    told = at.told.get(wheel.sha256)
    exempt = rule.reason_for(wheel.name, wheel.version)
    if told is None or told.uploaded is None:
        if rule.unknown == "refuse" and exempt is None:
            cause = f"no index tells when {wheel.filename} was uploaded"
            yield VendorError("VENDOR_AGE_UNKNOWN", cause, wheel=wheel.filename)
        else:
            yield Notice(wheel.filename, "no index tells when it was uploaded")
        return
    age = at.now - datetime.fromisoformat(told.uploaded)
    if age >= timedelta(days=rule.minimum_days):
        return
    days = f"was uploaded {age / timedelta(days=1):.1f} days ago"
    if age < timedelta(0):
        days = f"was uploaded on {told.uploaded[:10]}, while this host's clock says {at.now:%Y-%m-%d}"
    if exempt is not None:
        yield Notice(wheel.filename, f"{days}; exempt: {exempt}")
        return
    yield VendorError(
        "VENDOR_TOO_YOUNG",
        f"{wheel.filename} {days}, the policy asks for {rule.minimum_days} days",
        wheel=wheel.filename,
        uploaded=told.uploaded,
        minimum_days=rule.minimum_days,
    )


def native(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Tags, machine and glibc against the target; what hardened hosts dislike is told."""
    if any(library.executable_stack for library in wheel.native):
        yield Notice(wheel.filename, "a library asks for an executable stack; hardened hosts refuse to load it")
    strange = sorted({path for library in wheel.native for path in library.search_paths})
    if strange:
        yield Notice(wheel.filename, f"libraries also search {', '.join(strange[:4])}")
    target = at.target
    if target is None:
        return
    name = wheel_name(wheel.filename)
    if name is None or rank(name, target) is None:
        cause = f"{wheel.filename} cannot run on {target.name}"
        yield VendorError("VENDOR_TAG", cause, wheel=wheel.filename, target=target.name)
    for library in wheel.native:
        if library.machine != target.architecture:
            yield VendorError(
                "VENDOR_NATIVE",
                f"{wheel.filename}: {library.path} is for {library.machine}, not for {target.architecture}",
                wheel=wheel.filename,
                file=library.path,
            )
        elif library.glibc_pair > target.glibc:
            yield VendorError(
                "VENDOR_GLIBC",
                f"{wheel.filename}: {library.path} needs glibc {library.glibc}, "
                f"{target.name} may have {target.glibc[0]}.{target.glibc[1]}",
                wheel=wheel.filename,
                file=library.path,
            )


def phones_home(wheel: Inspection, at: Circumstances) -> Iterator[Finding]:
    """Telemetry hosts in native libraries: threads outside Python that no import guard sees."""
    words = set(at.policy.telemetry_words)
    for host in sorted({host for library in wheel.native for host in library.hosts}):
        if words.isdisjoint(re.split(r"[.-]", host)):
            continue
        reason = at.policy.silenced(wheel.name, host)
        if reason is None:
            cause = f"{wheel.filename}: a native library knows the host {host}"
            yield VendorError("VENDOR_PHONES_HOME", cause, wheel=wheel.filename, host=host)
        else:
            yield Notice(wheel.filename, f"knows {host}; {reason}")


EACH = (versions, startup, outside, hidden_code, licence, withdrawn, ripe, native, phones_home)


def collisions(wheels: Sequence[Inspection]) -> Iterator[Finding]:
    """Two wheels writing different content to one path: which runs would depend on the order of installation."""
    files: dict[str, tuple[str, str]] = {}
    programs: dict[str, tuple[str, str]] = {}
    for wheel in wheels:
        for path, digest in wheel.paths.items():
            other, known = files.setdefault(path.casefold(), (wheel.filename, digest))
            if known != digest:
                yield _collision(wheel.filename, other, path)
        for program, target in wheel.programs.items():
            other, known = programs.setdefault(program, (wheel.filename, target))
            if known != target:
                yield _collision(wheel.filename, other, f"[scripts]/{program}")


def _collision(wheel: str, other: str, path: str) -> VendorError:
    cause = f"{wheel} and {other} both install {path}, with different content"
    return VendorError("VENDOR_COLLISION", cause, wheel=wheel, other=other, file=path)
