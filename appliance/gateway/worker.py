"""One gateway process: LiteLLM, the decider, the routers it serves, and what it tells of itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from appliance import __release__, __version__
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
from appliance.gateway.callback import RoutingCallback
from appliance.gateway.condense import out
from appliance.gateway.decider import Decider
from appliance.gateway.decision import MAX_REMEMBERED, DecisionLog
from appliance.gateway.live import LiveFollower
from appliance.gateway.live_config import Rows, Whole
from appliance.gateway.metrics import Metrics
from appliance.gateway.prepared import Prepared
from appliance.gateway.running import Running
from appliance.settings import Settings

log = logging.getLogger("appliance.worker")
# The encoder's threads and the event loop share one interpreter lock, which a score gives back half a dozen times on
# its way. A busy loop then holds it for a whole interval, by default five milliseconds, so that a score of three took
# thirty; below one millisecond the changes of threads cost more than they save.
SWITCH_INTERVAL_S = 0.001


class Worker:
    """Everything of one process, in the order it is built.

    Args:
        prepared: what all workers share.
        number: of this worker, from 0.
    """

    def __init__(self, prepared: Prepared, *, number: int = 0) -> None:
        self._files, self.number = prepared.settings, number
        self._prepared, self.locks = prepared, prepared.locks
        self.metrics = Metrics()
        self.decisions = DecisionLog(self.metrics.decided)
        self._started_at = utc_now()
        self._live: LiveFollower | None = None
        self._server: server.Server | None = None
        self._control = control.ControlServer(control.socket_of(self.run_dir, number), reports.verbs(self))

    @property
    def run_dir(self) -> Path:
        """Where sockets lie."""
        return self._files.state_dir / "run"

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return self._running.settings

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Where the routers serve from now."""
        return self._running.slots

    @property
    def decider(self) -> Decider:
        """Decides for every group."""
        return self._running.decider

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal ends it.

        Raises:
            GatewayError: GATEWAY_LITELLM, GATEWAY_ROUTER_REQUIRED.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        files, config = self._prepared.settings, self._prepared.config
        whole = Whole(files, config)
        if files.live is not None:
            whole = Rows(files, config).together(self._prepared.live)
        self._running = Running(whole, self.decisions)
        self._running.start_routers()
        inner = proxy.application()
        logs.adopt_libraries()
        self._keys = KeyRing(self._prepared.master_key, self.settings.access.keys)
        self._application = application = Application(
            inner,
            started=self._when_started,
            ready=self.ready,
            reports=reports.reports(self),
            metrics=self.metrics,
            keys=self._keys,
            access=self.settings.access,
        )
        self._server = server.Server(
            server.configuration(application, self.settings.listen, self.settings.drain),
            self.settings.drain,
            loop_factory=egress.guarded_loop(self.locks.guard),
            turns=self._prepared.turns,
            number=self.number,
        )
        try:
            self._server.run(sockets=[listener])
        except SystemExit:
            if isinstance(application.startup_error, ApplianceError):
                raise application.startup_error from None
            cause = (application.startup_failure or "LiteLLM did not start").strip().splitlines()[-1]
            raise GatewayError("GATEWAY_LITELLM", cause[:500]) from None
        finally:
            if self._live is not None:
                self._live.stop()
            self._running.stop()
            self._control.stop()

    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._server is not None and self._server.started and not self._server.draining

    def reload(self) -> None:
        """Look at every router's folder and at the certificate at once, even where the last state was refused."""
        if self._server is not None:
            try:
                server.renew_certificate(self._server.config, self._files.listen)
            except GatewayError as error:
                log.warning("certificate refused, the old one stays", extra={"code": error.code, "cause": error.cause})
        self._running.reload()

    def status(self) -> dict[str, Any]:
        """This process, as `appliance status` shows it."""
        scorer = self.decider.scorer
        return {
            "worker": self.number,
            "pid": os.getpid(),
            "version": __version__,
            "release": __release__,
            "litellm": proxy.version(),
            "started_at": self._started_at,
            "ready": self.ready(),
            "connections": len(self._server.server_state.connections) if self._server is not None else 0,
            "draining": bool(self._server and self._server.draining),
            "live": self._live.describe() if self._live is not None else None,
            "routers": self._running.describe_routers(),
            "groups": self._groups(),
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
        left_out = [
            ({"group": name, "deployment": each["id"]}, float(out(each) > 0))
            for name, group in self._groups().items()
            for each in group["deployments"]
        ]
        channels = {name: view.get("channel") or {} for name, view in self._running.describe_routers().items()}
        heard = [
            ({"worker": str(self.number), "router": name}, inf if (age := channel["contact_age_s"]) is None else age)
            for name, channel in channels.items()
            if "contact_age_s" in channel  # not before it was asked for the first time
        ]
        return self.metrics.sample(
            {
                "appliance_router_serving": serving,
                "appliance_registry_contact_age_seconds": heard,
                "appliance_deployment_out": left_out,
                "appliance_breaker_open": [({}, float(scorer.breaker.view().state != "closed"))],
                "appliance_egress_refused_total": [({}, float(self.locks.guard.refused))],
                "appliance_queue_waiting": [({}, float(scorer.pool.waiting))],
                **(self._live.gauges(self.number) if self._live is not None else {}),
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
                explain.explained(decision, self.slots, self.decider.scorer.cache) for decision in reversed(found)
            ],
        }

    def _groups(self) -> dict[str, Any]:
        groups = self._running.config.groups
        ids = [deployment.id for members in groups.values() for deployment in members]
        cooling = proxy.cooldowns(ids) if self.ready() else {}
        return {name: self._group_status(name, cooling) for name in groups}

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
                    "weight": self._running.config.weights[name].get(deployment.id, 1),
                    "cooldown": cooling.get(deployment.id),
                    "health": self.decider.health.describe(deployment.id),
                }
                for deployment in self._running.config.groups[name]
            ],
        }

    def _change(self, whole: Whole) -> None:
        """Take another configuration; on the event loop's thread."""
        self._running.change(whole)
        self._callback.groups = whole.config.groups
        self._keys.exchange(whole.settings.access.keys)
        self._application.access = whole.settings.access

    async def _when_started(self) -> None:
        logs.adopt_libraries()
        self._callback = RoutingCallback(self.decider, self._running.config.groups, proxy.model_list)
        proxy.attach(self._callback)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        await self._control.start()
        if self._files.live is not None:
            self._live = LiveFollower(
                self._files,
                self._prepared.config,
                self._prepared.live,
                guard=self.locks.guard,
                deployments=proxy.RunningDeployments(),
                change=self._change,
            )
            await self._live.start()
        lockdown.before_serving(self.settings, self.locks)
        log.info("serving", extra={"worker": self.number, "pid": os.getpid()})
