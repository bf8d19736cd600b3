"""RECORD: the wheel's own list of its files, checked in both directions (PEP 376, PEP 427)."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
from collections.abc import Mapping

from appliance.errors import VendorError

# RECORD lists them without hash, or not at all: itself, and the signature formats of PEP 427
UNHASHED = ("RECORD", "RECORD.jws", "RECORD.p7s")
_ALGORITHMS = {"sha256": 32, "sha384": 48, "sha512": 64}  # name -> digest length in bytes


def check_record(record: bytes, contents: Mapping[str, tuple[str, str, str, int]], *, info: str, wheel: str) -> None:
    """Compare RECORD with what is in the archive.

    Args:
        record: the file's bytes.
        contents: member -> (sha256, sha384 or "", sha512 or "", size in bytes); digests hex.
        info: name of the `.dist-info` folder.
        wheel: file name, for messages.

    Raises:
        VendorError: VENDOR_RECORD naming up to ten members and what is wrong with each.
    """
    problems: dict[str, str] = {}
    free = {f"{info}/{name}" for name in UNHASHED}
    rows = _rows(record, wheel)
    for name, digest, size in rows:
        if name not in contents:
            problems[name] = "listed, not in the archive"
        elif name in free:
            continue
        elif not digest or not size:
            problems[name] = "listed without digest or size"
        elif size != str(contents[name][3]):
            problems[name] = f"listed with {size[:20]} bytes, has {contents[name][3]}"
        elif not _matches(digest, contents[name]):
            problems[name] = "its digest differs from the listed one"
    for name in contents.keys() - {row[0] for row in rows} - free:
        problems[name] = "in the archive, not listed"
    if problems:
        first = dict(sorted(problems.items())[:10])
        raise VendorError(
            "VENDOR_RECORD",
            f"{wheel}: RECORD and content disagree on {len(problems)} files, {next(iter(first))!r} "
            f"{next(iter(first.values()))}",
            wheel=wheel,
            files=first,
        )


def algorithms(record: bytes) -> frozenset[str]:
    """Names of the digest algorithms a RECORD uses, so that a reader computes no more than it needs."""
    text = record.decode("utf-8", "replace")
    return frozenset(name for name in _ALGORITHMS if f",{name}=" in text)


def digests(content: bytes, wanted: frozenset[str]) -> tuple[str, str, str, int]:
    """The entry of `check_record`'s `contents` for a member."""
    return (
        hashlib.sha256(content).hexdigest(),
        hashlib.sha384(content).hexdigest() if "sha384" in wanted else "",
        hashlib.sha512(content).hexdigest() if "sha512" in wanted else "",
        len(content),
    )


def _rows(record: bytes, wheel: str) -> list[tuple[str, str, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(record.decode("utf-8"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise VendorError("VENDOR_RECORD", f"{wheel}: RECORD cannot be read: {error}", wheel=wheel) from None
    if any(len(row) != 3 for row in rows):
        raise VendorError("VENDOR_RECORD", f"{wheel}: a line of RECORD has not three fields", wheel=wheel)
    seen: set[str] = set()
    for name, _, _ in rows:
        if name in seen:
            raise VendorError("VENDOR_RECORD", f"{wheel}: RECORD lists {name[:120]!r} twice", wheel=wheel)
        seen.add(name)
    return [(name, digest, size) for name, digest, size in rows]


def _matches(listed: str, content: tuple[str, str, str, int]) -> bool:
    algorithm, _, encoded = listed.partition("=")
    if algorithm not in _ALGORITHMS:
        return False
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    actual = content[list(_ALGORITHMS).index(algorithm)]
    return len(raw) == _ALGORITHMS[algorithm] and raw.hex() == actual
