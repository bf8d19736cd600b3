"""One gateway process: LiteLLM, the decider, the routers it serves, and what it tells of itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance import __version__, documents
from appliance.breaker import Breaker
from appliance.errors import ApplianceError, GatewayError
from appliance.files import translated, write_atomic
from appliance.gateway import control, litellm_config, logs, proxy, secrets, server
from appliance.gateway.active import Slot, utc_now
from appliance.gateway.access import KeyRing
from appliance.gateway.application import Application, Report
from appliance.gateway.decider import Decider, Plan
from appliance.gateway.decision import DecisionLog
from appliance.gateway.pool import Pool
from appliance.settings import Settings

log = logging.getLogger("appliance.worker")


class Worker:
    """Everything of one process, in the order it is built.

    Args:
        settings: validated.
        number: of this worker, from 0.
    """

    def __init__(self, settings: Settings, *, number: int = 0) -> None:
        self.settings, self.number = settings, number
        self._config = litellm_config.read(settings)
        self._master_key = secrets.read_master_key(settings.litellm.master_key_file)
        self._secrets = {name: secrets.read_secret(path) for name, path in settings.litellm.secrets.items()}
        self.slots = {name: Slot(name) for name in settings.routing.routers}
        self.decisions = DecisionLog()
        self._started_at = utc_now()
        self._watches: list[Any] = []
        self._server: server.Server | None = None
        self._control = control.ControlServer(
            self.run_dir / f"worker-{number}.sock",
            {"status": self._verb_status, "reload": self._verb_reload, "decisions": self._verb_decisions},
        )

    @property
    def run_dir(self) -> Path:
        """Where sockets lie."""
        return self.settings.state_dir / "run"

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal ends it.

        Raises:
            GatewayError: GATEWAY_LITELLM, GATEWAY_ROUTER_REQUIRED.
        """
        with translated(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        config_path = self.run_dir / f"litellm-{self.number}.yaml"
        write_atomic(config_path, documents.write_json(dict(self._config.document)), mode=0o600)  # JSON is YAML
        proxy.prepare_environment(
            os.environ, config_path=str(config_path), master_key=self._master_key, secrets=self._secrets
        )
        self.decider = self._build_decider()
        self._start_routers()
        inner = proxy.application()
        logs.adopt_libraries()
        application = Application(
            inner,
            started=self._when_started,
            ready=self.ready,
            reports=self._reports(),
            keys=KeyRing(self._master_key, self.settings.access.keys),
            max_body_bytes=self.settings.access.max_body_bytes,
        )
        self._server = server.Server(
            server.configuration(application, self.settings.listen, self.settings.drain), self.settings.drain
        )
        signal.signal(signal.SIGHUP, lambda *_: self.reload())
        try:
            self._server.run(sockets=[listener])
        except SystemExit:
            cause = (application.startup_failure or "LiteLLM did not start").strip().splitlines()[-1]
            raise GatewayError("GATEWAY_LITELLM", cause[:500]) from None
        finally:
            for watch in self._watches:
                watch.stop()
            self.decider.pool.close()
            self._control.stop()

    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._server is not None and self._server.started and not self._server.draining

    def reload(self) -> None:
        """Look at every router's folder at once, even where the last state was refused."""
        for watch in self._watches:
            watch.reload()

    def status(self) -> dict[str, Any]:
        """This process, as `appliance status` shows it."""
        pool, breaker = self.decider.pool, self.decider.breaker
        ids = [deployment.id for members in self._config.groups.values() for deployment in members]
        cooling = proxy.cooldowns(ids) if self.ready() else {}
        return {
            "worker": self.number,
            "pid": os.getpid(),
            "version": __version__,
            "litellm": proxy.version(),
            "started_at": self._started_at,
            "ready": self.ready(),
            "draining": bool(self._server and self._server.draining),
            "routers": {name: slot.describe() for name, slot in self.slots.items()},
            "groups": {name: self._group_status(name, cooling) for name in self._config.groups},
            "ml_path": {
                "breaker": asdict(breaker.view()),
                "queue_waiting": pool.waiting,
                "mean_service_ms": round(pool.mean_service_ms, 3),
                "cache_hits": self.decider.cache.hits,
                "cache_misses": self.decider.cache.misses,
            },
            "decisions": self.decisions.counts(),
        }

    def _group_status(self, name: str, cooling: Mapping[str, Any]) -> dict[str, Any]:
        plan = self.decider.plans.get(name)
        slot = plan.slot if plan else None
        return {
            "routing": "ml" if slot and slot.current else "weighted-round-robin",
            "router": slot.name if slot else None,
            "deployments": [
                {
                    "id": deployment.id,
                    "model": deployment.model,
                    "weight": self._config.weights[name].get(deployment.id, 1),
                    "cooldown": cooling.get(deployment.id),
                }
                for deployment in self._config.groups[name]
            ],
        }

    def _build_decider(self) -> Decider:
        from appliance.routers.round_robin import SmoothWeightedRoundRobin

        routing = self.settings.routing
        plans = {
            name: Plan(self.slots[group.router] if group.router is not None else None)
            for name, group in routing.groups.items()
        }
        return Decider(
            plans=plans,
            round_robin=SmoothWeightedRoundRobin(self._config.weights),
            weights=self._config.weights,
            pool=Pool(threads=routing.threads, queue_length=routing.queue, name="encoder"),
            breaker=Breaker(
                failures=routing.breaker.failures, open_s=routing.breaker.open_s, probes=routing.breaker.probes
            ),
            deadline_s=routing.deadline_ms / 1000,
            cache_entries=routing.cache_entries,
            decisions=self.decisions,
        )

    def _start_routers(self) -> None:
        if not self.slots:
            return
        from appliance.gateway.loading import LastGood, Loader
        from appliance.gateway.watch import RouterWatch

        loader = Loader(self.settings)
        for name, router in self.settings.routing.routers.items():
            last_good = LastGood(self.settings.state_dir / "routers" / name)
            watch = RouterWatch(self.slots[name], router, loader, last_good)
            watch.start()
            self._watches.append(watch)
            if router.required and self.slots[name].current is None:
                problem = self.slots[name].problem or {}
                raise GatewayError(
                    "GATEWAY_ROUTER_REQUIRED",
                    f"router {name}: {problem.get('code')}: {problem.get('cause')}",
                    remedy=problem.get("remedy"),
                    router=name,
                )

    async def _when_started(self) -> None:
        logs.adopt_libraries()
        proxy.attach(self.decider, self._config.groups)
        await self._control.start()
        log.info("serving", extra={"worker": self.number, "pid": os.getpid()})

    def _reports(self) -> dict[str, Report]:
        return {
            "/appliance/live": Report(self._report_live, open=True),
            "/appliance/ready": Report(self._report_ready, open=True),
            "/appliance/status": Report(self._report_status),
            "/appliance/decisions": Report(self._report_decisions),
            "/appliance/reload": Report(self._report_reload, method="POST"),
        }

    async def _verb_status(self, _: Mapping[str, Any]) -> Any:
        return self.status()

    async def _verb_reload(self, _: Mapping[str, Any]) -> Any:
        self.reload()
        return {"worker": self.number, "reloading": sorted(self.slots)}

    async def _verb_decisions(self, request: Mapping[str, Any]) -> Any:
        return [decision.as_dict() for decision in self.decisions.recent(int(request.get("limit", 100)))]

    async def _report_live(self, _: Mapping[str, list[str]]) -> tuple[int, Any]:
        return 200, {"status": "live"}

    async def _report_ready(self, _: Mapping[str, list[str]]) -> tuple[int, Any]:
        ready = self.ready()
        return (200 if ready else 503), {"status": "ready" if ready else "draining"}

    async def _report_status(self, _: Mapping[str, list[str]]) -> tuple[int, Any]:
        return 200, {"at": utc_now(), "workers": await asyncio.to_thread(control.ask_all, self.run_dir, "status")}

    async def _report_decisions(self, query: Mapping[str, list[str]]) -> tuple[int, Any]:
        limit = query.get("limit", ["100"])[-1]
        if not limit.isdecimal() or not 0 < int(limit) <= 1000:
            return 400, {"error": {"message": "limit is a number from 1 to 1000", "code": "limit"}}
        answers = await asyncio.to_thread(control.ask_all, self.run_dir, "decisions", limit=int(limit))
        merged = sorted((d for answer in answers for d in answer), key=lambda d: str(d["at"]), reverse=True)
        return 200, {"decisions": merged[: int(limit)]}

    async def _report_reload(self, _: Mapping[str, list[str]]) -> tuple[int, Any]:
        return 202, {"workers": await asyncio.to_thread(control.ask_all, self.run_dir, "reload")}


def boot(settings: Settings) -> None:
    """Check, bind, and serve in this process until stopped.

    Raises:
        ApplianceError: what stands in the way, with its code.
    """
    started = time.monotonic()
    worker = Worker(settings)
    server.check_tls(settings.listen)
    listener = server.listen(settings.listen)
    log.info("configuration accepted", extra={"after_s": round(time.monotonic() - started, 3)})
    try:
        worker.run(listener)
    except ApplianceError:
        raise
    finally:
        listener.close()
