"""Many replicas and one new object: real processes, a paced S3 server that counts, for the test and the benchmark."""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis  # noqa: F401 (imported once here, not by each of fifty forked processes)

from appliance.registry import leases_postgres, s3  # noqa: F401 (the same)
from appliance.registry.channel import FileRecord
from appliance.registry.homes import open_cache, open_store
from appliance.registry.settings import FetchSlots, S3Settings
from tests.support.faulty_tls import FaultyServer, Request, faulty_server
from tests.support.small_authority import SmallAuthority

BLOCK_BYTES = 1024 * 1024
KEY = "routers/a/1/weights"


@dataclass
class PacedServer:
    """An S3 server that gives every connection the same rate, makes its object as it goes, and counts.

    Attributes:
        blocks: the object's length in blocks of a mebibyte.
        rate_blocks_s: of each connection.
        sent: bytes of bodies.
        most: connections that were served at the same time.
        gets: requests for the object.
    """

    blocks: int
    rate_blocks_s: float
    sent: int = 0
    now: int = 0
    most: int = 0
    gets: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    block: bytes = field(default_factory=lambda: np.random.default_rng(0).bytes(BLOCK_BYTES))

    @property
    def record(self) -> FileRecord:
        """The object, as a signed pointer names it."""
        digest = hashlib.sha256()
        for number in range(self.blocks):
            digest.update(self._block(number))
        return FileRecord(sha256=digest.hexdigest(), size_bytes=self.blocks * BLOCK_BYTES)

    def answer(self, connection: ssl.SSLSocket, _request: Request) -> None:
        """Serve the object at the rate of one connection."""
        with self.lock:
            self.gets += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            length = self.blocks * BLOCK_BYTES
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: %d\r\n\r\n' % length)
            start = time.monotonic()
            for number in range(self.blocks):
                connection.sendall(self._block(number))
                with self.lock:
                    self.sent += BLOCK_BYTES
                time.sleep(max(0.0, start + (number + 1) / self.rate_blocks_s - time.monotonic()))
        finally:
            with self.lock:
                self.now -= 1

    def _block(self, number: int) -> bytes:
        turn = number * 4099 % BLOCK_BYTES  # no two blocks alike
        return self.block[turn:] + self.block[:turn]


@dataclass(frozen=True)
class Outcome:
    """One replica.

    Attributes:
        digest: of what it ended with.
        seconds: from learning of the object to having it, verified.
        peak_bytes: its largest resident memory.
    """

    digest: str
    seconds: float
    peak_bytes: int


@contextmanager
def paced_server(authority: SmallAuthority, *, megabytes: int, rate_mb_s: float) -> Iterator[tuple[Any, PacedServer]]:
    """The server; yields its endpoint's description and its counts."""
    counting = PacedServer(megabytes, rate_mb_s)
    with faulty_server(authority.issue("127.0.0.1"), counting.answer) as server:
        yield server, counting


def _replica(settings: S3Settings, cache: Path, record: FileRecord, answers: Any) -> None:
    """One gateway process that has just learnt of a new router."""
    start = time.monotonic()
    data = open_cache(cache, settings).blob(record, open_store(settings), KEY)  # compared with its digest
    took = time.monotonic() - start
    assert len(data) == record.size_bytes
    answers.put(Outcome(record.sha256, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def stampede(
    root: Path,
    server: FaultyServer,
    record: FileRecord,
    ca_pem: bytes,
    slots: FetchSlots | None,
    *,
    hosts: int,
    replicas_a_host: int,
    limit_s: float = 600.0,
) -> list[Outcome]:
    """All replicas at once, as real processes; every one ends with the object or this fails."""
    (root / "ca.pem").write_bytes(ca_pem)
    credentials = root / "credentials.yaml"
    credentials.touch(0o600)
    credentials.write_text("access_key: a\nsecret_key: s\n")
    settings = S3Settings(
        home="s3",
        endpoint=server.endpoint,
        bucket="registry",
        ca_file=root / "ca.pem",
        credentials_file=credentials,
        read_timeout_s=120,
        connect_timeout_s=120,
        deadline_s=limit_s,
        slots=slots,
    )
    fork = multiprocessing.get_context("forkserver")  # our own process has threads, whose locks a fork would inherit
    fork.set_forkserver_preload([__name__])
    answers = fork.Queue()
    replicas = [
        fork.Process(target=_replica, args=(settings, root / f"host-{host}", record, answers))
        for host in range(hosts)
        for _ in range(replicas_a_host)
    ]
    for process in replicas:
        process.start()
    said = [answers.get(timeout=limit_s) for _ in replicas]
    for process in replicas:
        process.join(limit_s)
        assert process.exitcode == 0
    return said
