"""Mutation fuzzing of every parser at the trust boundary: no mutant accepted, no exception but ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import TrustError
from tests.fuzz.trust.targets import Accepted, Target, targets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

NAMES = [
    "statement", "bundle", "artifact bundle", "artifact file", "certificate", "time-stamp", "checkpoint",
    "log promise", "log entry", "OMS payload", "authorisation", "root proposal", "log export", "consistency proof",
    "anchor", "policy", "trusted root", "trust configuration", "policy.yaml", "profiles.yaml", "router.yaml",
    "public key", "private key", "authority.json",
    "timestamp.json", "2.root.json", "1.snapshot.json", "1.targets.json",
    "kept anchor.json", "kept host.json", "kept clock.json", "kept used.json", "kept targets.json", "kept policy.json",
]  # fmt: skip
TOKENS = [
    b'"', b"{", b"}", b"[", b"null", b"true", b"1e999", b"-0", b"\\u0000", b"\\ud800", b"\xff", b"\x00", b"\n\n",
]  # fmt: skip
SLOW = {name for name in NAMES if name.endswith((".json", ".yaml"))}


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_fuzzed(known):
    assert list(known) == NAMES


@st.composite
def mutants(draw, original):
    """A few edits of the kinds that parsers stumble over: bits, bytes, cuts, copies, tokens of the format."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.integers(0, 7))
        if kind == 0 and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1 and data:
            data[position] = draw(st.integers(0, 255))
        elif kind == 2:
            del data[position : position + draw(st.integers(1, 64))]
        elif kind == 3:
            data[position:position] = draw(st.binary(max_size=16))
        elif kind == 4:
            data[position:position] = data[position : position + draw(st.integers(1, 64))]
        elif kind == 5:
            data[position:position] = draw(st.sampled_from(TOKENS))
        elif kind == 6:
            del data[position:]
        else:
            other = draw(st.integers(0, max(len(data) - 1, 0)))
            first, last = sorted((position, other))
            data[first:last] = data[first:last][::-1]
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_no_mutant_is_accepted_and_nothing_but_our_refusals_escapes_from(name, known):
    target = known[name]
    target.try_one(target.original)

    @settings(
        max_examples=40 if name in SLOW else 300,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutants(target.original))
    def run(mutant):
        target.try_one(mutant)

    run()


def test_atheris_finds_nothing_either(tmp_path):
    """Coverage-guided, over all targets in one process; longer runs are for whoever changes a parser."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.trust.run_atheris", "all", "-runs=4000", "-seed=20261130", "-max_len=20000",
         f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    assert "Done 4000 runs" in found.stderr


def test_the_rule_itself_catches_what_it_is_for():
    def careless(data):
        if data == b"refused":
            raise TrustError("TRUST_DIGEST", "no")
        if data == b"fallen over":
            raise RecursionError
        return data[:4]

    original = b"good"
    for mutants, accepted in (
        (Accepted.NOTHING, set()),
        (Accepted.THE_SAME, {b"good "}),
        (Accepted.WELL_FORMED, {b"good ", b"bad"}),
    ):
        target = Target(original, careless, mutants)
        for fine in {original, b"refused", *accepted}:
            target.try_one(fine)
        for wrong in {b"good ", b"bad"} - accepted:
            with pytest.raises(AssertionError):
                target.try_one(wrong)
        with pytest.raises(RecursionError):
            target.try_one(b"fallen over")
    with pytest.raises(AssertionError):
        Target(b"refused", careless).try_one(b"refused")


@pytest.mark.parametrize(
    "name",
    ["bundle", "certificate", "time-stamp", "checkpoint", "log promise", "log entry", "authorisation", "statement"],
)
def test_every_single_bit_counts_in_a(name, known):
    """Not one bit of what we sign is without meaning: each turned bit, on its own, is refused."""
    target = known[name]
    step = 1 if len(target.original) < 1000 else 7
    for position in range(0, len(target.original) * 8, step):
        mutant = bytearray(target.original)
        mutant[position // 8] ^= 1 << position % 8
        target.try_one(bytes(mutant))
