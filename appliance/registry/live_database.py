"""The live configuration in PostgreSQL: tables that any SQL tool may edit, history by triggers, a notice a change."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.errors import DocumentError, RegistryError
from appliance.registry.live import NO_HOST, Host, LiveConfig, assemble
from appliance.registry.postgres import PostgresSettings, connected, parameters

if TYPE_CHECKING:
    import psycopg

CHANNEL = "appliance_config"
_NEWEST = "SELECT coalesce(max(id), 0) FROM appliance.revision"
_DOCUMENT = "SELECT id, document::text FROM appliance.revision ORDER BY id DESC LIMIT 1"
_OURS = "SELECT id FROM appliance.revision WHERE transaction = txid_current()"
_MAX_DIGITS = 20  # of a whole number, as `documents` has it
_MAX_REVISION = 2**63 - 1  # a bigint


@dataclass(frozen=True)
class Revision:
    """One entry of the history."""

    number: int
    at: str
    author: str
    comment: str


class ConfigDatabase:
    """The configuration's tables.

    Args:
        settings: where they are.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings = settings

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        return f"postgresql://{self.settings.host}:{self.settings.port}/{self.settings.database}"

    def migrate(self) -> str:
        """Bring the tables to this appliance's form; return the step reached.

        Raises:
            RegistryError: REGISTRY_DATABASE, REGISTRY_MIGRATION.
        """
        import psycopg
        import sqlalchemy
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", "appliance.registry:migrations")
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(**parameters(self.settings)),
            poolclass=sqlalchemy.NullPool,
        )
        try:
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE SCHEMA IF NOT EXISTS appliance"))
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError) as error:
            raise RegistryError(
                "REGISTRY_DATABASE", " ".join(str(error).split())[:300], host=self.settings.host
            ) from error
        except CommandError as error:
            raise RegistryError("REGISTRY_MIGRATION", str(error)) from None
        return ScriptDirectory.from_config(config).get_current_head() or ""

    def newest(self) -> int:
        """The newest revision's number; 0 for none."""
        with connected(self.settings) as connection:
            row = connection.execute(_NEWEST).fetchone()
        return int(row[0]) if row else 0

    def read(self, running: LiveConfig, host: Host = NO_HOST) -> LiveConfig:
        """The newest revision, validated; see `assemble`.

        Raises:
            RegistryError: REGISTRY_DATABASE.
        """
        with connected(self.settings) as connection:
            row = connection.execute(_DOCUMENT).fetchone()
        return LiveConfig() if row is None else assemble(int(row[0]), _document(row[1]), running, host)

    def history(self, *, limit: int = 50) -> list[Revision]:
        """The newest revisions, newest first."""
        query = "SELECT id, at, author, comment FROM appliance.revision ORDER BY id DESC LIMIT %s"
        with connected(self.settings) as connection:
            rows = connection.execute(query, (limit,)).fetchall()
        return [Revision(int(number), at.isoformat(), author, comment) for number, at, author, comment in rows]

    def restore(self, revision: int) -> int:
        """Return to an earlier revision, as a new one; return its number.

        Raises:
            RegistryError: REGISTRY_REVISION, REGISTRY_DATABASE.
        """
        missing = RegistryError("REGISTRY_REVISION", f"no revision {revision}", revision=revision)
        if revision > _MAX_REVISION:
            raise missing
        try:
            with connected(self.settings) as connection:
                connection.execute("SELECT appliance.restore(%s)", (revision,))
                row = connection.execute(_OURS).fetchone()  # another editor's may be the newest already
        except RegistryError as error:
            if error.evidence.get("sqlstate") == "P0002":
                raise missing from None
            raise
        return int(row[0]) if row else self.newest()

    @contextlib.contextmanager
    def session(self) -> Iterator[DatabaseSession]:
        """One connection that looks and listens, for `live_watch.ConfigWatcher`.

        Raises:
            RegistryError: REGISTRY_DATABASE, as soon as the connection is lost.
        """
        with connected(self.settings, autocommit=True) as connection:
            session = DatabaseSession(connection, deadline_s=self.settings.statement_timeout_s + 1)
            session.listen()
            yield session


class DatabaseSession:
    """A connection that listens.

    Args:
        connection: open, autocommit.
        deadline_s: of each statement, on this side: a server that stopped answers no time-out of its own.
    """

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], *, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s

    def listen(self) -> None:
        """Ask for notices."""
        with self._bounded():
            self._connection.execute(f"LISTEN {CHANNEL}")

    def newest(self) -> int:
        """The newest revision's number; 0 for none."""
        with self._bounded():
            row = self._connection.execute(_NEWEST).fetchone()
        return int(row[0]) if row else 0

    def document(self) -> tuple[int, Any]:
        """The newest revision: its number and its document."""
        with self._bounded():
            row = self._connection.execute(_DOCUMENT).fetchone()
        return (0, {}) if row is None else (int(row[0]), _document(row[1]))

    def wait(self, timeout_s: float) -> None:
        """Return at a notice, or when the time is over."""
        for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
            return

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        timer = threading.Timer(self._deadline_s, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(self._connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)


def _document(text: str) -> Any:
    """A revision's document; a number without bounds becomes none, so that its row alone is refused.

    Raises:
        DocumentError: DOCUMENT_TOO_LARGE where it is nested beyond what can be read at all.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise DocumentError("DOCUMENT_TOO_LARGE", "the newest revision: nested too deeply") from None


def _whole_number(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float("nan")
