"""The confined worker: loads one producer's model, asks it about a probe set, takes it apart into plain tensors.

Run by `sandbox` as its own process, bytes in on standard input, bytes out on standard output. Everything it needs is
imported, and tried once on a model of our own (libraries import more at first use), before it confines itself; the
producer's bytes are touched only after that.

Two kinds of job. Conversion (`sklearn`, `skops`, `torch`): frames in are JSON `{kind, labels, hyperparameters}`, the
model, the probe set (safetensors, tensor `probe`); out come JSON `{family, parameters, original, walls}` and
safetensors with the family's tensors, the original's scores on the probe set as `probe_scores` beside them. Trial
(`router`): in go JSON `{kind, names, texts, alone}`, the probe set and the router's files in the order of `names`; out
come JSON and `scores`. Trial (`encoder`): the same without a probe set; out come JSON `{ms_a_text}` and `vectors`.
A refusal is JSON `{refused, cause}`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import numpy as np

from appliance import documents
from appliance.errors import ApplianceError
from appliance.intake import frames
from appliance.intake.confine import confine

MODULES = {
    "sklearn": "appliance.intake.convert_sklearn",
    "skops": "appliance.intake.convert_sklearn",
    "torch": "appliance.intake.convert_torch",
    "router": "appliance.intake.trial",
    "encoder": "appliance.intake.encoder_trial",
}


def main(memory_bytes: int, cpu_seconds: int) -> None:
    """Do one job and answer."""
    from safetensors import numpy as safetensors_numpy

    job, *parts = frames.unpack(sys.stdin.buffer.read())
    asked: dict[str, Any] = documents.read_json(job, what="job")
    module = import_module(MODULES[asked["kind"]])
    module.warm_up()
    safetensors_numpy.load(safetensors_numpy.save({"own": np.zeros(1, np.float32)}))
    try:
        held = confine(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
        report, tensors = module.work(asked, parts)
        walls = ["seccomp", *([f"landlock-{held.landlock}"] if held.landlock else [])]
        answer = [documents.write_json({**report, "walls": walls}), safetensors_numpy.save(tensors)]
    except ApplianceError as error:
        answer = [documents.write_json({"refused": error.code, "cause": error.cause})]
    except MemoryError:
        answer = [documents.write_json({"refused": "INTAKE_CONVERSION", "cause": "it needs more memory than allowed"})]
    except Exception as error:  # noqa: BLE001 (a hostile model may raise anything; its words are data)
        cause = f"{type(error).__name__}: {error}"[:300]
        answer = [documents.write_json({"refused": "INTAKE_CONVERSION", "cause": cause})]
    frames.send(sys.stdout.buffer, answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
