"""The bill of materials: CycloneDX 1.6, from what admission saw in the wheels, the same bytes for the same wheels."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from appliance.errors import VendorError
from appliance.files import sha256_hex
from appliance.vendoring.closure import needs
from appliance.vendoring.licences import Licence
from appliance.vendoring.models import ModelPin
from appliance.vendoring.targets import Target
from appliance.vendoring.wheel import Inspection

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

_NAMESPACE = uuid.UUID("6f2a3c1e-5d0b-5b8e-9a55-0c7d3f5e1a42")  # of our serial numbers


def purl(wheel: Inspection) -> str:
    """The package URL of a wheel's distribution."""
    from packageurl import PackageURL

    return PackageURL("pypi", None, wheel.name, wheel.version).to_string()


def sbom(
    wheels: Sequence[Inspection],
    models: Mapping[str, ModelPin],
    *,
    name: str,
    version: str,
    target: Target,
    at: datetime,
) -> bytes:
    """Write the bill of materials of a release.

    Args:
        wheels: as admitted.
        models: name -> pin of the models the release carries.
        name, version: of the release.
        target: decides which requirements count as edges.
        at: the release's time (SOURCE_DATE_EPOCH), UTC; no clock is read.

    Returns:
        CycloneDX 1.6 JSON, checked against the strict schema.

    Raises:
        VendorError: VENDOR_SBOM where what we would write is not valid.
    """
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    bom = _bom(wheels, models, name=name, version=version, target=target, at=at)
    text = str(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2))
    check_sbom(text)
    return text.encode("utf-8") + b"\n"


def check_sbom(text: str) -> None:
    """Check a document against the strict CycloneDX 1.6 schema.

    Raises:
        VendorError: VENDOR_SBOM.
    """
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise VendorError("VENDOR_SBOM", "the bill of materials does not meet its schema", problem=str(problem)[:500])


def _bom(
    wheels: Sequence[Inspection],
    models: Mapping[str, ModelPin],
    *,
    name: str,
    version: str,
    target: Target,
    at: datetime,
) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    root = Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("generic", None, name, version),  # by which the VEX statements name their product
    )
    content = sha256_hex("\n".join([name, version, target.name, *sorted(_identities(wheels, models))]).encode())
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, content), metadata=BomMetaData(component=root, timestamp=at))
    parts = {wheel.name: _component(wheel) for wheel in wheels}
    carried = [_model(model, pin) for model, pin in sorted(models.items())]
    for part in (*parts.values(), *carried):
        bom.components.add(part)
    needed: set[str] = set()
    for wheel in wheels:
        edges = {str(canonicalize_name(requirement.name)) for requirement in needs(wheel, "", target)} & parts.keys()
        needed |= edges
        bom.register_dependency(parts[wheel.name], [parts[edge] for edge in sorted(edges)])
    # what no other package asks for, the release asks for itself
    bom.register_dependency(root, [part for own, part in parts.items() if own not in needed] + carried)
    return bom


def _identities(wheels: Iterable[Inspection], models: Mapping[str, ModelPin]) -> Iterator[str]:
    yield from (wheel.sha256 for wheel in wheels)
    yield from (digest for pin in models.values() for digest in pin.files.values())


def _component(wheel: Inspection) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    glibc = max((library.glibc_pair for library in wheel.native), default=(0, 0))
    return Component(
        name=wheel.name,
        version=wheel.version,
        type=ComponentType.LIBRARY,
        bom_ref=purl(wheel),
        purl=PackageURL("pypi", None, wheel.name, wheel.version),
        description=wheel.summary or None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        licenses=_licences(wheel.licence),
        properties=[
            Property(name="appliance:wheel", value=wheel.filename),
            Property(name="appliance:native-libraries", value=str(len(wheel.native))),
            *([Property(name="appliance:glibc", value=f"{glibc[0]}.{glibc[1]}")] if glibc != (0, 0) else []),
            *(Property(name="appliance:startup-file", value=file.path) for file in wheel.startup),
        ],
    )


def _model(name: str, pin: ModelPin) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense

    return Component(
        name=name,
        version=pin.version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{name}",
        licenses=[DisjunctiveLicense(id=pin.licence)],
        properties=[
            Property(name="appliance:origin", value=pin.origin),
            Property(name="appliance:carried-by", value=f"pkg:pypi/{pin.package}@{pin.version}"),
        ],
        components=[
            Component(
                name=file,
                type=ComponentType.FILE,
                bom_ref=f"model:{name}/{file}",
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
            )
            for file, digest in sorted(pin.files.items())
        ],
    )


def _licences(licence: Licence) -> list[LicenseExpression | DisjunctiveLicense]:
    """What the distribution says, in CycloneDX's terms: an SPDX expression where it is one, else names."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.spdx import fixup_id, is_expression

    if len(licence.names) == 1:
        (text,) = licence.names
        if known := fixup_id(text):
            return [DisjunctiveLicense(id=known)]
        if is_expression(text):
            return [LicenseExpression(text)]
    return [DisjunctiveLicense(name=name) for name in licence.names]


def licences(wheels: Iterable[Inspection], models: Mapping[str, ModelPin]) -> dict[str, list[str]]:
    """Licence -> what is under it (`name version`), for a person and for the release."""
    found: dict[str, list[str]] = {}
    for wheel in sorted(wheels, key=lambda wheel: wheel.name):
        named = " / ".join(wheel.licence.names) or ("see its licence file" if wheel.licence.files else "none named")
        found.setdefault(named, []).append(f"{wheel.name} {wheel.version}")
    for name, pin in sorted(models.items()):
        found.setdefault(pin.licence, []).append(f"{name} (model)")
    return dict(sorted(found.items()))
