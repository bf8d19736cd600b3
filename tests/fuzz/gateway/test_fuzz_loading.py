"""Whatever lies in a router's folder, loading ends in a router that was signed or in a refusal with a code."""

import random

import pytest

from appliance import artifact as artifacts
from appliance import settings
from appliance.errors import ApplianceError
from appliance.gateway.loading import Loader
from tests.support.routing import zone
from tests.support.trust import make_authority

ROUNDS = 300


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzz")
    made = zone(home / "zone", make_authority(home / "ca"), labels={"a": "openai/small", "b": "openai/large"})
    made.put()
    return made


def loader(here) -> Loader:
    litellm = {"inline": {"model_list": []}, "master_key_file": "key"}
    document = {"schema_version": 1, "state_dir": "state", "litellm": litellm, **here.sections()}
    return Loader(settings.parse(document, base=here.directory))


def mutated(files: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """One honest artifact with one to three dishonest changes."""
    changed = dict(files)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(changed))
        data = bytearray(changed[name])
        match rng.randrange(6):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data) + 1) :]
            case 2:
                data[rng.randrange(len(data) + 1) :] = rng.randbytes(rng.randint(1, 50))
            case 3:
                changed[f"more-{rng.randrange(9)}.bin"] = rng.randbytes(10)
            case 4 if len(changed) > 1:
                del changed[name]
                continue
            case _:
                data += b"\n"
        changed[name] = bytes(data)
    return changed


def test_the_honest_router_loads(here):
    files = artifacts.read(here.router_directory)
    assert loader(here).from_bytes("default", files, origin="directory")[0].digest == files.digest


def test_no_change_of_any_file_loads_or_escapes_as_an_unknown_exception(here):
    honest = artifacts.read(here.router_directory)
    everything = {**honest.files, artifacts.SIGNATURE_NAME: honest.require_signature()}
    made, rng = loader(here), random.Random(20261123)
    codes = set()
    for _ in range(ROUNDS):
        files = mutated(everything, rng)
        if {k: v for k, v in files.items() if k != artifacts.SIGNATURE_NAME} == dict(honest.files):
            continue  # only the signature changed: its JSON may still say the same
        with pytest.raises(ApplianceError) as refusal:
            made.from_bytes("default", artifacts.from_files(files), origin="directory")
        codes.add(refusal.value.code)
    assert {"TRUST_OMS_FILES", "ARTIFACT_UNSIGNED"} <= codes
