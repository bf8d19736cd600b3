"""Fifty replicas and one new router: one fetch a host, at most K at once, and none waits for a dead service."""

from __future__ import annotations

import multiprocessing
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis  # noqa: F401 (imported once here, not by each of fifty forked processes)

from appliance.errors import RegistryError
from appliance.files import sha256_hex
from appliance.registry.cache import Cache
from appliance.registry.channel import FileRecord
from appliance.registry.leases import Lease, Patience, Slots, fetch_slot
from appliance.registry.leases_postgres import PostgresSlots
from appliance.registry.leases_redis import RedisSlots
from appliance.registry.s3 import S3Store
from appliance.registry.settings import Credentials, S3Settings
from tests.support.faulty_tls import FaultyServer, Request, faulty_server
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.redis import RedisServer, redis_server
from tests.support.servers import free_port
from tests.support.small_authority import SmallAuthority

pytestmark = pytest.mark.slow

HOSTS, REPLICAS_A_HOST, AT_ONCE = 5, 10, 2
OBJECT_BYTES = 12 * 1024 * 1024  # the real thing is 500 MB; the machine is shared, the ratios are the same
RATE_BYTES_S = 20 * 1024 * 1024


@dataclass
class PacedServer:
    """An S3 server that gives every connection the same rate and counts."""

    body: bytes
    sent: int = 0
    now: int = 0
    most: int = 0
    gets: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, connection: ssl.SSLSocket, _request: Request) -> None:
        with self.lock:
            self.gets += 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: %d\r\n\r\n' % len(self.body))
            step = RATE_BYTES_S // 20
            for start in range(0, len(self.body), step):
                connection.sendall(self.body[start : start + step])
                with self.lock:
                    self.sent += len(self.body[start : start + step])
                time.sleep(0.05)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture(scope="module")
def body() -> bytes:
    import numpy as np

    return np.random.default_rng(0).bytes(OBJECT_BYTES)


@pytest.fixture
def paced(tls_authority: SmallAuthority, body: bytes) -> Iterator[tuple[FaultyServer, PacedServer]]:
    counting = PacedServer(body)
    with faulty_server(tls_authority.issue("127.0.0.1"), counting.answer) as server:
        yield server, counting


@pytest.fixture(scope="module")
def postgres(tls_authority: SmallAuthority) -> Iterator[PostgresServer]:
    with postgres_server(tls_authority.issue("127.0.0.1")) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tls_authority: SmallAuthority) -> Iterator[RedisServer]:
    with redis_server(tls_authority.issue("127.0.0.1")) as server:
        yield server


def replica(
    settings: S3Settings, cache: Path, record: FileRecord, slots: Callable[[], Slots], answers: multiprocessing.Queue
) -> None:
    """One gateway process that has just learnt of a new router."""
    start = time.monotonic()
    patience = Patience(wait_s=120, poll_s=0.1, jitter_s=0.5)
    kept = Cache(cache, slot=fetch_slot(slots(), patience=patience))
    data = kept.blob(record, S3Store(settings, Credentials(access_key="a", secret_key="s")), "routers/a/1/weights")
    answers.put((sha256_hex(data), time.monotonic() - start))


def stampede(tmp_path: Path, server: FaultyServer, ca: bytes, body: bytes, slots: Callable[[], Slots]) -> list[float]:
    """All replicas at once, as real processes; the seconds each took. Every one ends with the right bytes."""
    (tmp_path / "ca.pem").write_bytes(ca)
    settings = S3Settings(
        home="s3",
        endpoint=server.endpoint,
        bucket="registry",
        ca_file=tmp_path / "ca.pem",
        credentials_file=tmp_path / "unused",
        read_timeout_s=20,
        connect_timeout_s=10,
        deadline_s=120,
    )
    record = FileRecord(sha256=sha256_hex(body), size_bytes=len(body))
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    replicas = [
        fork.Process(target=replica, args=(settings, tmp_path / f"host-{host}", record, slots, answers))
        for host in range(HOSTS)
        for _ in range(REPLICAS_A_HOST)
    ]
    for process in replicas:
        process.start()
    said = [answers.get(timeout=120) for _ in replicas]
    for process in replicas:
        process.join(20)
        assert process.exitcode == 0
    assert {digest for digest, _ in said} == {record.sha256}
    return [seconds for _, seconds in said]


@pytest.mark.parametrize("service", ["postgres", "redis"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fifty_replicas_fetch_once_a_host_and_two_at_once(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    paced: tuple[FaultyServer, PacedServer],
    body: bytes,
    tls_authority: SmallAuthority,
    service: str,
) -> None:
    server, counting = paced
    settings = request.getfixturevalue(service).settings(tmp_path)
    kind = PostgresSlots if service == "postgres" else RedisSlots
    took = stampede(tmp_path, server, tls_authority.pem, body, lambda: kind(settings, count=AT_ONCE))
    print(f"{service}: {counting.sent / 1e6:.0f} MB sent, {counting.most} at once, slowest replica {max(took):.1f} s")
    assert counting.gets == HOSTS, "one fetch a host"
    assert counting.sent == HOSTS * len(body)
    assert counting.most <= AT_ONCE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fifty_replicas_go_on_without_the_lease_service(
    tmp_path: Path,
    paced: tuple[FaultyServer, PacedServer],
    body: bytes,
    postgres: PostgresServer,
    tls_authority: SmallAuthority,
) -> None:
    server, counting = paced
    dead = postgres.settings(tmp_path).model_copy(update={"port": free_port()})
    stampede(tmp_path, server, tls_authority.pem, body, lambda: PostgresSlots(dead, count=AT_ONCE))
    assert counting.gets == HOSTS, "still one a host: flock needs no service"


@pytest.fixture(params=["postgres", "redis"])
def slots(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Slots]:
    """Another process's view of the same service, with two slots."""
    server = request.getfixturevalue(request.param)
    if request.param == "postgres":
        return lambda: PostgresSlots(server.settings(tmp_path), count=2)
    return lambda: RedisSlots(server.settings(tmp_path, ttl_s=0.6), count=2)


def test_the_third_waits_until_one_is_released(slots: Callable[[], Slots]) -> None:
    first, second = ExitStack(), ExitStack()
    leases = [slots().try_hold(first), slots().try_hold(second)]
    assert {lease.slot for lease in leases if lease} == {0, 1}
    with ExitStack() as third:
        assert slots().try_hold(third) is None
        first.close()
        again = slots().try_hold(third)
        assert again is not None
    second.close()


def test_a_held_redis_slot_outlives_its_time_to_live_and_a_lost_one_is_overtaken(
    redis: RedisServer, tmp_path: Path
) -> None:
    mine = RedisSlots(redis.settings(tmp_path, ttl_s=0.4), count=1)
    other = RedisSlots(redis.settings(tmp_path, ttl_s=0.4), count=1)
    with ExitStack() as held, ExitStack() as taken:
        first = mine.try_hold(held)
        assert first is not None
        time.sleep(1.0)
        assert other.try_hold(taken) is None, "renewed while held"
        mine._client.delete("appliance:fetch:0")  # a server that forgot (restart without persistence)
        second = other.try_hold(taken)
        assert second is not None
        assert second.fence > first.fence
        assert mine.newest_fence() > first.fence, "the first holder can see that it was overtaken"
        held.close()
        with ExitStack() as third:
            assert mine.try_hold(third) is None, "releasing a lost lease does not free the other's"


def test_a_dead_service_costs_a_random_wait_and_nothing_more(tls_authority: SmallAuthority, tmp_path: Path) -> None:
    class Dead:
        def try_hold(self, held: ExitStack) -> Lease | None:
            raise RegistryError("REGISTRY_LEASES", "nobody there")

    waits: list[float] = []
    told: list[RegistryError] = []
    hold = fetch_slot(Dead(), report=told.append, sleep=waits.append, uniform=lambda low, high: (low + high) / 2)
    with hold("digest") as lease:
        assert lease.slot == -1
    assert waits == [2.5]
    assert told[0].code == "REGISTRY_LEASES"


def test_a_database_of_another_authority_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(SmallAuthority().pem)
    settings = postgres.settings(tmp_path).model_copy(update={"ca_file": tmp_path / "other.pem"})
    with pytest.raises(RegistryError) as info:
        PostgresSlots(settings, count=1).try_hold(ExitStack())
    assert info.value.code == "REGISTRY_LEASES"


def test_a_redis_of_another_authority_is_refused(redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(SmallAuthority().pem)
    settings = redis.settings(tmp_path).model_copy(update={"ca_file": tmp_path / "other.pem"})
    with pytest.raises(RegistryError) as info:
        RedisSlots(settings, count=1).try_hold(ExitStack())
    assert info.value.code == "REGISTRY_LEASES"
