"""A verdict is made of bytes, a policy and the time that is handed in: no clock, no disk, no network of its own."""

import json
import subprocess
import sys
from datetime import timedelta

import pytest

from appliance import documents
from appliance.trust.names import statement_type
from appliance.trust.policy import write_policy
from tests.support import artifacts

JUDGE = """
import json, pathlib, sys
from datetime import datetime
from appliance.artifact import read
from appliance.errors import TrustError
from appliance.trust.policy import read_policy
from appliance.trust.verification import TrustMaterial, verify_artifact, verify_statement

folder = pathlib.Path(sys.argv[1])
at = [datetime.fromisoformat(text) for text in sys.argv[2:]]
material = TrustMaterial((folder / "root").read_bytes(), read_policy((folder / "policy").read_bytes()))
payload, bundle, router = (folder / "payload").read_bytes(), (folder / "bundle").read_bytes(), read(folder / "router")

def judge(time):
    try:
        release = verify_statement(payload, bundle, kind="release", material=material, at=time)
        return [release.role, verify_artifact(router, material=material, at=time).role]
    except TrustError as refusal:
        return refusal.code

[judge(time) for time in at]  # imports and the catalogue of refusals are read; from here on nothing may be
touched = []
WATCHED = {"open", "os", "socket", "subprocess"}
sys.addaudithook(lambda event, _: touched.append(event) if event.split(".")[0] in WATCHED else None)
verdicts = [judge(time) for time in at]
seen = list(touched)
open(folder / "root").close()  # the hook sees what it shall see
print(json.dumps([verdicts, seen, len(touched) > len(seen)]))
"""


@pytest.mark.parametrize("clock", ["1970-01-02 00:00:00", "2050-01-01 00:00:00"])
def test_a_verdict_asks_neither_clock_nor_disk_nor_network(clock, zone, now, tmp_path):
    payload, signer = documents.write_json({"_type": statement_type("release"), "epoch": 1}), zone.signer
    (tmp_path / "payload").write_bytes(payload)
    (tmp_path / "bundle").write_bytes(signer("release-signer", at=now).sign_statement(payload))
    artifacts.write(artifacts.signed(artifacts.router_files(), signer("import-officer", at=now)), tmp_path / "router")
    (tmp_path / "root").write_bytes(zone.material.trusted_root)
    (tmp_path / "policy").write_bytes(write_policy(zone.material.policy))
    times = [now, now - timedelta(days=1), now + timedelta(days=9000)]
    command = ["faketime", clock, sys.executable, "-c", JUDGE, tmp_path, *(time.isoformat() for time in times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdicts, touched, watched = json.loads(done.stdout)
    signed = ["release-signer", "import-officer"]
    assert verdicts == [signed, "TRUST_SIGNED_LATER", signed]  # by the time handed in; what was signed in time stays
    assert touched == []
    assert watched
