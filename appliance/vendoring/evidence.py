"""The papers of a release: bill of materials, admission report, licences, VEX; one call for the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from appliance import documents
from appliance.vendoring.difference import REPORT_NAME, write_report
from appliance.vendoring.models import ModelPin
from appliance.vendoring.sbom import licences, sbom
from appliance.vendoring.targets import Target
from appliance.vendoring.vex import read_vex
from appliance.vendoring.wheel import Inspection

SBOM_NAME = "sbom.cdx.json"
LICENCES_NAME = "licences.json"
PROVENANCE_NAME = "provenance.intoto.json"


def evidence(
    vendor: Path,
    wheels: Sequence[Inspection],
    models: Mapping[str, ModelPin],
    *,
    version: str,
    target: Target,
    at: datetime,
) -> dict[str, bytes]:
    """Everything that describes a set of admitted wheels, reproducible: name -> bytes.

    Provenance is apart (`provenance.provenance`), because it names the members of the release.

    Args:
        vendor: the vendor folder, for its VEX statements.
        wheels: as admitted.
        models: name -> pin of the models the release carries.
        version: of the appliance.
        target: of the release.
        at: the release's time (SOURCE_DATE_EPOCH), UTC.

    Raises:
        VendorError: VENDOR_SBOM, VENDOR_VEX.
    """
    return {
        SBOM_NAME: sbom(wheels, models, name="llm-routing-appliance", version=version, target=target, at=at),
        REPORT_NAME: write_report(wheels),
        LICENCES_NAME: documents.write_json(licences(wheels, models)),
        **{f"vex/{name}": data for name, (_, data) in read_vex(vendor).items()},
    }
