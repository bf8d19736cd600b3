"""The one tree of refusals.

Every refusal of the appliance is an `ApplianceError`: a stable code, the cause, the evidence, and the next command to
type. What a code means and what to do about it stands in the catalogue (`catalogue/<area>.yaml`), which
`appliance explain CODE` prints and the documentation is generated from. An error whose code the catalogue does not
know cannot be raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import yaml


@dataclass(frozen=True)
class CatalogueEntry:
    """What the catalogue says of one code.

    Attributes:
        code: stable name, upper case with underscores; its first word is the area's prefix.
        area: the catalogue file that holds it.
        meaning: one or two sentences for a person who has just met the code.
        remedy: what to do next, with the command to type.
    """

    code: str
    area: str
    meaning: str
    remedy: str


@cache
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Read every `catalogue/*.yaml` of the package: code -> entry."""
    entries: dict[str, CatalogueEntry] = {}
    for file in sorted(resources.files("appliance").joinpath("catalogue").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".yaml"):
            continue
        area = file.name.removesuffix(".yaml")
        for code, text in (yaml.safe_load(file.read_text("utf-8")) or {}).items():
            if code in entries:
                raise ValueError(f"code {code} stands in two catalogue files: {entries[code].area}, {area}")
            entries[code] = CatalogueEntry(code, area, " ".join(text["meaning"].split()), text["remedy"].strip())
    return entries


class ApplianceError(Exception):
    """A refusal with a stable code.

    Args:
        code: a code of the catalogue.
        cause: what went wrong here, one sentence, no trailing remedy.
        evidence: the values that show it (digests, paths, sizes, identities); never a secret, never prompt text.
        remedy: overrides the catalogue's remedy where this place knows better.
    """

    area: ClassVar[str] = ""

    def __init__(self, code: str, cause: str, *, remedy: str | None = None, **evidence: Any) -> None:
        entry = catalogue().get(code)
        if entry is None:
            raise LookupError(f"no catalogue entry for code {code}")
        if self.area and entry.area != self.area:
            raise LookupError(f"code {code} belongs to {entry.area}, not to {self.area}")
        super().__init__(f"{code}: {cause}")
        self.code = code
        self.cause = cause
        self.evidence: dict[str, Any] = evidence
        self.remedy = remedy if remedy is not None else entry.remedy

    def as_dict(self) -> dict[str, Any]:
        """The refusal as `--json` prints it."""
        return {
            "error": {
                "code": self.code,
                "cause": self.cause,
                "evidence": {name: _plain(value) for name, value in self.evidence.items()},
                "remedy": self.remedy,
            }
        }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


class DocumentError(ApplianceError):
    """A document (JSON, YAML) is malformed, oversized, ambiguous or has unknown keys."""

    area = "document"


class FileError(ApplianceError):
    """The file system refused, or holds something that must not be followed or replaced."""

    area = "file"


class ConfigError(ApplianceError):
    """The operator's configuration cannot be used."""

    area = "config"


class TrustError(ApplianceError):
    """A signature, certificate, log proof, time or policy was refused."""

    area = "trust"


class ArtifactError(ApplianceError):
    """A router or encoder artifact is malformed."""

    area = "artifact"


class RouterError(ApplianceError):
    """A router or an encoder cannot be built from its (verified) files, or cannot decide."""

    area = "router"


class RegistryError(ApplianceError):
    """The registry is unreachable, inconsistent or was refused."""

    area = "registry"


class VendorError(ApplianceError):
    """A wheel, lock or model may not enter a release."""

    area = "vendor"


class BundleError(ApplianceError):
    """A release bundle is malformed, incomplete or altered."""

    area = "bundle"


class InstallError(ApplianceError):
    """The host is not fit for an installation, or an installation could not be completed."""

    area = "install"


class IntakeError(ApplianceError):
    """A model may not cross the import border."""

    area = "intake"


class TrainingError(ApplianceError):
    """Training data or a fitted router is not fit for use."""

    area = "training"


class GatewayError(ApplianceError):
    """The gateway cannot boot or serve as configured."""

    area = "gateway"


class OperationError(ApplianceError):
    """An operator's command cannot be carried out."""

    area = "operation"
