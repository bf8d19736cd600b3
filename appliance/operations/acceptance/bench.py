"""The second gateway: made from the installed one's parts, on copies, with stand-in model servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance import artifact, documents, settings
from appliance.errors import ApplianceError, GatewayError, OperationError
from appliance.operations import status
from appliance.operations.acceptance.collector import Collector, collecting
from appliance.operations.acceptance.manager import HAND_OVER
from appliance.operations.acceptance.traffic import GROUP, PROMPTS
from appliance.operations.acceptance.upstream import StandIn, stand_ins
from appliance.operations.doctor.gather import Places

LOST = "lost"  # a group whose router's registry is not there, from the gateway's first moment on
BOOT_LIMIT_S = 400.0
PATIENCE_S = 120.0  # with a gateway that does not answer on a crowded machine


@dataclass
class Answer:
    """One answer: its status, who answered, how it was routed, how long it took."""

    status: int
    deployment: str
    routing: str
    seconds: float

    @property
    def by_model(self) -> bool:
        """Whether a routing model chose."""
        return self.routing.startswith("ml:")


@dataclass
class Bench:
    """A running second gateway.

    Attributes:
        directory: everything it writes.
        config: its appliance.yaml.
        port: loopback port of its listener.
        key: its master key.
        router: folder of the copied router.
        upstreams: stand-ins by deployment id.
        collector: where its traces arrive.
        process: the gateway.
    """

    directory: Path
    config: Path
    port: int
    key: str
    router: Path
    upstreams: dict[str, StandIn]
    collector: Collector
    process: subprocess.Popen[bytes]
    chosen: settings.Settings
    answers: list[Answer] = field(default_factory=list)
    loads: int = 0

    def ask(self, prompt: str, group: str = GROUP) -> Answer:
        """One chat completion through the gateway; status 0 where no answer came."""
        body = json.dumps({"model": group, "messages": [{"role": "user", "content": prompt}]})
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        begun = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/chat/completions", body, headers)
                got = connection.getresponse()
                got.read()
                deployment, routing = (
                    got.getheader("x-appliance-deployment", ""),
                    got.getheader("x-appliance-routing", ""),
                )
                found = Answer(got.status, deployment, routing, time.monotonic() - begun)
        except (OSError, http.client.HTTPException):
            found = Answer(0, "", "", time.monotonic() - begun)
        self.answers.append(found)
        return found

    def report(self, path: str, method: str = "GET") -> tuple[int, str]:
        """One of the gateway's own reports."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, headers={"authorization": f"Bearer {self.key}"})
            got = connection.getresponse()
            return got.status, got.read().decode("utf-8", "replace")

    def status(self) -> dict[str, Any]:
        """As `appliance status --json`; a gateway that is too busy to answer is asked again."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return status.collect(self.chosen)
            except GatewayError as error:
                if error.code != "GATEWAY_BOOTING" or self.process.poll() is not None or time.monotonic() > end:
                    raise

    def until(self, condition: Callable[[], bool], *, limit_s: float = 200.0) -> bool:
        """Wait for a condition; False where it did not come."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.1)
        return False

    @contextlib.contextmanager
    def load(self, *, clients: int = 2, pause_s: float = 0.02) -> Iterator[list[Answer]]:
        """Traffic while the block runs, every prompt a new one; the list holds its answers afterwards."""
        stop, mine = threading.Event(), list[Answer]()
        self.loads += 1
        load = self.loads  # what was asked before would be answered from the cache of decisions

        def client(number: int) -> None:
            turn = number
            while not stop.is_set():
                mine.append(self.ask(f"{PROMPTS[turn % len(PROMPTS)]} ({load}, {turn})"))
                turn += clients
                stop.wait(pause_s)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield mine
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def bench(places: Places, directory: Path, *, router: Path | None = None) -> Iterator[Bench]:
    """Start the second gateway; stop it when the block ends.

    Args:
        places: of the installation.
        directory: an empty folder for everything it writes.
        router: the router's folder; default is the newest one of the installation.

    Raises:
        OperationError: OPERATION_ACCEPTANCE_SETUP.
        ConfigError: of the installation's configuration.
    """
    installed = settings.load(places.config)
    if installed.trust is None or not installed.routing.encoders:
        raise OperationError("OPERATION_ACCEPTANCE_SETUP", "the configuration names no trust store or no encoder")
    source = router or installed_router(installed, places)
    copy = directory / "router"
    shutil.copytree(source, copy)
    shutil.copytree(installed.trust.store, directory / "trust", symlinks=True)
    models = sorted(set(artifact.router_metadata(artifact.read(copy)).labels.values()))
    with (
        stand_ins(models) as upstreams,
        collecting() as collector,
        socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
    ):
        port = int(listener.getsockname()[1])
        config, key = _write(directory, installed, upstreams, port, collector)
        handed = str(listener.fileno())  # nobody else takes the port while the gateway boots
        serve = [sys.executable, "-m", "appliance.cli.main", "serve", "--config", str(config)]
        with open(directory / "gateway.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, handed, *serve], pass_fds=[listener.fileno()],
                stdout=log, stderr=log, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, start_new_session=True,
            )  # fmt: skip
        made = Bench(directory, config, port, key, copy, upstreams, collector, process, settings.load(config))
        try:
            _wait(made, source)
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def installed_router(installed: settings.Settings, places: Places) -> Path:
    """Folder of the newest router of an installation.

    Raises:
        OperationError: OPERATION_ACCEPTANCE_SETUP.
    """
    folders = [router.directory for router in installed.routing.routers.values() if router.directory is not None]
    folders += [path.parent for path in sorted((places.state / "volume").rglob("router.yaml"), reverse=True)]
    folders += [places.prefix / "current" / "payload" / "router"]
    for folder in folders:
        if (folder / "router.yaml").is_file():
            return folder
    raise OperationError("OPERATION_ACCEPTANCE_SETUP", "no router is installed; name one with --router FOLDER")


def master_key(directory: Path) -> str:
    """Make a key and write it to `master.key`."""
    key = f"sk-{secrets.token_hex(24)}"
    secret = directory / "master.key"
    secret.touch(0o600)
    secret.write_text(key + "\n")
    return key


def _write(
    directory: Path, installed: settings.Settings, upstreams: dict[str, StandIn], port: int, collector: Collector
) -> tuple[Path, str]:
    """Its configuration: what is under test as it is installed, everything around it a stand-in."""
    key = master_key(directory)
    deployments = [
        *(each.as_deployment(GROUP) for each in upstreams.values()),
        # the same servers once more, for a group whose registry was never there
        *({**each.as_deployment(LOST), "model_info": {"id": f"{each.name}-{LOST}"}} for each in upstreams.values()),
    ]
    document = {
        "schema_version": 1,
        "state_dir": "state",
        "listen": {"host": "127.0.0.1", "port": port},
        "litellm": {
            "inline": {
                "model_list": deployments,
                "router_settings": {"num_retries": 3, "allowed_fails": 1, "cooldown_time": 2},
            },
            "master_key_file": "master.key",
        },
        "trust": {"store": "trust", "router_role": installed.trust.router_role if installed.trust else None},
        "routing": {
            "deadline_ms": installed.routing.deadline_ms,
            "encoders": [str(path) for path in installed.routing.encoders],
            "routers": {
                "acceptance": {"directory": "router", "on_bad_update": "static", "poll_interval_s": 0.2},
                LOST: {"registry": {"home": "directory", "path": "no-registry"}, "channel": LOST},
            },
            "groups": {
                GROUP: {"strategy": "ml", "router": "acceptance"},
                LOST: {"strategy": "ml", "router": LOST},
            },
        },
        "lockdown": installed.lockdown.model_dump(mode="json"),
        "telemetry": {"otlp_endpoint": collector.url, "otel_v2": installed.telemetry.otel_v2},
        "drain": {"readiness_s": 0.2, "streams_s": 10},
    }
    config = directory / "appliance.yaml"
    config.write_bytes(documents.write_json(document))  # JSON is YAML
    return config, key


def _wait(made: Bench, source: Path) -> None:
    def ready() -> bool:
        if made.process.poll() is not None:
            said = (made.directory / "gateway.log").read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise OperationError("OPERATION_ACCEPTANCE_SETUP", "the second gateway ended", said=said)
        try:
            return bool(made.status()["ready"])
        except ApplianceError:
            return False

    def settled() -> bool:
        view = made.status()["routers"]["acceptance"]
        return view["mode"] == "ml" or view["problem"] is not None

    if not made.until(ready, limit_s=BOOT_LIMIT_S):
        raise OperationError("OPERATION_ACCEPTANCE_SETUP", f"the second gateway was not ready in {BOOT_LIMIT_S:.0f} s")
    made.until(settled)
    view = made.status()["routers"]["acceptance"]
    if view["mode"] != "ml":  # without a router that serves, nothing can be shown of reloads, fallback or latency
        problem = view["problem"] or {}
        raise OperationError(
            "OPERATION_ACCEPTANCE_SETUP",
            f"the gateway does not serve the router: {problem.get('code')}, {problem.get('cause')}",
            router=str(source),
        )
