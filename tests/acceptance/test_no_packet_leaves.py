"""In a room with only loopback the kernel counts what tries to leave; nothing of ours does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IN_THE_ROOM = """
import sys, time
from scripts.demo import sealed_room
sealed_room.raise_loopback()
assert sealed_room.interfaces() == ["lo"]
exec(sys.argv[1])
counted = sealed_room.attempts()
assert sealed_room.prove_counter(), "the kernel did not count a deliberate attempt"
print(counted)
"""


def attempts_of(code: str) -> int:
    """Run code alone in a network namespace; how many packets tried to leave it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "HF_"))}
    run = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", IN_THE_ROOM, code],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return int(run.stdout.splitlines()[-1])


def test_a_look_up_of_a_name_is_counted():
    look_up = "import socket\ntry: socket.getaddrinfo('model.example', 443)\nexcept OSError: pass"
    assert attempts_of(look_up) > 0


@pytest.mark.slow
def test_the_inference_runtime_is_silent():
    assert attempts_of(RUN_A_NETWORK) == 0


RUN_A_NETWORK = """
import appliance
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper
node = helper.make_node("Relu", ["x"], ["y"])
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([node], "g", [value("x")], [value("y")])
network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(network.SerializeToString())
assert session.run(None, {"x": np.array([-1.0], np.float32)})[0][0] == 0
time.sleep(12)
"""
