"""Is the set complete? Every requirement of every wheel, under the target's markers, met by a wheel of the set.

A lock made on one platform misses what another needs (environment markers); here that is found on the connected side,
from the wheels' own metadata, for each target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from appliance.errors import VendorError
from appliance.files import read_regular
from appliance.vendoring.locks import Lock
from appliance.vendoring.targets import Target
from appliance.vendoring.wheel import Inspection

MAX_INPUT_BYTES = 1024 * 1024  # bytes


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements of a pip-tools input (`-r` followed, `-c` is not a requirement).

    Raises:
        VendorError: VENDOR_LOCK_MALFORMED.
    """
    found: list[Requirement] = []
    for number, line in enumerate(read_regular(path, max_bytes=MAX_INPUT_BYTES).decode("utf-8").splitlines(), 1):
        text = line.split("#", 1)[0].strip()
        if text.startswith("-r "):
            found += read_requirements(path.parent / text[3:].strip())
        elif text and not text.startswith("-c "):
            try:
                found.append(Requirement(text))
            except InvalidRequirement as error:
                raise VendorError(
                    "VENDOR_LOCK_MALFORMED", f"{path.name}, line {number}: {error}", lock=path.name, line=number
                ) from None
    return found


def roots_of(vendor: Path, locks: Iterable[Lock]) -> list[Requirement]:
    """What the inputs of some locks ask for; `gateway.lock` and `gateway.cp312.lock` both come from `gateway.in`.

    A lock that has no input there stands for itself: each of its pins is asked for.
    """
    roots: list[Requirement] = []
    seen: set[Path] = set()
    for lock in locks:
        source = vendor / "requirements" / f"{lock.name.split('.', 1)[0]}.in"
        if source.exists() and source not in seen:
            roots += read_requirements(source)
        elif not source.exists():
            roots += [Requirement(str(pin)) for pin in lock.pins]
        seen.add(source)
    return roots


def check_closure(roots: Iterable[Requirement], wheels: Iterable[Inspection], target: Target) -> tuple[str, ...]:
    """Check that the wheels meet the roots and each other's requirements on a target.

    Args:
        roots: what was asked for, with extras.
        wheels: the whole set.
        target: whose Python and markers count, those of its oldest and of a late patch release.

    Returns:
        Names of wheels that nothing asks for on this target (harmless, e.g. needed on another Python).

    Raises:
        VendorError: VENDOR_DEPENDENCY naming every unmet requirement and who asks for it.
    """
    by_name = {wheel.name: wheel for wheel in wheels}
    unmet: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    queue: list[tuple[Requirement, str]] = [(root, "the release's own input") for root in roots]
    while queue:
        requirement, asker = queue.pop()
        name = str(canonicalize_name(requirement.name))
        wheel = by_name.get(name)
        problem = _problem(requirement, wheel, target)
        if problem or wheel is None:
            unmet[str(requirement)] = f"asked for by {asker}: {problem}"
            continue
        for extra in ("", *sorted(str(canonicalize_name(extra)) for extra in requirement.extras)):
            if (name, extra) not in done:
                done.add((name, extra))
                queue += [(needed, f"{wheel.name} {wheel.version}") for needed in needs(wheel, extra, target)]
    if unmet:
        raise VendorError(
            "VENDOR_DEPENDENCY",
            f"{len(unmet)} requirements are not met on {target.name}: {', '.join(sorted(unmet)[:5])}",
            target=target.name,
            unmet=dict(sorted(unmet.items())),
        )
    return tuple(sorted(by_name.keys() - {name for name, _ in done}))


def _problem(requirement: Requirement, wheel: Inspection | None, target: Target) -> str | None:
    if wheel is None:
        return "no wheel of that name"
    if not requirement.specifier.contains(Version(wheel.version), prereleases=True):
        return f"the set has {wheel.version}"
    try:
        if wheel.requires_python and not SpecifierSet(wheel.requires_python).contains(target.late_python):
            return f"it requires Python {wheel.requires_python}"
    except InvalidSpecifier:
        return f"its Requires-Python {wheel.requires_python!r} cannot be read"
    return None


def needs(wheel: Inspection, extra: str, target: Target) -> Iterable[Requirement]:
    """What a wheel asks for on a target; with an extra's name, what that extra adds.

    Raises:
        VendorError: VENDOR_METADATA where a requirement cannot be read.
    """
    for text in wheel.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise VendorError(
                "VENDOR_METADATA", f"{wheel.filename}: Requires-Dist {text[:80]!r}: {error}", wheel=wheel.filename
            ) from None
        if any(_applies(requirement, extra, environment) for environment in target.environments):
            yield requirement


def _applies(requirement: Requirement, extra: str, environment: Mapping[str, str]) -> bool:
    """Whether a requirement is needed; with an extra, only what that extra adds."""
    if requirement.marker is None:
        return not extra
    plain = requirement.marker.evaluate(dict(environment))
    return not plain and requirement.marker.evaluate({**environment, "extra": extra}) if extra else plain
