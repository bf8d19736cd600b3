"""A gateway keeps up with the configuration: a notice wakes it, polling catches what a notice missed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from appliance import documents
from appliance.errors import ApplianceError, RegistryError
from appliance.files import read_regular, write_atomic
from appliance.registry.live import TABLES, Changes, ConfigDatabase, LiveConfig, assemble, difference
from appliance.registry.postgres import parameters

CHANNEL = "appliance_config"
MAX_BYTES = 64 * 1024 * 1024


class Applier(Protocol):
    """The gateway's side of the seam."""

    def apply(self, changes: Changes, config: LiveConfig) -> None:
        """Bring what runs from the last applied configuration to this one; all of it or an error."""


class ConfigWatcher:
    """Follows the configuration's revisions.

    Args:
        database: where they are.
        applier: told of every difference.
        kept: file for the last applied configuration: a gateway boots from it while the database is away.
        poll_s: seconds between two looks without a notice.
        report: told of refused rows, failures to apply and a database that is away.
    """

    def __init__(
        self,
        database: ConfigDatabase,
        applier: Applier,
        *,
        kept: Path,
        poll_s: float = 2.0,
        report: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._database = database
        self._applier = applier
        self._kept = kept
        self._poll_s = poll_s
        self._report = report
        self._said = ""
        self.running = LiveConfig()

    def boot(self) -> LiveConfig:
        """Apply what was applied last; nothing where there is no file or it is damaged."""
        try:
            value = documents.read_json(read_regular(self._kept, max_bytes=MAX_BYTES), what="kept configuration")
            kept = assemble(int(value["revision"]), value["document"], self.running)
        except (ApplianceError, KeyError, TypeError, ValueError):
            return self.running
        self._apply(kept)
        return self.running

    def refresh(self) -> bool:
        """Look once; apply what is new. Tell whether anything was.

        Raises:
            RegistryError: REGISTRY_DATABASE.
        """
        if self._database.newest() == self.running.revision:
            return False
        new = self._database.read(self.running)
        self._tell("; ".join(f"{one.table} {one.key}: {one.cause}" for one in new.problems))
        return self._apply(new)

    def _apply(self, new: LiveConfig) -> bool:
        changes = difference(self.running, new)
        if changes:
            self._applier.apply(changes, new)
        self.running = new
        document = {table: [row.model_dump(mode="json") for row in new.rows[table].values()] for table in TABLES}
        kept = documents.write_json({"revision": new.revision, "document": document})
        write_atomic(self._kept, kept, mode=0o600)
        return bool(changes)

    def run(self, stop: threading.Event) -> None:
        """Follow until told to stop; the database may come and go."""
        while not stop.is_set():
            try:
                self._follow(stop)
            except ApplianceError as error:
                self._tell(str(error))
                stop.wait(self._poll_s * random.uniform(0.5, 1.5))  # noqa: S311 (spreads load)

    def _follow(self, stop: threading.Event) -> None:
        import psycopg

        try:
            with psycopg.connect(**parameters(self._database.settings), autocommit=True) as connection:
                connection.execute(f"LISTEN {CHANNEL}")
                while not stop.is_set():
                    self.refresh()
                    for _ in connection.notifies(timeout=self._poll_s, stop_after=1):
                        break
        except psycopg.Error as error:
            raise RegistryError("REGISTRY_DATABASE", " ".join(str(error).split())[:200]) from error

    def _tell(self, line: str) -> None:
        if line and line != self._said:
            self._report(line)
        self._said = line
