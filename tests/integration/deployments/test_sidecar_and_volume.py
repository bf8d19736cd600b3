"""Deployment A: `appliance sync` beside whole gateways on a read-only root; routers and configuration travel alike.

It runs in a sealed room (deployment C, see conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.registry.channel import envelope, split
from tests.support.gateway import Gateway
from tests.support.s3 import swift_server
from tests.support.servers import stop
from tests.support.small_authority import SmallAuthority
from tests.support.trust import make_authority
from tests.support.upstream import Upstream, upstream
from tests.support.zone import GROUP, SOURCE, Zone, deployment, gateways, live, route, until_all

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@dataclass
class Site:
    """The deployment, running."""

    zone: Zone
    running: dict[str, Gateway]
    upstreams: dict[str, Upstream]
    sidecar: subprocess.Popen[bytes]

    @property
    def volume(self) -> Path:
        """What the sidecar writes and the gateways read."""
        return self.zone.root / "volume"

    def rows(self, **more: object) -> dict[str, object]:
        """The configuration that the test begins with."""
        both = [deployment(self.upstreams[name]) for name in ("small", "large")]
        return {"deployment": both, "router_source": [SOURCE], "model_group": [GROUP], **more}

    def converge(self, epoch: int) -> float:
        """Seconds until all gateways have applied an epoch."""
        return until_all(self.running, lambda one: live(one)["revision"] == epoch)


def read_only(home: Path) -> list[str]:
    """A root that cannot be written but for the gateway's own state, as a container with a read-only image has it."""
    wall = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--die-with-parent"]
    kept = [path for name in ("state", "trust") for path in ("--bind", str(home / name), str(home / name))]
    return [*wall, *kept]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("a")
    authority, tls = make_authority(root / "ca"), SmallAuthority()
    with ExitStack() as stack:
        s3 = stack.enter_context(swift_server(tls.issue("127.0.0.1")))
        upstreams = {name: stack.enter_context(upstream(name)) for name in ("small", "large", "spare")}
        s3.make_bucket(root, "registry")
        zone = Zone.make(root, authority, s3.settings(root, bucket="registry", read_timeout_s=60, connect_timeout_s=60))
        zone.release("1.0.0")
        both = [deployment(upstreams[name]) for name in ("small", "large")]
        zone.configure({"deployment": both, "router_source": [SOURCE], "model_group": [GROUP]})
        (root / "volume").mkdir()
        command = [sys.executable, "-m", "appliance.cli.main", "sync", "--registry", str(zone.registry)]
        command += [
            "--trust",
            str(zone.trust),
            "--to",
            f"{root}/volume",
            "--cache",
            f"{root}/sync",
            "--interval",
            "0.3",
        ]
        with open(root / "sync.log", "wb") as log:
            sidecar = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        stack.callback(stop, sidecar)
        wait_for(root / "volume" / "config" / "gateway.json")
        section = {
            "config": "gateway",
            "registry": {"home": "directory", "path": str(root / "volume")},
            "destinations": [f"127.0.0.1:{one.port}" for one in upstreams.values()],
        }
        files = {name: zone.gateway_files(name, section) for name in ("one", "two")}
        for path, _ in files.values():
            (path.parent / "state").mkdir()
        running = stack.enter_context(gateways(files, prefix=read_only))
        yield Site(zone, running, upstreams, sidecar)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_gateways_that_can_write_nothing_else_route_by_what_the_sidecar_brought(site: Site) -> None:
    until_all(site.running, lambda one: one.status()["routers"]["default"]["mode"] == "ml")
    for one in site.running.values():
        assert route(one, "easy what is the capital") == "small"
        assert route(one, "hard prove the theorem") == "large"


def test_a_new_router_reaches_every_gateway(site: Site) -> None:
    site.zone.release("1.1.0", swapped=True)
    took = until_all(site.running, lambda one: route(one, "easy what is the capital") == "large")
    print(f"promoted, brought and loaded after {took:.2f} s")
    site.zone.release("1.2.0")
    until_all(site.running, lambda one: route(one, "easy what is the capital") == "small")


def test_a_new_configuration_reaches_every_gateway_the_same_way(site: Site) -> None:
    both = [*site.rows()["deployment"], deployment(site.upstreams["spare"], group="other")]  # type: ignore[misc]
    deadline = {"name": "routing.deadline_ms", "value": 400}
    took = site.converge(site.zone.configure(site.rows(deployment=both, setting=[deadline])))
    print(f"signed, brought and applied after {took:.2f} s")
    for one in site.running.values():
        assert one.chat("x", model="other").headers["x-appliance-deployment"] == "spare"
    site.converge(site.zone.configure(site.rows()))
    for one in site.running.values():
        assert one.chat("x", model="other").status_code == 400


def test_what_cannot_change_at_run_time_is_said_and_the_rest_is_applied(site: Site) -> None:
    settings = [{"name": "listen.workers", "value": 4}]
    elsewhere = deployment(site.upstreams["spare"], api_base="http://192.0.2.1:8000/v1")
    both = [*site.rows()["deployment"], elsewhere]  # type: ignore[misc]
    site.converge(site.zone.configure(site.rows(deployment=both, setting=settings)))
    for one in site.running.values():
        found = {(row["table"], row["key"], row["code"]) for row in live(one)["refused"]}
        assert found == {("deployment", "spare", "CONFIG_ROW_HOST"), ("setting", "listen.workers", "CONFIG_ROW_START")}
        assert route(one) == "small"
    site.converge(site.zone.configure(site.rows()))


def test_a_configuration_from_the_volume_is_verified_by_the_gateway_itself(site: Site) -> None:
    """Whoever can write to the volume still cannot configure a gateway."""
    os.kill(site.sidecar.pid, 19)  # or it would repair the volume at once
    try:
        path = site.volume / "config" / "gateway.json"
        statement, bundle = split(path.read_bytes())
        path.write_bytes(envelope(statement.replace(b"openai/small", b"openai/other"), bundle))
        until_all(site.running, lambda one: str((live(one)["problem"] or {}).get("code")).startswith("TRUST_"))
        for one in site.running.values():
            assert route(one) == "small"
    finally:
        os.kill(site.sidecar.pid, 18)
    until_all(site.running, lambda one: live(one)["problem"] is None)


def test_without_a_sidecar_gateways_serve_on_and_refuse_an_old_pointer(site: Site, packets_that_left: int) -> None:
    """The last test of the module: the sidecar does not come back."""
    old = (site.volume / "channels" / "default.json").read_bytes()
    site.zone.release("1.3.0")
    until_all(site.running, lambda one: one.status()["routers"]["default"]["serving"]["artifact"] == "default 1.3.0")
    stop(site.sidecar)
    (site.volume / "channels" / "default.json").write_bytes(old)

    def refused(one: Gateway) -> bool:
        problem = one.status()["routers"]["default"]["problem"]
        return problem is not None and problem["code"] == "REGISTRY_CHANNEL_ROLLBACK"

    until_all(site.running, refused)
    for one in site.running.values():
        assert route(one) == "small"
        assert one.status()["routers"]["default"]["mode"] == "ml"
    assert packets_that_left == 0
