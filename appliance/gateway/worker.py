"""One gateway process: LiteLLM, the decider, the routers it serves, and what it tells of itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance import __version__, documents
from appliance.breaker import Breaker
from appliance.errors import ApplianceError, FileError, GatewayError
from appliance.files import locked, translated, write_atomic
from appliance.gateway import (
    control,
    egress,
    explain,
    litellm_config,
    lockdown,
    logs,
    metrics,
    proxy,
    reports,
    secrets,
    server,
)
from appliance.gateway.access import KeyRing
from appliance.gateway.active import Slot, utc_now
from appliance.gateway.application import Application
from appliance.gateway.callback import RoutingCallback
from appliance.gateway.decider import Decider, Plan
from appliance.gateway.decision import MAX_REMEMBERED, DecisionLog
from appliance.gateway.health import UpstreamHealth
from appliance.gateway.metrics import Metrics
from appliance.gateway.pool import Pool
from appliance.gateway.rollout import Rollout
from appliance.gateway.scoring import ScoreCache, Scorer
from appliance.gateway.supervisor import Supervisor
from appliance.settings import Group, Settings

log = logging.getLogger("appliance.worker")
ROUND_ROBIN = Group(strategy="round-robin")  # of a group that the configuration does not name


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
        self.metrics = Metrics()
        self.decisions = DecisionLog(self.metrics.decided)
        self._started_at = utc_now()
        self._watches: list[Any] = []
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
        with translated(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        config_path = self.run_dir / f"litellm-{self.number}.yaml"
        write_atomic(config_path, documents.write_json(dict(self._config.document)), mode=0o600)  # JSON is YAML
        proxy.prepare_environment(
            os.environ, config_path=str(config_path), master_key=self._master_key, secrets=self._secrets
        )
        self.locks = lockdown.before_import(self.settings, self._config)
        self.decider = self._build_decider()
        self._start_routers()
        inner = proxy.application()
        logs.adopt_libraries()
        application = Application(
            inner,
            started=self._when_started,
            ready=self.ready,
            reports=reports.reports(self),
            metrics=self.metrics,
            keys=KeyRing(self._master_key, self.settings.access.keys),
            max_body_bytes=self.settings.access.max_body_bytes,
        )
        self._server = server.Server(
            server.configuration(application, self.settings.listen, self.settings.drain),
            self.settings.drain,
            loop_factory=egress.guarded_loop(self.locks.guard),
        )
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the loop takes it; the default would kill
        try:
            self._server.run(sockets=[listener])
        except SystemExit:
            cause = (application.startup_failure or "LiteLLM did not start").strip().splitlines()[-1]
            raise GatewayError("GATEWAY_LITELLM", cause[:500]) from None
        finally:
            for watch in self._watches:
                watch.stop()
            self.decider.scorer.pool.close()
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
            "routers": {name: slot.describe() for name, slot in self.slots.items()},
            "groups": {name: self._group_status(name, cooling) for name in self._config.groups},
            "ml_path": {
                "breaker": asdict(scorer.breaker.view()),
                "queue_waiting": scorer.pool.waiting,
                "mean_service_ms": round(scorer.pool.mean_service_ms, 3),
                "cache_hits": scorer.cache.hits,
                "cache_misses": scorer.cache.misses,
            },
            "decisions": self.decisions.counts(),
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

    def _build_decider(self) -> Decider:
        from appliance.routers.round_robin import SmoothWeightedRoundRobin

        routing = self.settings.routing
        return Decider(
            plans={name: self._plan(name, routing.groups.get(name, ROUND_ROBIN)) for name in self._config.groups},
            round_robin=SmoothWeightedRoundRobin(self._config.weights),
            scorer=Scorer(
                pool=Pool(threads=routing.threads, queue_length=routing.queue, name="encoder"),
                breaker=Breaker(
                    failures=routing.breaker.failures, open_s=routing.breaker.open_s, probes=routing.breaker.probes
                ),
                cache=ScoreCache(routing.cache_entries),
            ),
            health=UpstreamHealth(
                failures=routing.upstreams.failures, open_s=routing.upstreams.open_s, probes=routing.upstreams.probes
            ),
            deadline_s=routing.deadline_ms / 1000,
            decisions=self.decisions,
        )

    def _plan(self, name: str, group: Group) -> Plan:
        return Plan(
            slot=self.slots[group.router] if group.router is not None else None,
            rollout=Rollout(group.candidate, self.slots[group.candidate.router]) if group.candidate else None,
            weights=self._config.weights[name],
            costs=group.costs,
            cost_weight=group.cost_weight,
            last_resort=group.last_resort,
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
        proxy.attach(RoutingCallback(self.decider, self._config.groups, proxy.model_list))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        await self._control.start()
        lockdown.before_serving(self.settings, self.locks)
        log.info("serving", extra={"worker": self.number, "pid": os.getpid()})


def boot(settings: Settings) -> int:
    """Check, bind, and serve until stopped. Returns the exit status.

    Raises:
        ApplianceError: what stands in the way, with its code.
    """
    Worker(settings)  # refuses a configuration before anything is bound or forked
    server.check_tls(settings.listen)
    run_dir = settings.state_dir / "run"
    with translated(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(run_dir / "lock", wait=False))
        except FileError as error:
            if error.code != "FILE_LOCKED":
                raise
            raise GatewayError(
                "GATEWAY_ALREADY_RUNNING", "the state directory is in use", run_dir=str(run_dir)
            ) from None
        listener = held.enter_context(server.listen(settings.listen))
        for stale in run_dir.glob("worker-*.sock"):
            stale.unlink(missing_ok=True)
        if settings.listen.workers == 1:
            Worker(settings).run(listener)
            return 0
        return Supervisor(
            settings.listen.workers, lambda number, sock: Worker(settings, number=number).run(sock), _say
        ).run(listener)


def _say(error: ApplianceError) -> None:
    log.error(
        "refused", extra={"code": error.code, "cause": error.cause, "evidence": error.evidence, "next": error.remedy}
    )
