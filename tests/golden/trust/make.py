"""Make a golden set of signatures: `python -m tests.golden.trust.make v2`, once for each new form of signature.

What is committed here is verified for ever after by `tests/unit/trust/test_golden.py`; a set is never made anew. The
authority behind it is thrown away: nobody can sign under it again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance import documents
from appliance.trust.authorisation import write_token
from appliance.trust.authority import Authority
from appliance.trust.names import statement_type
from tests.support.trust import make_authority

BIRTH = datetime(2026, 11, 23, 12, tzinfo=UTC)
SIGNED = BIRTH + timedelta(hours=1)
FILES = {"router.yaml": b"name: golden\n", "router.safetensors": bytes(range(64)), "vocabulary.json": b"{}\n"}


def main(name: str) -> None:
    """Write the set `name` beside this file."""
    target = Path(__file__).with_name(name)
    target.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        zone = make_authority(Path(folder) / "ca", now=BIRTH)
        shutil.copytree(zone.repository, target / "repository")
        for file in ("anchor.json", "trust_config.json"):
            shutil.copy(zone.path / file, target / file)
        for kind, role in (("release", "release-signer"), ("channel", "import-officer"), ("inventory", "zone-host")):
            payload = documents.write_json({"_type": statement_type(kind), "name": "golden", "epoch": 7})
            (target / f"{kind}.json").write_bytes(payload)
            (target / f"{kind}.sigstore.json").write_bytes(zone.signer(role, at=SIGNED).sign_statement(payload))
        artifact = target / "artifact"
        artifact.mkdir()
        for file, data in FILES.items():
            (artifact / file).write_bytes(data)
        signature = zone.signer("import-officer", at=SIGNED).sign_artifact(FILES)
        (artifact / "artifact.sigstore.json").write_bytes(signature)
        token = write_token(
            Authority.open(zone.path), "downgrade", machine="a" * 64, version="1.0.0", now=SIGNED,
            lifetime=timedelta(days=7),
        )  # fmt: skip
        (target / "downgrade.json").write_bytes(token)


if __name__ == "__main__":
    main(sys.argv[1])
