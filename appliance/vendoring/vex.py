"""VEX: what a scanner's finding means for this appliance (OpenVEX 0.2.0), carried along with the release."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance import documents
from appliance.errors import VendorError
from appliance.files import read_regular
from appliance.vendoring.wheel import Inspection

CONTEXT = "https://openvex.dev/ns/v0.2.0"
_PURL_NAME = re.compile(r"pkg:pypi/([a-z0-9][a-z0-9-]*)(?:@([^?#]+))?\Z")

Justification = Literal[
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
]
_Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class _Component(_Document):
    id: Annotated[str, Field(alias="@id", pattern=r"^pkg:")]


class _Product(_Component):
    subcomponents: Annotated[tuple[_Component, ...], Field(min_length=1)]


class _Vulnerability(_Document):
    name: Annotated[str, Field(pattern=r"^(CVE-\d{4}-\d{4,}|GHSA-[0-9a-z-]{14}|PYSEC-\d{4}-\d+)$")]
    description: str | None = None


class Statement(_Document):
    """One judgement: a vulnerability, the component that has it, and what it means here."""

    vulnerability: _Vulnerability
    products: Annotated[tuple[_Product, ...], Field(min_length=1)]
    status: Literal["not_affected", "affected", "fixed", "under_investigation"]
    justification: Justification | None = None
    impact_statement: str | None = None
    action_statement: str | None = None

    @model_validator(mode="after")
    def _reasons(self) -> Self:
        if self.status == "not_affected" and not (self.justification and self.impact_statement):
            raise ValueError("not_affected needs a justification and an impact_statement")
        if self.status == "affected" and not self.action_statement:
            raise ValueError("affected needs an action_statement")
        return self

    def components(self) -> list[tuple[str, str | None]]:
        """(name, version or None) of every Python distribution it speaks of."""
        found = [_PURL_NAME.match(part.id) for product in self.products for part in product.subcomponents]
        return [(match[1], match[2]) for match in found if match]


class Vex(_Document):
    """An OpenVEX document."""

    context: Annotated[Literal["https://openvex.dev/ns/v0.2.0"], Field(alias="@context")]
    id: Annotated[str, Field(alias="@id", min_length=8)]
    author: str
    timestamp: _Time
    version: Annotated[int, Field(ge=1)]
    statements: Annotated[tuple[Statement, ...], Field(min_length=1)]


def read_vex(folder: Path) -> dict[str, tuple[Vex, bytes]]:
    """Read every `vex/*.json` of the vendor folder: file name -> (document, its bytes).

    Raises:
        VendorError: VENDOR_VEX where a statement speaks of nothing a scanner could name.
        DocumentError, FileError: a file is malformed.
    """
    found: dict[str, tuple[Vex, bytes]] = {}
    for path in sorted((folder / "vex").glob("*.json")):
        data = read_regular(path, max_bytes=documents.MAX_BYTES)
        vex = documents.validate(Vex, documents.read_json(data, what=path.name), what=path.name)
        for statement in vex.statements:
            parts = [part.id for product in statement.products for part in product.subcomponents]
            unknown = [part for part in parts if not _PURL_NAME.match(part)]
            if unknown:
                raise VendorError(
                    "VENDOR_VEX",
                    f"{path.name}: {statement.vulnerability.name} names {unknown[0]!r}, not a Python distribution",
                    file=path.name,
                )
        found[path.name] = (vex, data)
    return found


def stale(vexes: Iterable[Vex], wheels: Iterable[Inspection]) -> list[str]:
    """Statements about versions that the wheels no longer have: a judgement to be made again."""
    versions = {wheel.name: wheel.version for wheel in wheels}
    return sorted(
        f"{statement.vulnerability.name} speaks of {name} {version}, the release has {versions[name]}"
        for vex in vexes
        for statement in vex.statements
        for name, version in statement.components()
        if version is not None and name in versions and versions[name] != version
    )
