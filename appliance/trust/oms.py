"""The OMS payload: an in-toto statement that lists an artifact's files, as model-signing 1.x writes it.

Ours is the narrow form: serialization `files`, SHA-256, no symlinks, exactly the signature's name ignored and
nothing else, files in name order. Anything wider is refused, however well it is signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance import documents
from appliance.artifact import SIGNATURE_NAME
from appliance.errors import DocumentError, TrustError
from appliance.files import sha256_hex
from appliance.trust.names import IN_TOTO_STATEMENT, OMS_PREDICATE

_SUBJECT = "artifact"


def payload(files: Mapping[str, bytes]) -> bytes:
    """The statement over an artifact's files (without its signature), canonical JSON."""
    return documents.write_json(_statement({name: sha256_hex(data) for name, data in files.items()}))


def check(data: bytes, digests: Mapping[str, str]) -> None:
    """Compare a (verified) payload with the digests (name -> SHA-256, hex) of the files that are there.

    Raises:
        TrustError: TRUST_OMS_MALFORMED, TRUST_OMS_TYPE, TRUST_OMS_IGNORED, TRUST_OMS_FILES.
    """
    expected = _statement(digests)
    if data == documents.write_json(expected):
        return
    # it is refused; what follows finds out why
    try:
        statement = documents.read_json(data, what="artifact statement")
    except DocumentError as error:
        raise TrustError("TRUST_OMS_MALFORMED", error.cause) from None
    if not isinstance(statement, dict) or statement.keys() != expected.keys():
        raise TrustError("TRUST_OMS_MALFORMED", "the artifact statement has other fields than it should")
    for field in ("_type", "predicateType"):
        if statement[field] != expected[field]:
            raise TrustError(
                "TRUST_OMS_TYPE", f"{field} is not that of a model signature", found=str(statement[field])[:200]
            )
    predicate = statement["predicate"]
    if not isinstance(predicate, dict) or predicate.keys() != expected["predicate"].keys():
        raise TrustError("TRUST_OMS_MALFORMED", "the artifact statement's predicate has other fields than it should")
    if predicate["serialization"] != expected["predicate"]["serialization"]:
        raise TrustError(
            "TRUST_OMS_IGNORED",
            "the signature does not cover every file (ignored paths, symlinks, shards or another hash)",
            serialization=str(predicate["serialization"])[:300],
        )
    _compare(predicate["resources"], expected["predicate"]["resources"])
    if statement != expected:
        raise TrustError("TRUST_OMS_MALFORMED", "the artifact statement's subject does not sum up its files")
    raise TrustError("TRUST_OMS_MALFORMED", "the artifact statement is not in canonical form")


def _statement(digests: Mapping[str, str]) -> dict[str, Any]:
    names = sorted(digests)
    together = b"".join(bytes.fromhex(digests[name]) for name in names)
    return {
        "_type": IN_TOTO_STATEMENT,
        "subject": [{"name": _SUBJECT, "digest": {"sha256": sha256_hex(together)}}],
        "predicateType": OMS_PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_NAME],
            },
            "resources": [{"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names],
        },
    }


def _compare(signed: Any, actual: list[dict[str, str]]) -> None:
    if signed == actual:
        return
    if not isinstance(signed, list) or not all(
        isinstance(each, dict)
        and each.keys() == {"name", "algorithm", "digest"}
        and all(isinstance(value, str) for value in each.values())
        for each in signed
    ):
        raise TrustError("TRUST_OMS_MALFORMED", "the artifact statement's list of files is malformed")
    listed = {each["name"]: each["digest"] for each in signed}
    present = {each["name"]: each["digest"] for each in actual}
    raise TrustError(
        "TRUST_OMS_FILES",
        "the files are not those that were signed",
        missing=sorted(listed.keys() - present.keys())[:10],
        unsigned=sorted(present.keys() - listed.keys())[:10],
        altered=sorted(name for name in listed.keys() & present.keys() if listed[name] != present[name])[:10],
    )
