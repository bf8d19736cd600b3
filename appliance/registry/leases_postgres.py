"""Slots as PostgreSQL advisory locks: freed by the database itself when a holder's session dies."""

from __future__ import annotations

from contextlib import ExitStack

import psycopg

from appliance.errors import RegistryError
from appliance.registry.leases import Lease
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
        try:
            if self._waiting is None or self._waiting.closed:
                self._waiting = psycopg.connect(**parameters(self._settings), autocommit=True)
            for slot in range(self._count):
                row = self._waiting.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, slot)).fetchone()
                if row is not None and row[0] is True:
                    held.callback(self._waiting.close)  # the end of the session frees the lock, whatever else fails
                    self._waiting = None
                    return Lease(slot, fence=0)
        except psycopg.Error as error:
            self._waiting = None
            raise RegistryError(
                "REGISTRY_LEASES", " ".join(str(error).split())[:200], host=self._settings.host
            ) from error
        return None
