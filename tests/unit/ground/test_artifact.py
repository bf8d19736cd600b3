"""Artifacts: read once, told apart by their metadata, and never more or less than the metadata says."""

from __future__ import annotations

import pytest
import yaml

from appliance import artifact
from appliance.errors import ArtifactError, FileError
from appliance.files import sha256_hex

WEIGHTS = b"weights"


def router_document(**changes):
    document = {
        "schema_version": 1,
        "name": "prompts",
        "version": "1.0.0",
        "strategy": "knn",
        "hyperparameters": {"k": 16},
        "labels": {"small": "small-model", "large": "large-model"},
        "files": {"weights.safetensors": sha256_hex(WEIGHTS)},
        "encoder_digest": "0" * 64,
        "training_data_digest": "1" * 64,
        "evaluation": {},
        "created": "2026-11-23T00:00:00Z",
        "minimum_appliance_version": "0.1.0",
    }
    document.update(changes)
    return document


def router_files(document=None, **more):
    text = yaml.safe_dump(document or router_document()).encode()
    return {"router.yaml": text, "weights.safetensors": WEIGHTS, **more}


def test_an_honest_router_is_read_from_its_folder(tmp_path):
    for name, data in router_files(**{artifact.SIGNATURE_NAME: b"{}"}).items():
        (tmp_path / name).write_bytes(data)
    found = artifact.read(tmp_path)
    assert found.kind == "router"
    assert found.require_signature() == b"{}"
    assert artifact.router_metadata(found).labels == {"small": "small-model", "large": "large-model"}


def test_the_digest_names_the_content_and_not_the_signature():
    plain = artifact.from_files(router_files())
    signed = artifact.from_files(router_files(**{artifact.SIGNATURE_NAME: b"{}"}))
    altered = artifact.from_files(router_files(**{"weights.safetensors": b"Weights"}))
    assert plain.digest == signed.digest != altered.digest


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (router_files(**{"weights.safetensors": b"other"}), "ARTIFACT_METADATA"),
        (router_files(**{"extra.pkl": b""}), "ARTIFACT_METADATA"),
        ({"router.yaml": router_files()["router.yaml"]}, "ARTIFACT_METADATA"),
        ({"weights.safetensors": WEIGHTS}, "ARTIFACT_MISSING"),
        (router_files(router_document(labels={})), "ARTIFACT_METADATA"),
        (router_files(router_document(surprise=1)), "ARTIFACT_METADATA"),
        (router_files(router_document(name="../x")), "ARTIFACT_METADATA"),
        (router_files(router_document(minimum_appliance_version="99.0.0")), "ARTIFACT_VERSION"),
        ({**router_files(), "router.yaml": b"a: 1\na: 2"}, "ARTIFACT_METADATA"),
        ({**router_files(), "router.yaml": b"- 1"}, "ARTIFACT_METADATA"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(files, code):
    with pytest.raises(ArtifactError) as refusal:
        artifact.router_metadata(artifact.from_files(files))
    assert refusal.value.code == code


def test_an_artifact_of_two_kinds_is_refused():
    with pytest.raises(ArtifactError) as refusal:
        _ = artifact.from_files({"router.yaml": b"", "encoder.yaml": b""}).kind
    assert refusal.value.code == "ARTIFACT_METADATA"


def test_an_unsigned_artifact_is_refused():
    with pytest.raises(ArtifactError) as refusal:
        artifact.from_files(router_files()).require_signature()
    assert refusal.value.code == "ARTIFACT_UNSIGNED"


def test_an_empty_folder_and_a_linked_file_are_refused(tmp_path):
    with pytest.raises(ArtifactError) as refusal:
        artifact.read(tmp_path)
    assert refusal.value.code == "ARTIFACT_MISSING"
    (tmp_path / "router.yaml").symlink_to("/etc/hostname")
    with pytest.raises(FileError) as refused:
        artifact.read(tmp_path)
    assert refused.value.code == "FILE_NOT_REGULAR"
