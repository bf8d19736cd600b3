"""What an endurance run is made of, and each thing that is done to it."""

from __future__ import annotations

import collections
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from appliance import documents, settings
from appliance.errors import ApplianceError, OperationError
from appliance.operations import status
from appliance.operations.acceptance.bench import master_key
from appliance.operations.acceptance.manager import Manager
from appliance.operations.acceptance.moody_registry import BUCKET, Mood, MoodyRegistry
from appliance.operations.acceptance.traffic import GROUP, Traffic
from appliance.operations.acceptance.upstream import StandIn
from appliance.operations.acceptance.zone import CHANNEL, Zone

BOOT_LIMIT_S = 400.0
SETTLE_S = 60.0  # so long may a change take to arrive
_END = "-----END CERTIFICATE-----\n"


class Scene:
    """The run: what it is made of, and each thing that is done to it."""

    def __init__(self, directory: Path, zone: Zone, manager: Manager, upstreams: dict[str, StandIn]) -> None:
        self._directory, self._zone, self._manager, self._upstreams = directory, zone, manager, upstreams
        self._trusted = directory / "clients-trust.pem"
        self.done: collections.Counter[str] = collections.Counter()
        self.missed: list[str] = []

    def prepare(self, installed: settings.Settings, rate_per_s: float) -> Traffic:
        """Write the configuration, start everything, wait until it serves by its model."""
        self._certificate()
        registry_tls = self._directory / "registry-tls"
        ca = self._zone.issue(registry_tls, "registry")
        self._trusted.write_bytes(ca)
        self._registry = MoodyRegistry(
            self._zone.registry, registry_tls / "registry.pem", registry_tls / "registry.key"
        )
        self._registry.become("well")
        key = master_key(self._directory)
        self._config = self._write(installed, registry_tls / "ca.pem")
        self._settings = settings.load(self._config)
        self._manager.start(self._config)
        self._ready()
        return Traffic(self._manager.port, key, self._trusted, rate_per_s)

    @property
    def pid(self) -> int:
        """Of the gateway that serves now."""
        return self._manager.pid

    @property
    def served(self) -> list[str | None]:
        """The releases that served, one after the other."""
        return self._manager.served

    @property
    def ended(self) -> str | None:
        """How the gateway ended that serves now; None while it runs."""
        return self._manager.ended()

    def close(self) -> None:
        """Stop everything."""
        self._manager.close()
        self._registry.become("gone")

    def disturbances(self) -> list[Callable[[], None]]:
        """What is done over and over; one model server lives at any time."""
        return [
            self._promote, self._a_dies, self._registry_gone, self._a_returns, self._reload, self._registry_silent,
            self._b_dies, self._registry_busy, self._b_returns, self._registry_lies, self._registry_cut,
            self._registry_well, self._renew_certificate,
        ]  # fmt: skip

    def upgrade(self, media: Path | None) -> None:
        """To the release on the media; without any to the newest that is installed."""
        before = self._manager.releases
        if media is not None:
            self._manager.install(media)
        elif len(before) > 1:
            self._manager.rollback(before[-1])
        self._restart()
        self._note("upgrade" if media is not None or len(before) > 1 else "restart of the only release")

    def rollback(self) -> None:
        """To the release before."""
        several = len(self._manager.releases) > 1
        if several:
            self._manager.rollback()
        self._restart()
        self._note("roll-back" if several else "restart of the only release")

    def rotate_ca(self) -> None:
        """Overlap: another CA issues, clients trust both, the gateway changes over."""
        self._zone.rotate_tls_authority()
        both = self._trusted.read_bytes() + self._zone.issue(self._directory / "probe", "probe")
        self._trusted.with_suffix(".new").write_bytes(both)
        self._trusted.with_suffix(".new").rename(self._trusted)
        self._renew_certificate()
        self._note("CA of the certificates rotated")

    def recover(self) -> None:
        """Everything well again, and the newest router served."""
        for each in self._upstreams.values():
            each.start()
        self._registry_well()

    def _restart(self) -> None:
        self._manager.stop()
        self._manager.start(self._config)
        self._ready()

    def _ready(self) -> None:
        def by_model() -> bool:
            if (ended := self.ended) is not None:
                raise OperationError("OPERATION_ACCEPTANCE_SETUP", ended)
            return self._serving() is not None

        if not _until(by_model, BOOT_LIMIT_S):
            raise OperationError("OPERATION_ACCEPTANCE_SETUP", f"the gateway was not ready in {BOOT_LIMIT_S:.0f} s")

    def _serving(self) -> str | None:
        """Digest of the router that every worker serves; None where there is none."""
        try:
            view = status.collect(self._settings)
        except ApplianceError:
            return None
        router = view["routers"]["acceptance"]
        sound = view["ready"] and router["mode"] == "ml" and router["converged"]
        return router["digests"][0] if sound else None

    def _note(self, what: str, arrived: bool = True) -> None:
        self.done[what] += 1
        if not arrived:
            self.missed.append(what)

    def _promote(self) -> None:
        digest = self._zone.promote()
        self._note("router promoted", _until(lambda: self._serving() == digest, SETTLE_S))

    def _registry_well(self) -> None:
        self._registry.become("well")
        digest = self._zone.promote()
        self._note("registry well again", _until(lambda: self._serving() == digest, SETTLE_S))

    def _registry_gone(self) -> None:
        self._registry_becomes("gone")

    def _registry_silent(self) -> None:
        self._registry_becomes("silent")

    def _registry_busy(self) -> None:
        self._registry_becomes("busy")

    def _registry_cut(self) -> None:
        self._registry_becomes("cut")

    def _registry_lies(self) -> None:
        self._registry_becomes("lying")

    def _registry_becomes(self, mood: Mood) -> None:
        """A bad mood, which the gateway must notice and say; what it serves goes on."""
        self._registry.become("well")
        self._zone.promote()  # news, so that a body is read
        self._registry.become(mood)
        self._note(f"registry {mood}", _until(self._registry_problem, SETTLE_S))

    def _registry_problem(self) -> bool:
        try:
            worker = status.collect(self._settings)["workers"][0]
        except ApplianceError:
            return False
        return worker["routers"]["acceptance"]["channel"]["problem"] is not None

    def _a_dies(self) -> None:
        self._model_server(0).stop()
        self._note("model server died")

    def _a_returns(self) -> None:
        self._model_server(0).start()
        self._note("model server back")

    def _b_dies(self) -> None:
        self._model_server(-1).stop()
        self._note("model server died")

    def _b_returns(self) -> None:
        self._model_server(-1).start()
        self._note("model server back")

    def _model_server(self, number: int) -> StandIn:
        return list(self._upstreams.values())[number]

    def _reload(self) -> None:
        self._manager.reload()
        self._note("reload")

    def _renew_certificate(self) -> None:
        wanted = ssl.PEM_cert_to_DER_cert(self._certificate().split("-----END CERTIFICATE-----")[0] + _END)
        self._manager.reload()

        def shown() -> bool:
            try:
                found = ssl.get_server_certificate(("127.0.0.1", self._manager.port), timeout=10)
            except OSError:
                return False
            return ssl.PEM_cert_to_DER_cert(found) == wanted

        self._note("certificate rotated", _until(shown, SETTLE_S))

    def _certificate(self) -> str:
        """Issue one into a folder of its own, then move the link: as `scripts/rotate-tls` does."""
        link, fresh = self._directory / "tls", self._directory / f"tls-{time.monotonic_ns()}"
        old = link.resolve() if link.is_symlink() else None
        self._zone.issue(fresh, "gateway")
        link.with_suffix(".new").symlink_to(fresh.name)
        link.with_suffix(".new").rename(link)
        if old is not None:
            shutil.rmtree(old)
        return (fresh / "gateway.pem").read_text()

    def _write(self, installed: settings.Settings, registry_ca: Path) -> Path:
        credentials = self._directory / "credentials.yaml"
        credentials.touch(0o600)
        credentials.write_text("access_key: acceptance\nsecret_key: acceptance\n")
        registry = {
            "home": "s3", "endpoint": f"127.0.0.1:{self._registry.port}", "bucket": BUCKET,
            "ca_file": str(registry_ca), "credentials_file": str(credentials), "connect_timeout_s": 1,
            "read_timeout_s": 1, "deadline_s": 3, "attempts": 1, "breaker_pause_s": 1,
        }  # fmt: skip
        document = {
            "schema_version": 1,
            "state_dir": "state",
            "listen": {
                "host": "127.0.0.1", "port": self._manager.port,
                "tls": {"certificate": "tls/gateway.pem", "key": "tls/gateway.key"},
            },
            "litellm": {
                "inline": {
                    "model_list": [each.as_deployment(GROUP) for each in self._upstreams.values()],
                    "router_settings": {"num_retries": 3, "allowed_fails": 1, "cooldown_time": 2},
                },
                "master_key_file": "master.key",
            },
            "trust": {"store": str(self._zone.directory / "trust")},
            "routing": {
                "deadline_ms": installed.routing.deadline_ms,
                "cache_entries": 256,  # full within minutes: what grows after that is no cache
                "encoders": [str(path) for path in self._zone.encoders],
                "routers": {"acceptance": {"registry": registry, "channel": CHANNEL, "poll_interval_s": 0.5}},
                "groups": {GROUP: {"strategy": "ml", "router": "acceptance"}},
            },
            "drain": {"readiness_s": 1, "streams_s": 30},
        }  # fmt: skip
        config = self._directory / "appliance.yaml"
        config.write_bytes(documents.write_json(document))  # JSON is YAML
        return config


def _until(condition: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False
