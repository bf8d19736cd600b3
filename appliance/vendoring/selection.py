"""Which wheel stands for a pin on a target; all pins that have none are named at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from appliance.errors import VendorError
from appliance.vendoring.index import Index
from appliance.vendoring.locks import Pin
from appliance.vendoring.pages import IndexFile
from appliance.vendoring.targets import Target

LOOKUPS_AT_ONCE = 12


@dataclass(frozen=True)
class Selected:
    """The wheel chosen for a pin."""

    pin: Pin
    file: IndexFile


@dataclass(frozen=True)
class WheelName:
    """What a wheel's file name says (PEP 427)."""

    project: str
    version: Version
    build: tuple[int, str] | tuple[()]
    tags: frozenset[Tag]


def wheel_name(filename: str) -> WheelName | None:
    """Parse a wheel's file name; None where it is not one."""
    try:
        project, version, build, tags = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        return None
    return WheelName(str(project), version, build, tags)


def version_of(filename: str) -> Version | None:
    """The version in the name of a wheel or source archive; None where it is neither."""
    name = wheel_name(filename)
    if name is not None:
        return name.version
    try:
        return parse_sdist_filename(filename)[1]
    except InvalidSdistFilename:
        return None


def rank(name: WheelName, target: Target) -> int | None:
    """How well a wheel fits a target (0 is best), None where it cannot run there."""
    ranks = [target.tags[tag] for tag in name.tags if tag in target.tags]
    return min(ranks) if ranks else None


def select(pins: Iterable[Pin], target: Target, index: Index) -> list[Selected]:
    """Choose one wheel per pin, asking the index for several at once.

    Raises:
        VendorError: VENDOR_WHEEL_MISSING naming every pin without a fitting wheel and why; VENDOR_SDIST_ONLY where the
            only fault is that some have source archives alone; those of `Index.files`.
    """
    wanted = list(pins)
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:
        offers = list(pool.map(lambda pin: index.files(pin.name), wanted))
    chosen: list[Selected] = []
    missing: dict[str, str] = {}
    sdist_only = 0
    for pin, files in zip(wanted, offers, strict=True):
        file = best(pin, files, target)
        if file is not None:
            chosen.append(Selected(pin, file))
            continue
        missing[str(pin)] = why_missing(pin, files, target)
        sdist_only += missing[str(pin)] == SDIST_ONLY
    if missing:
        raise VendorError(
            "VENDOR_SDIST_ONLY" if sdist_only == len(missing) else "VENDOR_WHEEL_MISSING",
            f"{len(missing)} of {len(wanted)} packages have no wheel for {target.name}: {', '.join(missing)}",
            target=target.name,
            missing=missing,
        )
    return chosen


def best(pin: Pin, files: Sequence[IndexFile], target: Target) -> IndexFile | None:
    """The file that fits best: locked hash, exact version, accepted tag and Python; among equals the highest build."""
    candidates: list[tuple[tuple[int, tuple[int, ...], str], IndexFile]] = []
    for file in files:
        name = wheel_name(file.filename)
        if name is None or name.project != pin.name or name.version != pin.version:
            continue
        place = rank(name, target)
        if place is None or not _python_fits(file, target) or (file.sha256 and file.sha256 not in pin.hashes):
            continue
        build = tuple(-part for part in name.build[:1] if isinstance(part, int))
        candidates.append(((place, build, file.filename), file))
    # a file whose hash the index tells goes before one that must be downloaded to know it
    return min(candidates, key=lambda item: (item[0], item[1].sha256 is None), default=(None, None))[1]


SDIST_ONLY = "only a source archive; nothing is built on the way into a release"


def why_missing(pin: Pin, files: Sequence[IndexFile], target: Target) -> str:
    """The reason, most specific first, that no file stands for a pin."""
    if not files:
        return "the index does not know it"
    wheels = [(name, file) for file in files if (name := wheel_name(file.filename)) and name.project == pin.name]
    of_version = [(name, file) for name, file in wheels if name.version == pin.version]
    if not of_version:
        return SDIST_ONLY if any(_is_sdist(file, pin) for file in files) else "the index does not have this version"
    fitting = [(name, file) for name, file in of_version if rank(name, target) is not None]
    if fitting and not any(_python_fits(file, target) for _, file in fitting):
        return f"requires Python {fitting[0][1].requires_python}"
    if fitting:
        return "the index offers it with a hash that is not in the lock"
    platforms = sorted({tag.platform for name, _ in of_version for tag in name.tags if tag.platform != "any"})
    glibc = f"glibc {target.glibc[0]}.{target.glibc[1]}"
    same = [text for text in platforms if text.endswith(target.architecture) and "linux" in text]
    if same:
        return f"no wheel for this Python and {glibc}; there are {', '.join(same)}"
    return f"no wheel for {target.architecture}; there are {', '.join(platforms) or 'none'}"


def _python_fits(file: IndexFile, target: Target) -> bool:
    if not file.requires_python:
        return True
    try:
        return SpecifierSet(file.requires_python).contains(target.late_python)
    except InvalidSpecifier:
        return False


def _is_sdist(file: IndexFile, pin: Pin) -> bool:
    try:
        name, version = parse_sdist_filename(file.filename)
    except InvalidSdistFilename:
        return False
    return canonicalize_name(name) == pin.name and version == pin.version
