"""`appliance sync` between an S3 registry and a shared volume: repair, faults, kills (deployment A: deployments/)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.registry.homes import open_store
from appliance.registry.registry import Registry
from appliance.registry.settings import S3Settings
from appliance.registry.signed_config import Configs
from appliance.registry.trust_source import TrustSource
from tests.support.artifacts import router_files, signed
from tests.support.s3 import S3Server
from tests.support.servers import stop
from tests.support.trust import DevelopmentAuthority, make_authority

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
APPLIANCE = [sys.executable, "-m", "appliance.cli.main"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentAuthority:
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@dataclass
class Site:
    """A registry in S3, an officer with the command line, a volume."""

    root: Path
    authority: DevelopmentAuthority
    registry: Path

    def run(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """One `appliance` command with `--json`."""
        command = [*APPLIANCE, *(str(one) for one in arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout)

    @property
    def common(self) -> list[str | Path]:
        return ["--registry", self.registry, "--trust", self.root / "trust"]

    def release(self, version: str) -> None:
        """Sign, publish and promote a version; in this process, because a command starts slowly on a shared machine."""
        source = TrustSource(self.root / "trust")
        officer = self.authority.signer("import-officer")
        home = Registry(open_store(self.registry), material=source.material, clock=source.now)
        artifact = signed(router_files("default", version, payload=version.encode() * 1000), officer)
        home.publish(artifact, name="default", version=version)
        home.promote("default", version, officer)

    def configure(self, document: dict[str, Any], role: str = "import-officer") -> None:
        source = TrustSource(self.root / "trust")
        configs = Configs(open_store(self.registry), material=source.material, clock=source.now)
        configs.publish("gateway", document, self.authority.signer(role))

    def document(self, value: dict[str, Any]) -> Path:
        """A configuration's file."""
        path = self.root / "gateway.yaml"
        path.write_text(yaml.safe_dump(value))
        return path

    @property
    def sync_arguments(self) -> list[str | Path]:
        return ["sync", *self.common, "--to", self.root / "volume", "--cache", self.root / "sidecar-cache"]

    @contextmanager
    def sidecar(self) -> Iterator[subprocess.Popen[bytes]]:
        """`appliance sync`, watching."""
        command = [*APPLIANCE, *(str(one) for one in self.sync_arguments), "--interval", "0.3"]
        with open(self.root / "sync.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        try:
            yield process
        finally:
            stop(process)


@pytest.fixture
def site(
    tmp_path: Path, authority: DevelopmentAuthority, swift: S3Server, bucket_settings: Callable[..., S3Settings]
) -> Site:
    settings = bucket_settings(swift).model_dump(mode="json", exclude_none=True)
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump({"registry": settings}))
    (tmp_path / "volume").mkdir()
    authority.store(tmp_path / "trust")
    return Site(tmp_path, authority, tmp_path / "registry.yaml")


def test_one_pass_repairs_the_volume_and_a_dead_registry_leaves_it_alone(site: Site) -> None:
    site.release("1.0.0")
    assert len(site.run(*site.sync_arguments, "--once")["channels"][0]["written"]) == 5
    target = site.root / "volume" / "routers" / "default" / "1.0.0" / "index.safetensors"
    target.write_bytes(b"rotten")
    [report] = site.run(*site.sync_arguments, "--once")["channels"]
    assert report["written"] == ["routers/default/1.0.0/index.safetensors"]
    settings = yaml.safe_load(site.registry.read_text())
    settings["registry"]["endpoint"] = "127.0.0.1:1"
    site.registry.write_text(yaml.safe_dump(settings))
    target.unlink()
    [report] = site.run(*site.sync_arguments, "--once", code=1)["channels"]
    assert report["problem"]["code"] == "REGISTRY_UNREACHABLE"
    assert report["version"] == "1.0.0", "repaired from the sidecar's own cache"
    assert target.read_bytes() == b"1.0.0" * 1000
    told = json.loads((site.root / "volume" / "sync.json").read_text())["channels"]["default"]
    assert told["problem"] == "REGISTRY_UNREACHABLE"
    assert told["contact"], "when it last answered"


def test_a_sidecar_whose_registry_never_answered_says_so_in_the_volume_too(site: Site) -> None:
    settings = yaml.safe_load(site.registry.read_text())
    settings["registry"]["endpoint"] = "127.0.0.1:1"
    site.registry.write_text(yaml.safe_dump(settings))
    assert site.run(*site.sync_arguments, "--once", code=1)["error"]["code"] == "REGISTRY_UNREACHABLE"
    told = json.loads((site.root / "volume" / "sync.json").read_text())
    assert (told["problem"], told["channels"]) == ("REGISTRY_UNREACHABLE", {})


def test_a_volume_that_is_not_there_is_said(site: Site) -> None:
    site.release("1.0.0")
    (site.root / "volume").rmdir()
    assert site.run(*site.sync_arguments, "--once", code=1)["error"]["code"] == "REGISTRY_VOLUME"


def rate(value: int) -> dict[str, Any]:
    """A small live configuration."""
    return {"setting": [{"name": "routing.deadline_ms", "value": value}]}


def test_a_configuration_signed_by_the_wrong_role_or_older_is_not_brought(site: Site) -> None:
    (site.root / "gateway.yaml").write_text(yaml.safe_dump(rate(1)))
    arguments = [
        "config",
        "publish",
        "gateway",
        site.root / "gateway.yaml",
        *site.common,
        "--authority",
        site.authority.path,
    ]
    refused = site.run(*arguments, "--role", "producer", code=1)
    assert refused["error"]["code"] == "TRUST_ROLE"
    (site.root / "gateway.yaml").write_text("setting: [{name: shell, value: 1}]\n")
    assert site.run(*arguments, code=1)["error"]["code"] == "REGISTRY_ROW", "refused before it is signed"
    site.configure(rate(1))
    site.release("1.0.0")
    site.run(*site.sync_arguments, "--once")
    store = open_store(site.registry)
    old = store.get("config/gateway.json", max_bytes=10**6)
    site.configure(rate(2))
    site.run("config", "publish", "gateway", site.document(rate(3)), *site.common, "--authority", site.authority.path)
    site.run(*site.sync_arguments, "--once")
    assert old is not None
    store.put("config/gateway.json", old.data)
    reports = {one["channel"]: one for one in site.run(*site.sync_arguments, "--once", code=1)["channels"]}
    assert reports["config/gateway"]["problem"]["code"] == "REGISTRY_CHANNEL_ROLLBACK"
    assert yaml.safe_load((site.root / "volume" / "config" / "gateway.yaml").read_text()) == rate(3)


def test_a_sidecar_that_is_killed_leaves_whole_files(site: Site) -> None:
    site.release("1.0.0")
    for delay in (0.8, 1.6, 2.4):
        with site.sidecar() as process:
            time.sleep(delay)
            os.killpg(process.pid, 9)
    site.run(*site.sync_arguments, "--once")
    names = [path.name for path in (site.root / "volume").rglob("*") if path.is_file() and ".tmp" not in path.name]
    pointers_and_notes = {".registry.lock", "default.json", "sync.json"}
    router = {"artifact.sigstore.json", "index.safetensors", "model.json", "router.yaml"}
    assert sorted(names) == sorted(pointers_and_notes | router)
