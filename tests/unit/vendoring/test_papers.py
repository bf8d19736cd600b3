"""The papers of a release: valid by the standards' own schemas, complete, and the same bytes each time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.bom import Bom
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from packageurl import PackageURL

from appliance.errors import DocumentError, VendorError
from appliance.vendoring.evidence import evidence
from appliance.vendoring.locks import parse_lock
from appliance.vendoring.models import read_models
from appliance.vendoring.provenance import Build, provenance
from appliance.vendoring.sbom import check_sbom, licences, sbom
from appliance.vendoring.targets import Target
from appliance.vendoring.vex import Vex, read_vex, stale
from appliance.vendoring.wheel import Inspection, inspect_wheel
from tests.support.vendoring import WheelMaker

ROOT = Path(__file__).parents[3]
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
TARGET = Target("cp311-manylinux_x86_64", (3, 11), "x86_64", (2, 28))
MODELS = read_models(ROOT / "vendor")


def wheels() -> list[Inspection]:
    makers = [
        WheelMaker("app", requires=("lib>=1", 'windows; sys_platform == "win32"'), headers=("License: Apache 2.0",)),
        WheelMaker("lib", "2.0", headers=("License-Expression: MIT OR Apache-2.0",)),
        WheelMaker(
            "old", headers=("License: Copyright (c) somebody", "Classifier: License :: OSI Approved :: MIT License")
        ),
        WheelMaker("mute", headers=()),
    ]
    return [inspect_wheel(maker.build(), maker.filename) for maker in makers]


def written(inspections: list[Inspection], at: datetime = AT) -> bytes:
    return sbom(inspections, MODELS, name="appliance", version="1.0", target=TARGET, at=at)


def test_the_sbom_meets_the_schema_and_names_every_wheel_and_model_file_with_its_digest():
    data = written(wheels())
    document = json.loads(data)
    check_sbom(data.decode())
    assert document["specVersion"] == "1.6"
    components = {part["name"]: part for part in document["components"]}
    for wheel in wheels():
        part = components[wheel.name]
        assert part["hashes"] == [{"alg": "SHA-256", "content": wheel.sha256}]
        assert PackageURL.from_string(part["purl"]) == PackageURL("pypi", None, wheel.name, wheel.version)
    model = components["all-MiniLM-L6-v2"]
    assert model["type"] == "machine-learning-model"
    told = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    assert told == dict(MODELS["all-MiniLM-L6-v2"].files)


def test_the_sbom_tells_who_needs_whom_on_this_target_and_under_which_licence():
    document = json.loads(written(wheels()))
    edges = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    assert edges["pkg:pypi/app@1.0"] == ["pkg:pypi/lib@2.0"]
    assert "pkg:pypi/app@1.0" in edges["appliance@1.0"]
    assert "pkg:pypi/lib@2.0" not in edges["appliance@1.0"]
    licence = {part["name"]: part.get("licenses") for part in document["components"]}
    assert licence["app"] == [{"license": {"id": "Apache-2.0"}}]
    assert licence["lib"] == [{"expression": "MIT OR Apache-2.0"}]
    assert licence["old"] == [{"license": {"id": "MIT"}}]
    assert licence["mute"] is None
    assert licences(wheels(), MODELS)["none named"] == ["mute 1.0"]
    assert licences(wheels(), MODELS)["Apache-2.0"] == ["app 1.0", "all-MiniLM-L6-v2 (model)"]


def test_the_sbom_is_the_same_for_the_same_wheels_and_another_for_others():
    assert written(wheels()) == written(wheels()[::-1])
    assert written(wheels()) != written(wheels()[1:])
    one, two = (json.loads(written(wheels(), at=at)) for at in (AT, AT.replace(year=2027)))
    assert one["metadata"].pop("timestamp") != two["metadata"].pop("timestamp")
    assert one == two


def test_a_stock_reader_understands_the_sbom():
    bom = Bom.from_json(json.loads(written(wheels())))  # type: ignore[attr-defined]
    assert len(bom.components) == len(wheels()) + 1
    bom.validate()


def test_a_document_that_breaks_the_schema_is_refused():
    with pytest.raises(VendorError) as caught:
        check_sbom('{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"name": "x"}]}')
    assert caught.value.code == "VENDOR_SBOM"


BUILD = Build("gateway", "cp311-manylinux_x86_64", "1.0", "a" * 40, False, "https://appliance.internal/builder", AT)
LOCK = parse_lock(f"app==1.0 --hash=sha256:{'a' * 64}".encode(), name="gateway.lock")


def test_the_provenance_is_an_in_toto_statement_with_slsa_provenance():
    data = provenance(BUILD, {"payload/x": "b" * 64}, wheels=wheels(), locks=[LOCK], models=MODELS)
    statement = json_format.Parse(data, statement_pb2.Statement())
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    assert [(subject.name, subject.digest["sha256"]) for subject in statement.subject] == [("payload/x", "b" * 64)]
    predicate = json_format.Parse(
        json_format.MessageToJson(statement.predicate), provenance_pb2.Provenance()
    )  # refuses unknown fields
    assert predicate.run_details.builder.id == BUILD.builder
    found = {part.name: dict(part.digest) for part in predicate.build_definition.resolved_dependencies}
    assert found["vendor/requirements/gateway.lock"] == {"sha256": LOCK.digest}
    assert found["source"] == {"gitCommit": "a" * 40}
    for wheel in wheels():
        assert found[wheel.filename] == {"sha256": wheel.sha256}
    assert found["all-MiniLM-L6-v2/model.safetensors"]


def test_the_provenance_is_the_same_for_the_same_build():
    def write(inspections: list[Inspection]) -> bytes:
        return provenance(BUILD, {"a": "1" * 64, "b": "2" * 64}, wheels=inspections, locks=[LOCK], models=MODELS)

    assert write(wheels()) == write(wheels()[::-1])
    assert b'"sourceChanged":false' in write(wheels())


def test_all_papers_come_from_one_call_the_same_bytes_each_time():
    def write() -> dict[str, bytes]:
        return evidence(ROOT / "vendor", wheels(), MODELS, version="1.0", target=TARGET, at=AT)

    papers = write()
    assert set(papers) == {"sbom.cdx.json", "admission.json", "licences.json", "vex/appliance.openvex.json"}
    assert papers == write()


def test_the_product_of_our_vex_statements_is_the_one_that_the_sbom_describes():
    papers = evidence(ROOT / "vendor", wheels(), MODELS, version="1.0", target=TARGET, at=AT)
    described = PackageURL.from_string(json.loads(papers["sbom.cdx.json"])["metadata"]["component"]["purl"])
    assert described == PackageURL("generic", None, "llm-routing-appliance", "1.0")
    for document, _ in read_vex(ROOT / "vendor").values():
        named = {PackageURL.from_string(product.id) for one in document.statements for product in one.products}
        assert named == {PackageURL("generic", None, "llm-routing-appliance")}


def vex(**changes: Any) -> dict[str, Any]:
    statement = {
        "vulnerability": {"name": "CVE-2026-0001"},
        "products": [{"@id": "pkg:generic/appliance", "subcomponents": [{"@id": "pkg:pypi/lib@1.0"}]}],
        "status": "fixed",
        **changes,
    }
    return {
        "@context": "https://openvex.dev/ns/v0.2.0",
        "@id": "https://appliance.internal/vex/test",
        "author": "tests",
        "timestamp": "2026-11-23T00:00:00Z",
        "version": 1,
        "statements": [statement],
    }


def write_vex(folder: Path, document: dict[str, Any]) -> Path:
    (folder / "vex").mkdir(exist_ok=True)
    (folder / "vex" / "x.json").write_text(json.dumps(document))
    return folder


def test_a_vex_statement_is_carried_unchanged(tmp_path: Path):
    folder = write_vex(tmp_path, vex())
    ((document, data),) = read_vex(folder).values()
    assert data == (tmp_path / "vex" / "x.json").read_bytes()
    assert document.statements[0].components() == [("lib", "1.0")]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "not_affected"},
        {"status": "not_affected", "justification": "because"},
        {"status": "not_affected", "justification": "component_not_present"},
        {"status": "affected"},
        {"status": "harmless"},
        {"products": []},
        {"vulnerability": {"name": "something bad"}},
        {"unknown": 1},
    ],
)
def test_a_vex_statement_without_its_reason_is_refused(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(DocumentError) as caught:
        read_vex(write_vex(tmp_path, vex(**changes)))
    assert caught.value.code == "DOCUMENT_SCHEMA"


def test_a_vex_statement_about_something_no_scanner_could_match_is_refused(tmp_path: Path):
    products = [{"@id": "pkg:generic/appliance", "subcomponents": [{"@id": "pkg:npm/left-pad"}]}]
    with pytest.raises(VendorError) as caught:
        read_vex(write_vex(tmp_path, vex(products=products)))
    assert caught.value.code == "VENDOR_VEX"


def test_a_vex_statement_about_a_version_that_is_gone_is_called_stale():
    document = Vex.model_validate(vex())
    assert stale([document], wheels()) == ["CVE-2026-0001 speaks of lib 1.0, the release has 2.0"]
    assert stale([document], []) == []
