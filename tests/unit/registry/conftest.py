"""A registry in a directory, a host that follows it, and the zone's trust, all real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.registry.cache import Cache
from appliance.registry.channel import ChannelState
from appliance.registry.directory import DirectoryStore
from appliance.registry.follower import Follower
from appliance.registry.registry import Registry
from appliance.trust.signing import Signer
from appliance.trust.verification import TrustMaterial
from tests.support.artifacts import router_files, signed
from tests.support.trust import make_authority


@dataclass
class Clock:
    """A clock that tests move."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **time: float) -> None:
        self.now += timedelta(**time)


@dataclass
class Zone:
    """A registry, its officer and its hosts."""

    root: Path
    material: TrustMaterial
    officer: Signer
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        (self.root / "registry").mkdir()
        self.store = DirectoryStore(self.root / "registry")
        self.registry = Registry(self.store, material=lambda: self.material, clock=self.clock)

    def publish(self, version: str, *, name: str = "default", payload: bytes | None = None) -> str:
        artifact = signed(router_files(name, version, payload=payload or version.encode()), self.officer)
        self.registry.publish(artifact, name=name, version=version)
        return artifact.digest

    def promote(self, version: str, *, name: str = "default") -> ChannelState:
        return self.registry.promote(name, version, self.officer)

    def host(self, name: str = "host") -> Follower:
        """A host's follower with its own cache; asked again with the same name it is the host after a restart."""
        cache = Cache(self.root / name)
        return Follower(self.registry, cache, "default", material=lambda: self.material, clock=self.clock)

    def give_up(self, identity: str) -> None:
        """The zone no longer believes an officer, whenever he signed."""
        roles = {
            name: role.model_copy(update={"identities": tuple(i for i in role.identities if i.identity != identity)})
            for name, role in self.material.policy.roles.items()
        }
        self.material = replace(self.material, policy=self.material.policy.model_copy(update={"roles": roles}))

    @property
    def pointer(self) -> Path:
        return self.root / "registry" / "channels" / "default.json"

    def file(self, version: str, name: str = "index.safetensors") -> Path:
        return self.root / "registry" / "routers" / "default" / version / name


@pytest.fixture(scope="session")
def zone_trust(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrustMaterial, Callable[[str], Signer]]:
    authority = make_authority(tmp_path_factory.mktemp("authority") / "ca")
    return authority.material, authority.signer


@pytest.fixture
def zone(tmp_path: Path, zone_trust: tuple[TrustMaterial, Callable[[str], Signer]]) -> Zone:
    material, signer = zone_trust
    return Zone(tmp_path, material, signer("import-officer"))
