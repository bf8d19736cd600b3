"""Trust metadata are read in a process that has no cloud's SDK in it."""

import importlib.util
import json
import subprocess
import sys

LOOK = """
import json, sys
import appliance.trust.store
from appliance.trust import evidence, trusted_root
evidence._prepared(open(sys.argv[1], "rb").read())
clouds = ("boto3", "botocore", "azure", "google", "hvac")
loaded = sorted(name for name in sys.modules if name.split(".")[0] in clouds)
import boto3
import azure.identity
print(json.dumps([loaded, boto3.__name__, azure.identity.__name__]))
"""


def test_tuf_and_sigstore_are_imported_without_the_sdks_which_stay_importable(zone, tmp_path):
    assert importlib.util.find_spec("boto3")  # LiteLLM has brought it: there is something to keep out
    (tmp_path / "trusted_root.json").write_bytes(zone.material.trusted_root)
    command = [sys.executable, "-c", LOOK, tmp_path / "trusted_root.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], "boto3", "azure.identity"]
