"""Write a golden release: `python -m tests.golden.bundle.make DIR`."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from appliance.bundle.build import build, read_trust
from appliance.bundle.inputs import Payload
from appliance.bundle.volumes import split
from tests.support import bundle as support
from tests.support.trust import make_authority

PAYLOAD = [
    Payload("requirements.txt", b""),
    Payload("config/appliance.yaml", b"schema_version: 1\n"),
    Payload("data/tool", b"#!/bin/sh\necho golden\n", executable=True),
    Payload("data/large.bin", bytes(range(256)) * 100),
    Payload("data/" + "a-name-that-does-not-fit-into-a-tar-header-" * 3 + ".bin", b"long"),
]


def make(out: Path) -> None:
    """Build, cut, and write down what must be found."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        authority = make_authority(Path(work) / "ca", now=support.CREATED)
        target = {"python": "3.11", "architecture": "x86_64", "glibc": "2.28"}
        built = build(
            replace(support.identity(), target=target),
            PAYLOAD,
            read_trust(authority.path / "anchor.json", authority.repository),
            authority.signer("release-signer", at=support.CREATED),
            out,
            segment_bytes=4096,
        )
        (out / "anchor.json").write_bytes(authority.anchor)
    split(built.path, out / "volumes", volume_bytes=44_000)
    expected = {
        "sha256": built.sha256,
        "manifest_digest": built.manifest.digest,
        "signer": "release-signer@appliance.internal",
        "signed_at": support.CREATED.isoformat(),
        "verify_at": "2026-11-24T00:00:00+00:00",
        "members": [member.as_dict() for member in built.manifest.members],
    }
    (out / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
