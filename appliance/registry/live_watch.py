"""A gateway keeps up with the live configuration: a notice wakes it, polling catches what a notice missed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from appliance import documents
from appliance.errors import ApplianceError, ConfigError
from appliance.files import read_regular, write_atomic
from appliance.registry.live import NO_HOST, Changes, Host, LiveConfig, assemble, difference

MAX_BYTES = 64 * 1024 * 1024


class Session(Protocol):
    """A source while it is in reach; every method raises `ApplianceError` when it no longer is."""

    def newest(self) -> int:
        """The newest revision's number; 0 where nothing was ever configured."""

    def document(self) -> tuple[int, Any]:
        """The newest revision: its number, and table -> list of rows."""

    def wait(self, timeout_s: float) -> None:
        """Return when something may have changed, or when the time is over."""


class Source(Protocol):
    """Where configurations come from: `live_database.ConfigDatabase`, `signed_config.SignedSource`."""

    @property
    def location(self) -> str:
        """Where it is, for messages; never a secret."""

    def session(self) -> AbstractContextManager[Session]:
        """Reach it.

        Raises:
            ApplianceError: it is away.
        """


class Applier(Protocol):
    """The gateway's side of the seam."""

    def apply(self, changes: Changes, config: LiveConfig) -> LiveConfig:
        """Bring what runs from the last applied configuration to this one.

        Returns:
            What runs now: this configuration, without the rows that could not be applied.

        Raises:
            ApplianceError: nothing was applied.
        """


class ConfigWatcher:
    """Follows a source's revisions.

    Args:
        source: where they are.
        applier: told of every difference.
        kept: file for the last applied configuration: a gateway boots from it while the source is away.
        host: what the gateway has of its own.
        running: what runs already, where something does.
        poll_s: seconds between two looks without a notice.
        report: told of refused rows, failures to apply and a source that is away; once each.
        clock: seconds, for the age of the last contact.
    """

    def __init__(
        self,
        source: Source,
        applier: Applier,
        *,
        kept: Path,
        host: Host = NO_HOST,
        running: LiveConfig | None = None,
        poll_s: float = 2.0,
        report: Callable[[str], None] = lambda _line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._applier = applier
        self._kept = kept
        self._host = host
        self._poll_s = poll_s
        self._report = report
        self._clock = clock
        self._said: dict[str, str] = {}  # subject -> the last line about it
        self._contact: float | None = None
        self._judged: int | None = None  # what was kept is judged again, so that its refused rows are reported
        self._written: LiveConfig | None = None  # what `kept` holds of this process
        self.problem: ApplianceError | None = None
        self.running = running or LiveConfig()

    def boot(self) -> LiveConfig:
        """Apply the source's newest configuration, or what was applied last where the source is away.

        Never raises for a source that is away: `problem` says so, and `running.revision` is 0 where nothing is known.
        """
        kept = self._read_kept()
        try:
            if kept is not None:
                self._apply(kept)
        except ApplianceError as error:  # it no longer fits this gateway's files; the source's may
            self._away(error)
        try:
            self.refresh()
        except ApplianceError as error:
            self._away(error)
        return self.running

    def refresh(self) -> bool:
        """Look once; apply what is new. Tell whether anything was.

        Raises:
            ApplianceError: the source is away, or its configuration as a whole cannot be applied.
        """
        with self._source.session() as session:
            return self._look(session)

    def run(self, stop: threading.Event) -> None:
        """Follow until told to stop; the source may come and go."""
        while not stop.is_set():
            try:
                with self._source.session() as session:
                    while not stop.is_set():
                        self._look(session)
                        session.wait(self._poll_s)
            except ApplianceError as error:
                self._away(error)
            except Exception as error:  # noqa: BLE001 (whatever it was: a thread that ended would follow nothing, unsaid)
                self._away(ConfigError("CONFIG_LIVE", f"{type(error).__name__}: {error}"[:500]))
            stop.wait(self._poll_s * random.uniform(0.5, 1.5))  # noqa: S311 (spreads load)

    def contact_age_s(self) -> float | None:
        """Seconds since the source last answered; None where it never did in this process."""
        return None if self._contact is None else self._clock() - self._contact

    def _look(self, session: Session) -> bool:
        newest = session.newest()
        self._contact = self._clock()
        changed = False
        if newest not in {0, self._judged}:
            revision, document = session.document()
            new = assemble(revision, document, self.running, self._host)
            self._tell("rows", "; ".join(f"{one.table} {one.key}: {one.cause}" for one in new.problems))
            changed = self._apply(new)
            self._judged = revision
        self._keep()
        return changed

    def _apply(self, new: LiveConfig) -> bool:
        changes = difference(self.running, new)
        self.running = self._applier.apply(changes, new) if changes else new
        return bool(changes)

    def _keep(self) -> None:
        """Write down what runs; where that fails, on a full disk, it is said and tried again at the next look."""
        try:
            if self._judged is not None and self._written is not self.running:
                kept = {"revision": self.running.revision, "document": self.running.document}
                write_atomic(self._kept, documents.write_json(kept), mode=0o600)
                self._written = self.running
        except ApplianceError as error:
            self._away(error)
        else:
            self.problem = None
            self._tell("source", "")

    def _read_kept(self) -> LiveConfig | None:
        try:
            value = documents.read_json(
                read_regular(self._kept, max_bytes=MAX_BYTES), what="kept configuration", max_bytes=MAX_BYTES
            )
            return assemble(int(value["revision"]), value["document"], self.running, self._host)
        except (ApplianceError, KeyError, TypeError, ValueError):
            return None

    def _away(self, error: ApplianceError) -> None:
        self.problem = error
        self._tell("source", str(error))

    def _tell(self, subject: str, line: str) -> None:
        if line and line != self._said.get(subject):
            self._report(line)
        self._said[subject] = line
