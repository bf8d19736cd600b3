"""Targets: the hosts of the zone, and which wheels they can run (PEP 425, PEP 600).

A target is a Python, an architecture and the oldest glibc that a host may have. Whether a wheel fits is decided here,
at build time, from its tags, and once more from the symbols its libraries ask for (`native`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from packaging.tags import Tag, compatible_tags, cpython_tags
from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance import documents
from appliance.errors import VendorError
from appliance.files import read_regular
from appliance.vendoring.locks import Lock, Pin, merged, read_lock

LATE_PATCH = 99  # later than any patch release of a series
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}  # minor version at which manylinux begins
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


@dataclass(frozen=True)
class Target:
    """A kind of host.

    Attributes:
        name: e.g. `cp311-manylinux_x86_64`.
        python: (major, minor).
        architecture: as `uname -m` prints it.
        glibc: oldest version a host may have, (major, minor).
    """

    name: str
    python: tuple[int, int]
    architecture: str
    glibc: tuple[int, int]

    def __post_init__(self) -> None:
        if self.glibc < (2, _OLDEST_GLIBC[self.architecture]):
            raise ValueError(f"no wheel is built for glibc {self.glibc} on {self.architecture}")

    @cached_property
    def tags(self) -> dict[Tag, int]:
        """Every tag the target accepts -> rank, the best first."""
        platforms = list(self._platforms())
        ordered = [
            *cpython_tags(self.python, platforms=platforms, abis=[f"cp{self.python[0]}{self.python[1]}"]),
            *compatible_tags(self.python, f"cp{self.python[0]}{self.python[1]}", platforms),
        ]
        return {tag: rank for rank, tag in reversed(list(enumerate(ordered)))}

    @property
    def environments(self) -> tuple[dict[str, str], dict[str, str]]:
        """The marker environments (PEP 508) of the oldest and of a late patch release of CPython on the target."""
        return self._environment(0), self._environment(LATE_PATCH)

    @property
    def late_python(self) -> str:
        """A version that stands for the series where a package asks for some patch release of it."""
        return f"{self.python[0]}.{self.python[1]}.{LATE_PATCH}"

    def _environment(self, patch: int) -> dict[str, str]:
        python = f"{self.python[0]}.{self.python[1]}"
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{python}.{patch}",
            "os_name": "posix",
            "platform_machine": self.architecture,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{python}.{patch}",
            "python_version": python,
            "sys_platform": "linux",
            "extra": "",
        }

    def _platforms(self) -> list[str]:
        names = []
        for minor in range(self.glibc[1], _OLDEST_GLIBC[self.architecture] - 1, -1):
            names.append(f"manylinux_2_{minor}_{self.architecture}")
            if minor in _LEGACY:
                names.append(f"{_LEGACY[minor]}_{self.architecture}")
        return names


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _TargetEntry(_Document):
    python: Annotated[str, Field(pattern=r"^3\.\d{1,2}$")]
    architecture: Literal["x86_64", "aarch64"]
    glibc: Annotated[str, Field(pattern=r"^2\.\d{1,2}$")]
    profiles: dict[str, list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*\.lock$")]]]

    @model_validator(mode="after")
    def _known_glibc(self) -> Self:
        if _pair(self.glibc) < (2, _OLDEST_GLIBC[self.architecture]):
            raise ValueError(f"no wheel is built for glibc {self.glibc} on {self.architecture}")
        return self


class _Targets(_Document):
    schema_version: Literal[1]
    targets: Annotated[dict[str, _TargetEntry], Field(min_length=1)]


@dataclass(frozen=True)
class Targets:
    """`targets.yaml`: the targets a release is built for, and the locks of each profile there."""

    folder: Path
    _entries: dict[str, _TargetEntry]

    @classmethod
    def read(cls, folder: Path) -> Targets:
        """Read `targets.yaml` of the vendor folder.

        Raises:
            DocumentError, FileError: the file is missing or malformed.
        """
        data = read_regular(folder / "targets.yaml", max_bytes=documents.MAX_BYTES)
        document = documents.validate(_Targets, documents.read_yaml(data, what="targets.yaml"), what="targets.yaml")
        return cls(folder, document.targets)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all targets."""
        return tuple(self._entries)

    def profiles(self, target: str) -> tuple[str, ...]:
        """Profiles that exist for a target."""
        return tuple(self._entry(target).profiles)

    def target(self, name: str) -> Target:
        """The target of a name.

        Raises:
            VendorError: VENDOR_UNKNOWN_TARGET.
        """
        entry = self._entry(name)
        return Target(name, _pair(entry.python), entry.architecture, _pair(entry.glibc))

    def locks(self, profile: str, target: str) -> tuple[Lock, ...]:
        """The locks of a profile on a target, in the order of installation.

        Raises:
            VendorError: VENDOR_UNKNOWN_TARGET, VENDOR_UNKNOWN_PROFILE and those of `read_lock`.
        """
        profiles = self._entry(target).profiles
        if profile not in profiles:
            raise VendorError(
                "VENDOR_UNKNOWN_PROFILE",
                f"no profile {profile!r} for {target}",
                profile=profile,
                known=sorted(profiles),
            )
        return tuple(read_lock(self.folder / "requirements" / name) for name in profiles[profile])

    def pins(self, profile: str, target: str) -> tuple[Pin, ...]:
        """What a profile needs on a target: its locks merged, markers applied."""
        environments = self.target(target).environments
        pins = merged(self.locks(profile, target))
        return tuple(pin for pin in pins if any(pin.applies(environment) for environment in environments))

    def every_pin(self, target: str) -> tuple[Pin, ...]:
        """What any profile of a target needs; a package that two profiles pin differently stands twice."""
        return tuple(dict.fromkeys(pin for profile in self.profiles(target) for pin in self.pins(profile, target)))

    def _entry(self, name: str) -> _TargetEntry:
        if name not in self._entries:
            raise VendorError("VENDOR_UNKNOWN_TARGET", f"no target {name!r}", target=name, known=sorted(self._entries))
        return self._entries[name]


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)
