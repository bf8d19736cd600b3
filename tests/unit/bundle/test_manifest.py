"""The manifest's reader: strict, complete, and safe even where a signer was careless."""

from __future__ import annotations

import copy
import json

import pytest

from appliance import documents
from appliance.bundle.stage0.manifest import DELTA_TYPE, check_names, read_delta, read_manifest
from appliance.bundle.stage0.media import MANIFEST, open_sources
from appliance.bundle.stage0.refusal import Refused
from tests.support import bundle as support


@pytest.fixture
def document(tmp_path) -> dict:
    built = support.archive(tmp_path / "media")
    with open_sources([built.path]) as (sources, _):
        return json.loads(sources[0].head.files[MANIFEST])


def code(document) -> str:
    data = document if isinstance(document, bytes) else documents.write_json(document)
    with pytest.raises(Refused) as caught:
        read_manifest(data)
    return caught.value.code


def test_an_honest_manifest_is_read_whole(document):
    manifest = read_manifest(documents.write_json(document))
    assert [member.as_dict() for member in manifest.members] == document["members"]
    assert manifest.release_id == f"1.0.0-{manifest.digest[:12]}"


def test_every_key_is_needed_and_no_other_is_taken(document):
    for key in document:
        without = {name: value for name, value in document.items() if name != key}
        assert code(without) == "BUNDLE_MANIFEST", key
        assert code(document | {key: None}) == "BUNDLE_MANIFEST", key
    assert code(document | {"surprise": 1}) == "BUNDLE_MANIFEST"
    for key in document["members"][0]:
        altered = copy.deepcopy(document)
        del altered["members"][0][key]
        assert code(altered) == "BUNDLE_MANIFEST", key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_type", "https://appliance.internal/channel/v1"),
        ("schema_version", 2),
        ("version", "../../etc"),
        ("version", "1.0.0\n"),
        ("name", "Name With Spaces"),
        ("created", "yesterday"),
        ("created", "2026-02-30T12:00:00Z"),
        ("created", "2026-11-23T25:00:00Z"),
        ("epoch", -1),
        ("epoch", True),
        ("epoch", 1.5),
        ("segment_bytes", 0),
        ("segment_bytes", 1000),
        ("segments", []),
        ("segments", ["x"]),
        ("target", {}),
        ("target", {"python": "3.11", "architecture": "x86_64", "glibc": "2.28", "more": "x"}),
        ("target", {"python": "3.11", "architecture": "x86_64", "glibc": "musl"}),
        ("target", {"python": "3", "architecture": "x86_64", "glibc": "2.28"}),
        ("target", {"python": "3.11", "architecture": "x86_64", "glibc": 2.28}),
        ("members", {}),
    ],
)
def test_a_value_that_no_release_has_is_refused(document, key, value):
    assert code(document | {key: value}) == "BUNDLE_MANIFEST"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"a":1,"a":2}',
        b'{"epoch":NaN}',
        b'{"epoch":1e400}',
        b"[" * 100_000,
        b'{"epoch":1' + b"0" * 50 + b"}",
    ],
)
def test_what_is_no_strict_json_is_refused(data):
    assert code(data) == "BUNDLE_MANIFEST"


@pytest.mark.parametrize(
    "names",
    [
        ["../escape"], ["/absolute"], ["a//b"], ["a/./b"], ["a/"], [""], ["."], ["a\\b"], ["a\0b"], ["a\nb"], ["é"],
        ["C:x"], ["con"], ["a/nul.txt"], ["a."], ["-rf"], [".hidden"], ["a" * 256], ["a ", "b"],
        ["a", "a"], ["README", "readme"], ["Dir/a", "dir/b"], ["a", "a/b"], ["a/b", "a"], ["A", "a/b"],
    ],
)  # fmt: skip
def test_names_that_do_not_travel_are_refused(names):
    with pytest.raises(Refused) as caught:
        check_names(names)
    assert caught.value.code == "BUNDLE_NAME"


def test_ordinary_names_are_taken():
    check_names(
        ["a", "b/c", "b/d.e", "wheels/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", "_x/y-z", "con1", "console/a"]
    )


def test_members_larger_or_more_than_any_release_has_are_refused(document):
    huge = copy.deepcopy(document)
    huge["members"][0]["size"] = 8 * 1024**3
    assert code(huge) == "BUNDLE_LIMIT"
    many = document | {"members": [document["members"][0] | {"path": f"data/{n}", "size": 0} for n in range(20_001)]}
    assert code(many) == "BUNDLE_LIMIT"
    assert code(b" " * (16 * 1024**2 + 1)) == "BUNDLE_LIMIT"


def test_only_trust_metadata_may_stand_before_the_manifest(document):
    document["trust"][0]["path"] = "payload/evil"
    assert code(document) == "BUNDLE_MANIFEST"


def test_a_delta_statement_must_fit_its_manifest(document):
    manifest = read_manifest(documents.write_json(document))
    honest = {
        "_type": DELTA_TYPE,
        "schema_version": 1,
        "base": "0" * 64,
        "target": manifest.digest,
        "carried": ["data/file-0.bin"],
        "segment_bytes": 4096,
        "segments": ["0" * 64],
    }
    assert read_delta(documents.write_json(honest), manifest).carried == ("data/file-0.bin",)
    wrong = [
        ({"target": "1" * 64}, "BUNDLE_DELTA_BASE"),
        ({"carried": ["data/other"]}, "BUNDLE_MANIFEST"),
        ({"carried": ["data/file-1.bin", "data/file-0.bin"]}, "BUNDLE_MANIFEST"),
        ({"segments": []}, "BUNDLE_MANIFEST"),
        ({"surprise": 1}, "BUNDLE_MANIFEST"),
    ]
    for change, expected in wrong:
        with pytest.raises(Refused) as caught:
            read_delta(documents.write_json(honest | change), manifest)
        assert caught.value.code == expected, change
