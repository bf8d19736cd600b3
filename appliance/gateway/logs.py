"""Structured logs: one JSON line an event on standard error, without prompt text, and never at a request's cost."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import re
import select
import sys
import termios
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
    "litellm_redacted",
}


_QUOTING = re.compile(r"[{\[\"'`\n]|(?:Exception|Error) - ")


class JsonFormatter(logging.Formatter):
    """A record as one JSON line; extra fields become keys.

    Tracebacks keep files and lines, not the exception's text: libraries put request bodies into their messages.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        event: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if record.name.startswith(("appliance", "uvicorn")) else _short(record),
        }
        event.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])[-6:]
            event["exception"] = record.exc_info[0].__name__
            event["trace"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(event, ensure_ascii=False, default=str)


def _short(record: logging.LogRecord) -> str:
    """A library's message up to where it begins to quote somebody: a request, an answer, an upstream's words."""
    return _QUOTING.split(record.getMessage(), maxsplit=1)[0].rstrip(" -:")[:200]


class UnblockedHandler(logging.StreamHandler[TextIO]):
    """Writes a line where it can be written at once, else leaves it out and says later how many were left out.

    Lines are written from the event loop: where nobody reads the pipe behind standard error, one more would halt every
    request of the worker, and its end too.
    """

    lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write or count."""
        if not _takes_more(self.stream):
            self.lost += 1
            return
        if self.lost:
            lost, self.lost = self.lost, 0
            event = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "lost": lost}
            super().emit(logging.makeLogRecord({**event, "msg": "log lines were lost, nobody read them"}))
        super().emit(record)


def _takes_more(stream: TextIO) -> bool:
    """Whether a line can be written without waiting; workers share a pipe, half of it is left for the others."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not poll.poll(0):
        return False
    try:
        capacity = fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:  # no pipe
        return True
    waiting = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4), sys.byteorder)
    return waiting <= capacity // 2


class Unsaid(io.TextIOBase):
    """Standard output of a worker: libraries print to it what is no log line, and might be a prompt."""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str, /) -> int:
        """Nobody hears it."""
        return len(text)


def configure(level: int = logging.INFO) -> None:
    """Send every logger of the process through one JSON handler."""
    handler = UnblockedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("appliance").setLevel(level)


def adopt_libraries() -> None:
    """Take LiteLLM's and uvicorn's loggers from their own handlers; call after they were imported."""
    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith(("LiteLLM", "uvicorn", "litellm")):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.WARNING)
