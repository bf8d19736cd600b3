"""Fifty replicas and one new router: one fetch a host, at most K at once, and none waits for a dead service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.errors import RegistryError
from appliance.registry.leases import Lease, Slots, fetch_slot
from appliance.registry.leases_postgres import PostgresSlots
from appliance.registry.leases_redis import RedisSlots
from appliance.registry.settings import FetchSlots
from tests.support.faulty_tls import FaultyServer
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.small_authority import SmallAuthority
from tests.support.stampede import PacedServer, paced_server, stampede

pytestmark = pytest.mark.slow

HOSTS, AT_ONCE = 5, 2
REPLICAS = {"hosts": HOSTS, "replicas_a_host": 10}
MEGABYTES = 12  # the long form, with 500, is `python -m benchmarks.stampede`


@pytest.fixture
def paced(tls_authority: SmallAuthority) -> Iterator[tuple[FaultyServer, PacedServer]]:
    with paced_server(tls_authority, megabytes=MEGABYTES, rate_mb_s=20) as both:
        yield both


@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_fifty_replicas_fetch_once_a_host_and_two_at_once(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    paced: tuple[FaultyServer, PacedServer],
    tls_authority: SmallAuthority,
    service: str,
) -> None:
    server, counting = paced
    settings = request.getfixturevalue(service).settings(tmp_path)
    slots = FetchSlots.model_validate({"count": AT_ONCE, "poll_s": 0.1, service: settings})
    said = stampede(tmp_path, server, counting.record, tls_authority.pem, slots, **REPLICAS)
    slowest = max(one.seconds for one in said)
    print(f"{service}: {counting.sent / 1e6:.0f} MB sent, {counting.most} at once, slowest replica {slowest:.1f} s")
    assert counting.gets == HOSTS, "one fetch a host"
    assert counting.sent == HOSTS * counting.record.size_bytes
    assert counting.most <= AT_ONCE


def test_fifty_replicas_go_on_without_the_lease_service(
    tmp_path: Path,
    paced: tuple[FaultyServer, PacedServer],
    postgres: PostgresServer,
    tls_authority: SmallAuthority,
) -> None:
    server, counting = paced
    dead = postgres.settings(tmp_path).model_copy(update={"port": free_port()})
    slots = FetchSlots(count=AT_ONCE, postgres=dead, jitter_s=0.5)
    stampede(tmp_path, server, counting.record, tls_authority.pem, slots, **REPLICAS)
    assert counting.gets == HOSTS, "still one a host: flock needs no service"


@pytest.fixture(params=["postgres", "redis"])
def slots(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Slots]:
    """Another process's view of the same service, with two slots."""
    server = request.getfixturevalue(request.param)
    if request.param == "postgres":
        return lambda: PostgresSlots(server.settings(tmp_path), count=2)
    return lambda: RedisSlots(server.settings(tmp_path, ttl_s=60), count=2)


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
    mine = RedisSlots(redis.settings(tmp_path, ttl_s=5), count=1)
    other = RedisSlots(redis.settings(tmp_path, ttl_s=5), count=1)
    with ExitStack() as held, ExitStack() as taken:
        first = mine.try_hold(held)
        assert first is not None
        time.sleep(6)
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
