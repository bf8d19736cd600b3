"""A whole zone of real parts: gateways of two deployments, their registry, their database, their upstreams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml

from appliance.registry.homes import open_store
from appliance.registry.live_database import ConfigDatabase
from appliance.registry.postgres import PostgresSettings, parameters
from appliance.registry.registry import Registry
from appliance.registry.signed_config import Configs
from appliance.registry.trust_source import TrustSource
from tests.support import routing
from tests.support.gateway import BOOT_LIMIT_S, Gateway, serve, write_config
from tests.support.trust import DevelopmentAuthority
from tests.support.upstream import Upstream

LABELS = {"small-label": "openai/small", "large-label": "openai/large"}
SECRET = "upstream-key-of-the-zone"
GROUP = {"name": "chat", "strategy": "ml", "router": "default"}
SOURCE = {"name": "default", "channel": "default"}


def deployment(upstream: Upstream, *, group: str = "chat", **more: Any) -> dict[str, Any]:
    """A row of the live configuration."""
    row = {"id": upstream.name, "model_group": group, "model": f"openai/{upstream.name}", "api_base": upstream.url}
    return {**row, "key_reference": "os.environ/UPSTREAM_KEY", **more}


@dataclass
class Zone:
    """What gateways and officers have.

    Attributes:
        root: a folder of the test's own.
        authority: the zone's.
        registry: settings file of the registry that officers write to.
        parts: trust and encoder, as every host has them.
    """

    root: Path
    authority: DevelopmentAuthority
    registry: Path
    parts: routing.Zone

    @classmethod
    def make(cls, root: Path, authority: DevelopmentAuthority, registry: Mapping[str, Any]) -> Zone:
        """Write settings, trust and encoder below `root`."""
        path = root / "registry.yaml"
        path.write_text(yaml.safe_dump({"registry": dict(registry)}))
        return cls(root, authority, path, routing.zone(root / "zone", authority, labels=LABELS))

    @property
    def trust(self) -> Path:
        """The officers' trust state."""
        return self.root / "zone" / "trust"

    def release(self, version: str, *, swapped: bool = False, channel: str = "default") -> None:
        """Sign, publish and promote a router; `swapped` sends easy prompts to the large model."""
        source, officer = TrustSource(self.trust), self.authority.signer("import-officer")
        home = Registry(open_store(self.registry), material=source.material, clock=source.now)
        home.publish(self.parts.artifact(version=version, swapped=swapped), name="default", version=version)
        home.promote("default", version, officer, channel=channel)

    def configure(self, document: Mapping[str, Any]) -> int:
        """Sign and publish a live configuration; its epoch."""
        source = TrustSource(self.trust)
        configs = Configs(open_store(self.registry), material=source.material, clock=source.now)
        return configs.publish("gateway", dict(document), self.authority.signer("import-officer")).statement.epoch

    def gateway_files(self, name: str, live: Mapping[str, Any], **sections: Any) -> tuple[Path, str]:
        """An appliance.yaml that has nothing to route by itself; its path and the master key."""
        home = self.root / name
        trust = home / "trust"
        path, key = write_config(
            home,
            [],
            trust={"store": str(trust)},
            routing={"deadline_ms": 500, "encoders": [str(self.root / "zone" / "encoder")]},
            live={"poll_interval_s": 0.5, **live},
            **sections,
        )
        self.authority.store(trust)
        secret = home / "upstream.key"
        secret.touch(0o600)
        secret.write_text(SECRET)
        document = yaml.safe_load(path.read_text())
        document["litellm"]["secrets"] = {"UPSTREAM_KEY": "upstream.key"}
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path, key


@contextmanager
def gateways(
    files: Mapping[str, tuple[Path, str]], *, prefix: Callable[[Path], list[str]] = lambda _home: []
) -> Iterator[dict[str, Gateway]]:
    """Several gateways that boot at the same time."""
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(serve(path, key, wait=False, prefix=prefix(path.parent)))
            for name, (path, key) in files.items()
        }
        for one in running.values():
            one.wait_until(lambda one=one: is_ready(one), limit_s=BOOT_LIMIT_S, what="ready")
        yield running


def is_ready(gateway: Gateway) -> bool:
    """Whether it takes requests."""
    assert gateway.process.poll() is None, gateway.log.read_text()[-4000:]
    try:
        return gateway.client.get("/appliance/ready").status_code == 200
    except httpx.HTTPError:
        return False


def live(gateway: Gateway) -> dict[str, Any]:
    """What the gateway says of its live configuration."""
    return gateway.status()["workers"][0]["live"]


def route(gateway: Gateway, prompt: str = "easy what is the capital", *, key: str | None = None) -> str:
    """Which deployment answers."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": "chat", "messages": [{"role": "user", "content": prompt}]}
    response = gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.headers["x-appliance-deployment"]


def until_all(running: Mapping[str, Gateway], condition: Callable[[Gateway], bool]) -> float:
    """Wait until all gateways are there; seconds until the last one was."""
    start = time.monotonic()
    for one in running.values():
        one.wait_until(lambda one=one: condition(one), what="convergence")
    return time.monotonic() - start


class Editor:
    """Changes rows as an operator's SQL tool does.

    Args:
        settings: of the database; its tables are made where they are missing.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings, self.database = settings, ConfigDatabase(settings)

    def change(self, *statements: tuple[str, tuple[Any, ...]] | str) -> int:
        """One transaction; the revision it made."""
        with psycopg.connect(**parameters(self.settings)) as connection:
            for statement in statements:
                text, values = (statement, ()) if isinstance(statement, str) else statement
                connection.execute(text, values)  # type: ignore[arg-type]
        return self.database.newest()

    @staticmethod
    def put(table: str, row: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """Insert a row, or exchange the one of its key."""
        names, key = list(row), "id" if table == "deployment" else "name"
        changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in names)
        marks = ", ".join(["%s"] * len(names))
        text = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {changes}"
        return text, tuple(row.values())
