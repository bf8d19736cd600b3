"""The drill from beginning to end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, OperationError
from appliance.operations.drill.cases import CASES, Case
from appliance.operations.drill.desk import Desk
from appliance.operations.drill.ground import make_ground

NOT_DRILLED = frozenset({"drill"})  # itself


@dataclass(frozen=True)
class Drilled:
    """How one case went.

    Attributes:
        case: its name.
        runbooks: those it used.
        held: whether it came out as it must.
        seen: what was seen, or why it did not hold.
        seconds: what it took.
    """

    case: str
    runbooks: tuple[str, ...]
    held: bool
    seen: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def drill(
    directory: Path, *, scripts: Path, wheels: Path, encoder: Path, now: datetime, say: Callable[[Drilled], None]
) -> list[Drilled]:
    """Make the ground and do every case; a case that fails does not end the drill.

    Args:
        directory: a folder that is empty or not there; it stays, to be looked at.
        scripts: folder of the runbooks.
        wheels: folder with wheels of PyYAML and uv.
        encoder: folder of the encoder that a router is trained with.
        now: the clock.
        say: told of each case.

    Raises:
        OperationError: OPERATION_DRILL_SETUP.
    """
    missing = sorted({name for case in CASES for name in case.runbooks if not (scripts / name).is_file()})
    if missing:
        raise OperationError("OPERATION_DRILL_SETUP", f"no runbooks in {scripts}", missing=missing)
    if not (encoder / "encoder.yaml").is_file():
        raise OperationError("OPERATION_DRILL_SETUP", f"there is no encoder in {encoder}", encoder=str(encoder))
    if directory.exists() and any(directory.iterdir()):
        raise OperationError("OPERATION_DRILL_SETUP", f"{directory} is not empty", directory=str(directory))
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    desk = Desk(make_ground(directory, scripts=scripts, wheels=wheels, encoder=encoder, now=now), scripts)
    done = []
    for case in CASES:
        done.append(_do(case, desk))
        say(done[-1])
    return done


def _do(case: Case, desk: Desk) -> Drilled:
    begun = time.monotonic()
    try:
        held, seen = True, case.do(desk)
    except ApplianceError as error:
        held, seen = False, f"{error.code}: {error.cause} {_words(error.evidence.get('said') or error.evidence)}"
    except (OSError, KeyError, TypeError, subprocess.SubprocessError) as error:
        held, seen = False, f"{type(error).__name__}: {error}"
    return Drilled(case.name, case.runbooks, held, seen.strip(), round(time.monotonic() - begun, 1))


def _words(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " / ".join(map(str, value))
    return str(value or "")
