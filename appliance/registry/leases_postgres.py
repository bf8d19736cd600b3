"""Slots as PostgreSQL advisory locks: freed by the database itself when a holder's session dies."""

from __future__ import annotations

from contextlib import ExitStack

import psycopg

from appliance.registry.leases import Lease, as_lease_errors
from appliance.registry.postgres import PostgresSettings, parameters

LOCK_CLASS = 0x4C4C4D52  # "LLMR", the first key of our advisory locks


class PostgresSlots:
    """K advisory locks of one database.

    Args:
        settings: the database.
        count: K.
    """

    def __init__(self, settings: PostgresSettings, *, count: int) -> None:
        self._settings = settings
        self._count = count
        self._waiting: psycopg.Connection[tuple[object, ...]] | None = None

    def try_hold(self, held: ExitStack) -> Lease | None:
        """Take a free slot; see `Slots.try_hold`. One session is kept while waiting, and holds the lock then."""
        session, self._waiting = self._waiting, None  # one that fails, or never answers, is not asked again
        with as_lease_errors(self._settings.host):
            if session is None or session.closed:
                session = psycopg.connect(**parameters(self._settings), autocommit=True)
            for slot in range(self._count):
                row = session.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, slot)).fetchone()
                if row is not None and row[0] is True:
                    held.callback(session.close)  # the end of the session frees the lock, whatever else fails
                    return Lease(slot, fence=0)
            self._waiting = session
        return None
