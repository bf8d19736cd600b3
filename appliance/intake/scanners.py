"""Tripwires: three public scanners look at every legacy file. None of them is believed when it finds nothing.

picklescan and modelscan run as their own commands; any exit status but 0 refuses. fickling's verdict condemns every
honest estimator too (it calls any import of scikit-learn unsafe), so it is asked the question it answers well: which
imports does *your* decompiler see? One that our list does not allow refuses, and so does a file it cannot read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.errors import IntakeError
from appliance.intake.formats import Legacy
from appliance.intake.pickles import SKLEARN, TORCH, Allowed

SCAN_SECONDS = 120.0
_FICKLING = """
import ast, io, json, sys, zipfile
from fickling.fickle import Pickled
data = open(sys.argv[1], "rb").read()
if sys.argv[2] == "torch":
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        [name] = [one for one in archive.namelist() if one.endswith("/data.pkl")]
        data = archive.read(name)
seen = []
for node in Pickled.load(data).properties.imports:
    module = node.module if isinstance(node, ast.ImportFrom) else ""
    seen += [[module, alias.name] for alias in node.names]
print(json.dumps(seen))
"""


def scan(folder: Path, legacy: Mapping[str, Legacy]) -> dict[str, str]:
    """Run every tripwire over the quarantined legacy files.

    Args:
        folder: where they lie.
        legacy: relative name -> kind.

    Returns:
        Scanner -> what it said, for the record.

    Raises:
        IntakeError: INTAKE_SCANNER.
    """
    said: dict[str, str] = {}
    for name, kind in legacy.items():
        if kind == "skops":
            continue  # there is no pickle in it: its schema was read, by a list, with the formats
        with ThreadPoolExecutor(3) as looking:  # each is a process of its own and starts slowly
            answers = {
                "picklescan": looking.submit(_command, "picklescan", folder / name, name),
                "modelscan": looking.submit(_command, "modelscan", folder / name, name),
                "fickling": looking.submit(_fickling, folder / name, name, kind),
            }
        said |= {scanner: answer.result() for scanner, answer in answers.items()}
    return said


def _command(scanner: str, path: Path, name: str) -> str:
    done = _run([str(Path(sys.executable).parent / scanner), "-p", str(path)], scanner, name)
    if done.returncode != 0:
        raise _tripped(scanner, name, done)
    return "clean"


def _fickling(path: Path, name: str, kind: Legacy) -> str:
    done = _run([sys.executable, "-I", "-W", "ignore", "-c", _FICKLING, str(path), kind], "fickling", name)
    allowed: Allowed = TORCH if kind == "torch" else SKLEARN
    if done.returncode != 0:
        raise _tripped("fickling", name, done)
    try:
        seen = [(str(module), str(attribute)) for module, attribute in json.loads(done.stdout)]
    except (ValueError, TypeError):
        raise _tripped("fickling", name, done) from None
    foreign = [
        f"{module}.{attribute}" for module, attribute in seen if attribute not in allowed.get(module, frozenset())
    ]
    if foreign:
        raise IntakeError(
            "INTAKE_SCANNER",
            f"fickling sees {foreign[0]} in {name}",
            scanner="fickling",
            file=name,
            imports=foreign[:10],
        )
    return f"{len(seen)} imports, all allowed"


def _run(command: list[str], scanner: str, name: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SCAN_SECONDS, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IntakeError(
            "INTAKE_SCANNER", f"{scanner} could not look at {name}: {type(error).__name__}", scanner=scanner, file=name
        ) from None


def _tripped(scanner: str, name: str, done: subprocess.CompletedProcess[str]) -> IntakeError:
    words = " ".join((done.stdout + " " + done.stderr).split())[-400:]
    return IntakeError(
        "INTAKE_SCANNER", f"{scanner} reports {name}", scanner=scanner, file=name, status=done.returncode, words=words
    )
