"""The join on disk: calls from traces and from spend logs meet in one SQLite file, so that memory stays bounded.

The file also remembers how far each source was read, or which of its parts were; what a batch brought and how far it
went are committed together, so that a killed extraction goes on where it stopped and counts nothing twice.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.errors import FileError, TrainingError
from appliance.training.extract.calls import NAMED_ALONE, Call

SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  source TEXT, call_id TEXT, response_id TEXT, document TEXT, PRIMARY KEY (source, call_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS traces (trace_id TEXT, call_id TEXT, PRIMARY KEY (trace_id, call_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_response ON calls (response_id) WHERE response_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS progress (source TEXT PRIMARY KEY, position TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (source TEXT, name BLOB, PRIMARY KEY (source, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""
VERSION = 2  # of the schema; 1 knew one trace a call
SETTLED_TOGETHER = 2000
CACHE_KIB = 65_536  # SQLite's page cache

Entry = tuple[Call, str | None, str | None]  # call, trace id, response id


class JoinStore:
    """Calls by source and id.

    Args:
        path: the SQLite file; made where it is not there.
        wait_s: for another extraction that uses it.

    Raises:
        TrainingError: TRAINING_SOURCE where the file is none of ours.
        FileError: FILE_LOCKED where another extraction uses it, FILE_NO_SPACE.
    """

    def __init__(self, path: Path, *, wait_s: float = 5.0) -> None:
        try:
            self._db = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # two extractions into one file would count twice
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION) or (
                not version and self._db.execute("SELECT 1 FROM sqlite_schema").fetchone()
            ):
                raise TrainingError(
                    "TRAINING_SOURCE", f"the working file {path} is of another release; delete it to read all anew"
                )
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={VERSION}")
        except sqlite3.Error as error:
            raise refusal(error, path) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def position(self, source: str) -> str | None:
        """How far a source was read."""
        row = self._db.execute("SELECT position FROM progress WHERE source = ?", (source,)).fetchone()
        return None if row is None else str(row[0])

    def read_before(self, source: str, part: str) -> bool:
        """Whether a part of a source that has no order of its own was read."""
        found = self._db.execute("SELECT 1 FROM parts WHERE source = ? AND name = ?", (source, _blob(part)))
        return found.fetchone() is not None

    def add(
        self, entries: Sequence[Entry], counts: Counter[str], *, source: str, position: str, parts: Sequence[str] = ()
    ) -> None:
        """Store a batch, its counts, how far the source was read and which parts of it, all or nothing."""
        merged: dict[tuple[str, str], Entry] = {}
        # one call may appear in several traces: the request's own, and that of a judge who looked at it later
        traces = {(trace, c.call_id) for c, trace, _ in entries if trace and not c.call_id.startswith(NAMED_ALONE)}
        for entry in entries:
            key = (entry[0].source, entry[0].call_id)
            known = merged.get(key) or self._known(*key)
            merged[key] = entry if known is None else _joined(known, entry)
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?)",
                [(c.source, c.call_id, response, json.dumps(asdict(c))) for c, _, response in merged.values()],
            )
            self._db.executemany("INSERT OR IGNORE INTO traces VALUES (?, ?)", sorted(traces))
            self._db.executemany(
                "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                list(counts.items()),
            )
            self._db.executemany("INSERT OR IGNORE INTO parts VALUES (?, ?)", [(source, _blob(part)) for part in parts])
            self._db.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (source, position))

    def counts(self) -> dict[str, int]:
        """What was read so far, by name."""
        return dict(self._db.execute("SELECT name, value FROM counts ORDER BY name").fetchall())

    def settle(self) -> None:
        """Give spans without a call id to the call of their trace, and spend rows to the call of their response."""
        last = ""
        while True:
            alone = self._db.execute(
                "SELECT call_id FROM calls WHERE source = 'trace' AND call_id LIKE 'trace:%' AND call_id > ? "
                "ORDER BY call_id LIMIT ?",
                (last, SETTLED_TOGETHER),
            ).fetchall()
            if not alone:
                return
            last = alone[-1][0]
            with self._transaction():
                for (call_id,) in alone:
                    self._give_away(call_id)

    def joined(self) -> Iterator[tuple[Call | None, Call | None]]:
        """Every call once: its trace and its spend log, one of them None where it is not there; ordered by id."""
        traces = self._db.execute(
            "SELECT t.document, COALESCE(s.document, (SELECT r.document FROM calls r WHERE r.source = 'spend' "
            "AND r.response_id = t.response_id ORDER BY r.call_id LIMIT 1)) FROM calls t "
            "LEFT JOIN calls s ON s.source = 'spend' AND s.call_id = t.call_id "
            "WHERE t.source = 'trace' ORDER BY t.call_id"
        )
        for trace, spend in traces:
            yield _call(trace), None if spend is None else _call(spend)
        alone = self._db.execute(
            "SELECT s.document FROM calls s WHERE s.source = 'spend' AND NOT EXISTS (SELECT 1 FROM calls t WHERE "
            "t.source = 'trace' AND t.call_id = s.call_id) AND NOT (EXISTS (SELECT 1 FROM calls t WHERE "
            "t.source = 'trace' AND t.response_id = s.response_id AND NOT EXISTS (SELECT 1 FROM calls o WHERE "
            "o.source = 'spend' AND o.call_id = t.call_id)) AND s.call_id = (SELECT MIN(r.call_id) FROM calls r "
            "WHERE r.source = 'spend' AND r.response_id = s.response_id)) ORDER BY s.call_id"
        )
        for (spend,) in alone:
            yield None, _call(spend)

    def _give_away(self, call_id: str) -> None:
        part = self._known("trace", call_id)
        owners = self._db.execute(
            "SELECT call_id FROM traces WHERE trace_id = ?", (call_id.removeprefix(NAMED_ALONE),)
        ).fetchall()
        if (
            part is not None and part[0].judged and part[2] and not owners
        ):  # a verdict that names the answer, in a trace of its own
            owners = self._db.execute(
                "SELECT call_id FROM calls WHERE source = 'trace' AND response_id = ? AND call_id != ? LIMIT 2",
                (part[2], call_id),
            ).fetchall()
            owners = owners if len(owners) == 1 else []
        if part is None or not owners:
            return
        for (name,) in owners:
            owner = self._known("trace", name)
            if owner is not None:
                call, _, response = _joined(owner, part)
                self._db.execute(
                    "UPDATE calls SET document = ?, response_id = ? WHERE source = ? AND call_id = ?",
                    (json.dumps(asdict(call)), response, call.source, call.call_id),
                )
        self._db.execute("DELETE FROM calls WHERE source = 'trace' AND call_id = ?", (call_id,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # on a full disk SQLite has rolled back by itself
                self._db.execute("ROLLBACK")
            raise

    def _known(self, source: str, call_id: str) -> Entry | None:
        row = self._db.execute(
            "SELECT document, response_id FROM calls WHERE source = ? AND call_id = ?", (source, call_id)
        ).fetchone()
        return None if row is None else (_call(row[0]), None, row[1])


def _joined(known: Entry, entry: Entry) -> Entry:
    if not set(entry[0].origins()).difference(
        known[0].origins()
    ):  # the same once more, after a restart of its exporter
        return known
    return known[0].merged(entry[0]), known[1] or entry[1], known[2] or entry[2]


def refusal(error: sqlite3.Error, path: Path) -> FileError | TrainingError:
    """What SQLite's own refusal of the working file means."""
    code = {"SQLITE_FULL": "FILE_NO_SPACE", "SQLITE_BUSY": "FILE_LOCKED", "SQLITE_READONLY": "FILE_PERMISSION"}.get(
        getattr(error, "sqlite_errorname", "")
    )
    if code is not None:
        return FileError(code, f"the working file {path}: {error}", path=str(path))
    return TrainingError("TRAINING_SOURCE", f"the working file {path} cannot be used: {error}")


def _blob(part: str) -> bytes:
    return part.encode("utf-8", "surrogateescape")


def _call(document: Any) -> Call:
    return Call(**json.loads(document))
