"""An installed release against what was signed: payload by the manifest, environment by the verified wheels."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.bundle.stage0.environment import REQUIREMENTS
from appliance.bundle.stage0.manifest import Manifest

SMALL_BYTES = 256 * 1024  # hashed also in the quick comparison
_INSTALLER_FILES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")
NO_ENVIRONMENT = "env/lib"  # missing where there is none at all
_PROGRAMS = "../../../bin/"  # as a wheel's installed RECORD writes them


@dataclass
class Comparison:
    """What differs, as paths below the release: `payload/...`, `env/...` (below site-packages), `bin/...` (programs).

    Attributes:
        compared: how many files.
        changed, missing, foreign: other content, nothing or no file there, not part of the release.
    """

    compared: int = 0
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def differing(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(sorted({*self.changed, *self.missing, *self.foreign}))

    def judge(self, path: Path, name: str, size: int, digest: str, *, deep: bool) -> None:
        """Compare one file: `deep` to the byte, else in size and to the byte where it is small."""
        self.compared += 1
        if path.is_symlink() or not path.is_file():
            self.missing.append(name)
        elif path.stat().st_size != size or ((deep or size <= SMALL_BYTES) and _sha256(path) != digest):
            self.changed.append(name)


def compare_payload(folder: Path, manifest: Manifest, *, deep: bool) -> Comparison:
    """The payload of a release's folder against its manifest."""
    found = Comparison()
    members = {member.path: member for member in manifest.members}
    for member in members.values():
        path = folder / "payload" / member.path
        found.judge(path, f"payload/{member.path}", member.size_bytes, member.sha256, deep=deep)
    found.foreign += [f"payload/{name}" for name in _files(folder / "payload") if name not in members]
    return found


def compare_environment(folder: Path, differing: tuple[str, ...], *, deep: bool) -> Comparison:
    """The environment of a release's folder against its wheels.

    Args:
        folder: of the release.
        differing: what `compare_payload` found: a wheel that is not as signed says nothing about the environment.
        deep: hash every byte.
    """
    found = Comparison()
    wheels = installed_wheels(folder, differing)
    site = site_packages(folder)
    if site is None:
        found.missing += [NO_ENVIRONMENT] if wheels.good or wheels.bad else []
        return found
    recorded = {name: file for wheel in wheels.good for name, file in _recorded(wheel).items()}
    for name, (size, digest) in recorded.items():
        found.judge(site / name, f"env/{name}", size, digest, deep=deep)
    for record in site.glob("*.dist-info/RECORD"):
        for name, size, digest in _programs(record):
            found.judge(folder / "env" / "bin" / name, f"bin/{name}", size, digest, deep=True)
    for name in _files(site) if not wheels.bad else ():
        made_here = name.endswith((".pyc", *_INSTALLER_FILES))
        if name not in recorded and not made_here:
            found.foreign.append(f"env/{name}")
    return found


def site_packages(folder: Path) -> Path | None:
    """Where a release's environment keeps its distributions; None where there is no environment."""
    return next(iter(sorted((folder / "env").glob("lib/python*/site-packages"))), None)


@dataclass(frozen=True)
class Wheels:
    """The wheels that an environment was made from: those as signed, and whether there are others."""

    good: tuple[Path, ...]
    bad: bool


def installed_wheels(folder: Path, differing: tuple[str, ...]) -> Wheels:
    """The wheels of what the signed requirements put into the environment (not uv, which makes it)."""
    requirements = folder / "payload" / REQUIREMENTS
    lines = requirements.read_text("utf-8").splitlines() if requirements.is_file() else []
    wanted = {_normal(line.split("==", 1)[0]) for line in lines if "==" in line}
    wheels = {
        _normal(wheel.name.split("-", 1)[0]): wheel for wheel in sorted((folder / "payload" / "wheels").glob("*.whl"))
    }
    good = {
        name: wheel
        for name, wheel in wheels.items()
        if name in wanted and f"payload/wheels/{wheel.name}" not in differing
    }
    return Wheels(tuple(good.values()), bad=len(good) < len(wanted) or f"payload/{REQUIREMENTS}" in differing)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _recorded(wheel: Path) -> dict[str, tuple[int, str]]:
    """RECORD of a wheel (its own digest stands in the manifest): name -> size, SHA-256 hex."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        for name, given, *_ in csv.reader(io.TextIOWrapper(archive.open(record), "utf-8")):
            if ".data/" in name or name.endswith(_INSTALLER_FILES):
                continue
            algorithm, _, encoded = given.partition("=")
            # no digest, or another algorithm's: the wheel itself has the content
            digest = _hex(encoded) if algorithm == "sha256" else hashlib.sha256(archive.read(name)).hexdigest()
            found[name] = (archive.getinfo(name).file_size, digest)
    return found


def _programs(record: Path) -> Iterator[tuple[str, int, str]]:
    """Programs that an installed distribution brought: name, size and digest as they were written then.

    Their text names the environment's folder, so that no wheel can say it. This finds damage, not an attacker who
    writes both.
    """
    try:
        rows = list(csv.reader(record.read_text("utf-8").splitlines()))
    except (OSError, ValueError, csv.Error):
        return
    for row in rows:
        if len(row) == 3 and row[0].startswith(_PROGRAMS) and row[1].startswith("sha256=") and row[2].isdigit():
            yield row[0].removeprefix(_PROGRAMS), int(row[2]), _hex(row[1].removeprefix("sha256="))


def _hex(encoded: str) -> str:
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            yield path.relative_to(folder).as_posix()
