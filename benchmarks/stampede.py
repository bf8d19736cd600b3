"""Fifty replicas, one new router of 500 MB: what the registry gives out, and how long the slowest replica waits.

    python -m benchmarks.stampede [--hosts 5] [--replicas 10] [--megabytes 500] [--rate 60] [--at-once 2]
                                  [--service postgres|redis|none|dead]

Hosts are caches of their own, replicas are processes. The registry is a TLS server that gives each connection the same
rate and counts; PostgreSQL and Redis are real, with TLS. Goals: one fetch a host, never more than K at once. Printed
beside them: bytes against what fifty replicas would fetch by themselves, and the slowest replica against the time that
the hosts need at K at once and that rate. The test of the same name in miniature:
tests/integration/registry/test_stampede.py.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.registry.settings import FetchSlots
from tests.support.ports import free_port
from tests.support.postgres import postgres_server
from tests.support.redis import redis_server
from tests.support.small_authority import SmallAuthority
from tests.support.stampede import BLOCK_BYTES, paced_server, stampede


@contextmanager
def slots_of(service: str, authority: SmallAuthority, root: Path, at_once: int) -> Iterator[FetchSlots | None]:
    """The lease service, running."""
    common = {"count": at_once, "poll_s": 0.2, "jitter_s": 2.0, "wait_s": 900.0}
    if service == "none":
        yield None
    elif service == "redis":
        with redis_server(authority.issue("127.0.0.1")) as redis:
            yield FetchSlots.model_validate({**common, "redis": redis.settings(root)})
    else:
        with postgres_server(authority.issue("127.0.0.1")) as postgres:
            settings = postgres.settings(root)
            dead = {"port": free_port()} if service == "dead" else {}
            yield FetchSlots.model_validate({**common, "postgres": settings.model_copy(update=dead)})


def main() -> None:
    """Run once and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=10, help="of each host")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rate", type=float, default=60.0, help="MB/s of one connection")
    parser.add_argument("--at-once", type=int, default=2, help="K")
    parser.add_argument("--service", choices=["postgres", "redis", "none", "dead"], default="postgres")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds")
    given = parser.parse_args()
    authority = SmallAuthority()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with (
            slots_of(given.service, authority, root, given.at_once) as slots,
            paced_server(authority, megabytes=given.megabytes, rate_mb_s=given.rate) as (server, counting),
        ):
            record = counting.record
            start = time.monotonic()
            said = stampede(
                root,
                server,
                record,
                authority.pem,
                slots,
                hosts=given.hosts,
                replicas_a_host=given.replicas,
                limit_s=given.limit,
            )
            took = time.monotonic() - start
    alone = len(said) * record.size_bytes
    turns = math.ceil(given.hosts / (given.at_once if given.service in {"postgres", "redis"} else given.hosts))
    ideal = turns * given.megabytes * BLOCK_BYTES / (given.rate * BLOCK_BYTES)
    slowest = max(one.seconds for one in said)
    print(f"{len(said)} replicas on {given.hosts} hosts, {given.megabytes} MB, K = {given.at_once}, {given.service}")
    print(f"  fetches               {counting.gets} (goal: {given.hosts}, one a host)")
    print(f"  most at once          {counting.most} (goal with a live service: {given.at_once})")
    print(f"  bytes sent            {counting.sent / 1e9:.2f} GB, {counting.sent / alone:.2f} of what each alone takes")
    print(f"  slowest replica       {slowest:.1f} s, {slowest / ideal:.2f} times the line's own {ideal:.1f} s")
    print(f"  quickest replica      {min(one.seconds for one in said):.1f} s; all ended after {took:.1f} s")
    print(f"  largest replica       {max(one.peak_bytes for one in said) / 1e6:.0f} MB resident")


if __name__ == "__main__":
    main()
