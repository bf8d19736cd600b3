"""The admission journal: every step of every case, each line bound to the one before.

A line is canonical JSON with the SHA-256 of the previous line; changing, removing or inserting one breaks every line
after it. Cutting lines off the end is seen by whoever noted the head: each approval statement holds it, signed, and
`journal verify` compares.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.artifact import Sha256
from appliance.errors import DocumentError, IntakeError
from appliance.files import locked, read_regular, sha256_hex, sync_directory, translated

MAX_BYTES = 1024**3
MAX_LINE_BYTES = 4 * 1024 * 1024
GENESIS = "0" * 64

Event = Literal["received", "refused", "examined", "approved", "admitted"]


class Line(BaseModel):
    """One line.

    Attributes:
        number: counts from 1.
        previous: SHA-256 of the line before, newline included; zeros for the first.
        at: RFC 3339, UTC.
        event: the step.
        case: the case it belongs to.
        details: what the step found; JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: Annotated[int, Field(ge=1)]
    previous: Sha256
    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    event: Event
    case: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    details: dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """What verification of a journal found.

    Attributes:
        lines: all of them.
        head: SHA-256 of the last one, or zeros.
    """

    lines: tuple[Line, ...]
    head: str


class Journal:
    """A journal file.

    Args:
        path: the file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: Event, case: str, details: dict[str, Any], *, at: datetime) -> str:
        """Add a line durably; return the new head. The journal is verified first: nobody writes on after a break.

        Raises:
            IntakeError: INTAKE_JOURNAL_BROKEN.
            FileError: FILE_NO_SPACE, FILE_PERMISSION.
        """
        with translated(self._path.parent):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._path.with_name(f".{self._path.name}.lock")), translated(self._path):
            checked = self.verify()
            line = documents.write_json(
                {
                    "number": len(checked.lines) + 1,
                    "previous": checked.head,
                    "at": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "event": event,
                    "case": case,
                    "details": _writable(details),
                }
            )
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "ab", buffering=0) as stream:  # a buffer would be written out again when it closes
                begin, left = os.fstat(descriptor).st_size, memoryview(line)
                try:
                    while left:
                        left = left[stream.write(left) :]
                    os.fsync(descriptor)
                except BaseException:
                    os.ftruncate(descriptor, begin)  # half a line would read as tampering
                    raise
            sync_directory(self._path.parent)
        return sha256_hex(line)

    def verify(self) -> Checked:
        """Check every link.

        Raises:
            IntakeError: INTAKE_JOURNAL_BROKEN, with the number of the first line that does not fit.
        """
        if not self._path.exists():
            return Checked((), GENESIS)
        data = read_regular(self._path, max_bytes=MAX_BYTES)
        head, lines = GENESIS, []
        for number, raw in enumerate(data.splitlines(keepends=True), start=1):
            try:
                value = documents.read_json(raw, what=f"line {number}", max_bytes=MAX_LINE_BYTES)
                line = documents.validate(Line, value, what=f"line {number}")
            except DocumentError as error:
                raise _broken(self._path, number, error.cause) from None
            if documents.write_json(value) != raw:
                raise _broken(self._path, number, "it is not in canonical form")
            if line.number != number or line.previous != head:
                raise _broken(self._path, number, "it does not follow the line before it")
            head = sha256_hex(raw)
            lines.append(line)
        return Checked(tuple(lines), head)

    def heads(self) -> set[str]:
        """Every head the journal has had, from none to the last line."""
        known = {GENESIS}
        if self._path.exists():
            data = read_regular(self._path, max_bytes=MAX_BYTES)
            known |= {sha256_hex(raw) for raw in data.splitlines(keepends=True)}
        return known


def encoded(data: bytes) -> str:
    """Bytes as a journal keeps them."""
    return base64.b64encode(data).decode("ascii")


def _writable(value: Any) -> Any:
    """What a stranger's file is called need not be text; what has no encoding is written as an escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    return [_writable(item) for item in value] if isinstance(value, list | tuple) else value


def _broken(path: Path, number: int, why: str) -> IntakeError:
    return IntakeError("INTAKE_JOURNAL_BROKEN", f"line {number} of the journal: {why}", path=str(path), line=number)
