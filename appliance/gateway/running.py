"""What routes now: one configuration, its decider, its routers. Built once; `change` brings it to another in place."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from appliance.errors import GatewayError
from appliance.gateway.active import Slot
from appliance.gateway.assembly import build_decider, build_plans
from appliance.gateway.decision import DecisionLog
from appliance.gateway.live_config import Whole

if TYPE_CHECKING:
    from appliance.gateway.loading import Loader
    from appliance.gateway.watch import Watch


class Running:
    """The routing part of one process.

    Args:
        whole: the configuration to begin with.
        decisions: where records go.
    """

    def __init__(self, whole: Whole, decisions: DecisionLog) -> None:
        self.settings, self.config = whole.settings, whole.config
        self.slots = {name: Slot(name) for name in self.settings.routing.routers}
        self.watches: dict[str, Watch] = {}
        self.decider = build_decider(self.settings, self.config, self.slots, decisions)
        self._loader: Loader | None = None

    def start_routers(self) -> None:
        """Load every router, or its last known good, and keep it current.

        Raises:
            GatewayError: GATEWAY_ROUTER_REQUIRED.
        """
        for name, router in self.settings.routing.routers.items():
            self._watch(name).start()
            if router.required and self.slots[name].current is None:
                problem = self.slots[name].problem or {}
                raise GatewayError(
                    "GATEWAY_ROUTER_REQUIRED",
                    f"router {name}: {problem.get('code')}: {problem.get('cause')}",
                    remedy=problem.get("remedy"),
                    router=name,
                )

    def change(self, whole: Whole) -> None:
        """Route by another configuration from the next request on. Call on the event loop's thread.

        A router whose source changed goes on with what it has until the new source has brought something sound; a new
        router's group is routed by weights until then.
        """
        old, new = self.settings.routing.routers, whole.settings.routing.routers
        moved = [name for name, router in new.items() if old.get(name) != router]
        gone = [self.watches.pop(name) for name in old if name in self.watches and old[name] != new.get(name)]
        slots = {name: self.slots[name] for name in new if name not in moved}
        for name in moved:
            slots[name] = Slot(name, current=self.slots[name].current if name in self.slots else None)
        before, self.settings, self.config, self.slots = self.settings, whole.settings, whole.config, slots
        known = {
            name: plan
            for name, plan in self.decider.plans.items()
            if before.routing.groups.get(name) == whole.settings.routing.groups.get(name)
            and (plan.slot is None or slots.get(plan.slot.name) is plan.slot)
        }
        self.decider.configure(
            build_plans(whole.settings, whole.config, slots, known=known),
            whole.config.weights,
            deadline_s=whole.settings.routing.deadline_ms / 1000,
        )
        for watch in gone:
            watch.stop()
        if self._loader is not None:
            self._loader.exchange(whole.settings, whole.config.groups)
        for name, watch in self.watches.items():  # a router may know the deployments of now
            if (slots[name].problem or {}).get("code") == "GATEWAY_LABELS":
                watch.reload()
        for name in moved:  # fetching and loading takes its time
            threading.Thread(target=self._watch(name).start, name=f"start-{name}", daemon=True).start()

    def reload(self) -> None:
        """Look at every router's source at once."""
        for watch in self.watches.values():
            watch.reload()

    def stop(self) -> None:
        """End the threads."""
        for watch in self.watches.values():
            watch.stop()
        self.decider.scorer.pool.close()

    def describe_routers(self) -> dict[str, Any]:
        """For status."""
        return {
            name: {**slot.describe(), **(self.watches[name].describe() if name in self.watches else {})}
            for name, slot in self.slots.items()
        }

    def _watch(self, name: str) -> Watch:
        from appliance.gateway.loading import Loader
        from appliance.gateway.sources import open_watch

        self._loader = self._loader or Loader(self.settings, self.config.groups)
        watch = open_watch(self.settings, self.slots[name], self.settings.routing.routers[name], self._loader)
        self.watches[name] = watch
        return watch
