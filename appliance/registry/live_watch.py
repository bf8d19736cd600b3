"""A gateway keeps up with the configuration: a notice wakes it, polling catches what a notice missed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance import documents
from appliance.errors import ApplianceError, RegistryError
from appliance.files import read_regular, write_atomic
from appliance.registry.live import TABLES, Changes, ConfigDatabase, LiveConfig, assemble, difference
from appliance.registry.postgres import connected, parameters

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


class DeploymentSource:
    """The deployments as a whole `model_list`, for a gateway that asks instead of being told.

    It fits `gateway.config_source.ConfigSource`. On its own it polls; `changed` wakes the one who asks earlier.

    Args:
        database: where the configuration is.
        kept: file for the last configuration that was given out.
        report: told of refused rows and of a database that is away.
    """

    def __init__(
        self, database: ConfigDatabase, *, kept: Path, report: Callable[[str], None] = lambda _line: None
    ) -> None:
        self._database = database
        self._given = _Nothing()
        self._watcher = ConfigWatcher(database, self._given, kept=kept, report=report)
        self._first = True

    def read(self) -> Sequence[Mapping[str, Any]] | None:
        """The whole list, or None where nothing has changed since the last call.

        The first call falls back to what was given out last, where the database is away.

        Raises:
            RegistryError: REGISTRY_DATABASE; what runs goes on.
        """
        booted = self._watcher.boot().revision if self._first else 0
        try:
            changed = self._watcher.refresh()
        except RegistryError:
            if not booted:
                raise
            changed = False
        first, self._first = self._first, False
        if not changed and not (first and self._watcher.running.revision):
            return None
        return [row.litellm() for row in self._watcher.running.rows["deployment"].values()]

    def changed(self, timeout_s: float) -> bool:
        """Wait for a notice that the configuration changed.

        Raises:
            RegistryError: REGISTRY_DATABASE.
        """
        with connected(self._database.settings, autocommit=True) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            if self._database.newest() != self._watcher.running.revision:
                return True
            return any(True for _ in connection.notifies(timeout=timeout_s, stop_after=1))


class _Nothing:
    """An applier for one who asks."""

    def apply(self, changes: Changes, config: LiveConfig) -> None:
        """Leave it to `DeploymentSource.read`."""
