"""One gateway process: LiteLLM, the decider, the routers it serves, and what it tells of itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance import __version__
from appliance.errors import ApplianceError, GatewayError
from appliance.gateway import (
    control,
    egress,
    explain,
    lockdown,
    logs,
    metrics,
    proxy,
    reports,
    server,
)
from appliance.gateway.access import KeyRing
from appliance.gateway.active import Slot, utc_now
from appliance.gateway.application import Application
from appliance.gateway.assembly import build_decider
from appliance.gateway.boot import Prepared
from appliance.gateway.callback import RoutingCallback
from appliance.gateway.decision import MAX_REMEMBERED, DecisionLog
from appliance.gateway.metrics import Metrics

log = logging.getLogger("appliance.worker")


class Worker:
    """Everything of one process, in the order it is built.

    Args:
        prepared: what all workers share.
        number: of this worker, from 0.
    """

    def __init__(self, prepared: Prepared, *, number: int = 0) -> None:
        self.settings, self.number = prepared.settings, number
        self._prepared = prepared
        self._config, self.locks = prepared.config, prepared.locks
        self.slots = {name: Slot(name) for name in self.settings.routing.routers}
        self.metrics = Metrics()
        self.decisions = DecisionLog(self.metrics.decided)
        self._started_at = utc_now()
        self._watches: dict[str, Any] = {}
        self._server: server.Server | None = None
        self._control = control.ControlServer(self.run_dir / f"worker-{number}.sock", reports.verbs(self))

    @property
    def run_dir(self) -> Path:
        """Where sockets lie."""
        return self.settings.state_dir / "run"

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal ends it.

        Raises:
            GatewayError: GATEWAY_LITELLM, GATEWAY_ROUTER_REQUIRED.
        """
        self.decider = build_decider(self.settings, self._config, self.slots, self.decisions)
        self._start_routers()
        inner = proxy.application()
        logs.adopt_libraries()
        application = Application(
            inner,
            started=self._when_started,
            ready=self.ready,
            reports=reports.reports(self),
            metrics=self.metrics,
            keys=KeyRing(self._prepared.master_key, self.settings.access.keys),
            max_body_bytes=self.settings.access.max_body_bytes,
        )
        self._server = server.Server(
            server.configuration(application, self.settings.listen, self.settings.drain),
            self.settings.drain,
            loop_factory=egress.guarded_loop(self.locks.guard),
        )
        try:
            self._server.run(sockets=[listener])
        except SystemExit:
            if isinstance(application.startup_error, ApplianceError):
                raise application.startup_error from None
            cause = (application.startup_failure or "LiteLLM did not start").strip().splitlines()[-1]
            raise GatewayError("GATEWAY_LITELLM", cause[:500]) from None
        finally:
            for watch in self._watches.values():
                watch.stop()
            self.decider.scorer.pool.close()
            self._control.stop()

    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._server is not None and self._server.started and not self._server.draining

    def reload(self) -> None:
        """Look at every router's folder and at the certificate at once, even where the last state was refused."""
        if self._server is not None:
            try:
                server.renew_certificate(self._server.config, self.settings.listen)
            except GatewayError as error:
                log.warning("certificate refused, the old one stays", extra={"code": error.code, "cause": error.cause})
        for watch in self._watches.values():
            watch.reload()

    def status(self) -> dict[str, Any]:
        """This process, as `appliance status` shows it."""
        scorer = self.decider.scorer
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
            "routers": {
                name: {**slot.describe(), **self._watches[name].describe()} for name, slot in self.slots.items()
            },
            "groups": {name: self._group_status(name, cooling) for name in self._config.groups},
            "ml_path": {
                "breaker": asdict(scorer.breaker.view()),
                "queue_waiting": scorer.pool.waiting,
                "mean_service_ms": round(scorer.pool.mean_service_ms, 3),
                "cache_hits": scorer.cache.hits,
                "cache_misses": scorer.cache.misses,
            },
            "decisions": self.decisions.counts(),
            "egress": self.locks.guard.describe(),
            "lockdown": self.locks.describe(),
        }

    def sample(self) -> metrics.Sample:
        """This process's numbers for Prometheus."""
        scorer = self.decider.scorer
        serving = [
            (
                {"router": name, "digest": slot.current.digest[:12] if slot.current else ""},
                float(slot.current is not None),
            )
            for name, slot in self.slots.items()
        ]
        return self.metrics.sample(
            {
                "appliance_router_serving": serving,
                "appliance_breaker_open": [({}, float(scorer.breaker.view().state != "closed"))],
                "appliance_egress_refused_total": [({}, float(self.locks.guard.refused))],
                "appliance_queue_waiting": [({}, float(scorer.pool.waiting))],
            }
        )

    def why(self, request_id: str) -> dict[str, Any] | None:
        """The decisions of a request with the nearest neighbours; None where this process did not decide it."""
        found = [decision for decision in self.decisions.recent(MAX_REMEMBERED) if decision.concerns(request_id)]
        if not found:
            return None
        return {
            "request_id": found[0].request_id,
            "decisions": [
                {
                    **decision.as_dict(),
                    "neighbours": explain.neighbours(decision, self.slots, self.decider.scorer.cache),
                }
                for decision in reversed(found)
            ],
        }

    def _group_status(self, name: str, cooling: Mapping[str, Any]) -> dict[str, Any]:
        plan = self.decider.plans.get(name)
        slot = plan.slot if plan else None
        return {
            "routing": "ml" if slot and slot.current else "weighted-round-robin",
            "router": slot.name if slot else None,
            "candidate": plan.rollout.describe() if plan and plan.rollout else None,
            "last_resort": plan.last_resort if plan else None,
            "deployments": [
                {
                    "id": deployment.id,
                    "model": deployment.model,
                    "weight": self._config.weights[name].get(deployment.id, 1),
                    "cooldown": cooling.get(deployment.id),
                    "health": self.decider.health.describe(deployment.id),
                }
                for deployment in self._config.groups[name]
            ],
        }

    def _start_routers(self) -> None:
        if not self.slots:
            return
        from appliance.gateway.loading import Loader
        from appliance.gateway.sources import open_watch

        loader = Loader(self.settings)
        for name, router in self.settings.routing.routers.items():
            watch = open_watch(self.settings, self.slots[name], router, loader)
            watch.start()
            self._watches[name] = watch
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
        proxy.attach(RoutingCallback(self.decider, self._config.groups, proxy.model_list))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        await self._control.start()
        lockdown.before_serving(self.settings, self.locks)
        log.info("serving", extra={"worker": self.number, "pid": os.getpid()})
