"""A lease service that hangs, lies, is another's or cannot be asked at all costs a wait, and never the fetch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from appliance.errors import RegistryError
from appliance.registry.homes import _slot
from appliance.registry.leases import Lease, Patience, fetch_slot
from appliance.registry.leases_postgres import LOCK_CLASS, PostgresSlots
from appliance.registry.leases_redis import RedisSettings, RedisSlots
from appliance.registry.postgres import parameters
from appliance.registry.settings import FetchSlots
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.small_authority import SmallAuthority

SOON = Patience(jitter_s=0.0, answer_s=1.0)


@contextmanager
def answering(authority: SmallAuthority, tmp_path: Path, answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TLS server that treats every connection as it is told; its port."""
    certificate, key, _ = authority.issue("127.0.0.1").write(tmp_path, "redis")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
            answer(wrapped)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def garbage(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(b"$3\r\nabc\r\n" * 4)


def nonsense(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(b"%1\r\n$5\r\nproto\r\n:3\r\n" + b"?\xff\xfe\r\n")


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"$")
        time.sleep(0.2)


def silence(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@pytest.mark.parametrize("answer", [garbage, nonsense, drip, silence])
def test_a_redis_that_answers_anything_at_all_costs_a_bounded_wait(
    tls_authority: SmallAuthority, tmp_path: Path, answer: Callable[[socket.socket], None]
) -> None:
    (tmp_path / "ca.pem").write_bytes(tls_authority.pem)
    told: list[RegistryError] = []
    with answering(tls_authority, tmp_path, answer) as port:
        settings = RedisSettings(host="127.0.0.1", port=port, ca_file=tmp_path / "ca.pem", timeout_s=0.5)
        start = time.monotonic()
        with fetch_slot(RedisSlots(settings, count=2), patience=SOON, report=told.append)("digest") as lease:
            assert lease.slot == -1
    assert time.monotonic() - start < 30
    assert [error.code for error in told] == ["REGISTRY_LEASES"]


def test_a_postgres_that_stops_after_it_was_connected_costs_a_bounded_wait_and_frees_what_it_gave_too_late(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    slots = PostgresSlots(postgres.settings(tmp_path), count=1)
    told: list[RegistryError] = []
    with psycopg.connect(**parameters(postgres.settings(tmp_path)), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, 0)", (LOCK_CLASS,))
        assert slots.try_hold(ExitStack()) is None
        assert slots._waiting is not None
        backend = slots._waiting.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            with fetch_slot(slots, patience=SOON, report=told.append)("digest") as lease:
                assert lease.slot == -1
            other.execute("SELECT pg_advisory_unlock(%s, 0)", (LOCK_CLASS,))
        finally:
            os.kill(backend, signal.SIGCONT)
        assert [error.code for error in told] == ["REGISTRY_LEASES"]
        taken = "SELECT pg_try_advisory_lock(%s, 0)"
        for _ in range(600):
            row = other.execute(taken, (LOCK_CLASS,)).fetchone()
            if row == (True,):
                return
            time.sleep(0.1)
        pytest.fail("the slot that came too late was never given back")


def test_waiting_for_a_slow_service_counts_as_waiting() -> None:
    class Slow:
        def try_hold(self, held: ExitStack) -> Lease | None:
            time.sleep(0.3)
            return None

    start = time.monotonic()
    patience = Patience(wait_s=1.0, poll_s=0.05, answer_s=10.0)
    with fetch_slot(Slow(), patience=patience)("digest") as lease:
        assert lease.slot == -1
    assert time.monotonic() - start < 5, "by the pauses alone it would be six seconds"


def test_the_environment_cannot_lend_redis_another_authority(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = redis.settings(tmp_path)
    with ExitStack() as held:
        assert RedisSlots(settings, count=1).try_hold(held) is not None
    (tmp_path / "ours.pem").write_bytes(SmallAuthority().pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(settings.ca_file))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    ours = settings.model_copy(update={"ca_file": tmp_path / "ours.pem"})
    with pytest.raises(RegistryError) as info:
        RedisSlots(ours, count=1).try_hold(ExitStack())
    assert info.value.code == "REGISTRY_LEASES"
    assert "certificate verify failed" in info.value.cause
    assert not (tmp_path / "keys.log").exists()


@pytest.mark.parametrize("service", ["postgres", "redis"])
@pytest.mark.parametrize("missing", ["password_file", "ca_file"])
def test_a_missing_file_of_the_service_is_a_dead_service(
    request: pytest.FixtureRequest, tmp_path: Path, service: str, missing: str
) -> None:
    settings: Any = request.getfixturevalue(service).settings(tmp_path)
    told: list[RegistryError] = []
    lost = settings.model_copy(update={missing: tmp_path / "lost"})
    hold = _slot(FetchSlots(jitter_s=0.0, **{service: lost}), told.append)
    with hold("digest") as lease:
        assert lease.slot == -1
    assert [error.code for error in told] == ["REGISTRY_LEASES"]
