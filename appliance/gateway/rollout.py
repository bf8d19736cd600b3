"""A new router tries itself: in shadow, then for a sticky share of traffic, then for all; or it is sent back.

In shadow it scores what the serving router has decided, beside the request; only its agreement and its failures are
kept. As a canary it decides for a share of the users, always the same ones. Any bound broken sends it back at once.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any, Literal

from appliance.gateway.active import Slot
from appliance.settings import Candidate

Stage = Literal["shadow", "canary", "full", "returned"]


@dataclass
class _Count:
    seen: int = 0
    failed: int = 0
    agreed: int = 0
    compared: int = 0


class Rollout:
    """The stage of one candidate in one group.

    Args:
        settings: bounds and lengths of the stages.
        slot: where the candidate serves from.
    """

    def __init__(self, settings: Candidate, slot: Slot) -> None:
        self.slot, self._settings = slot, settings
        self._lock = threading.Lock()
        self._digest: str | None = None
        self._stage: Stage = "shadow"
        self._count = _Count()
        self._reason: str | None = None

    @property
    def stage(self) -> Stage:
        """Where the candidate stands; a new version of it begins again in shadow."""
        serving = self.slot.current
        if serving is not None and serving.digest != self._digest:
            with self._lock:
                self._digest, self._stage, self._count, self._reason = serving.digest, "shadow", _Count(), None
        return self._stage

    def decides(self, sticky: str) -> bool:
        """Whether the candidate decides a request; `sticky` falls on the same side every time."""
        stage = self.stage
        if self.slot.current is None or stage in {"shadow", "returned"}:
            return False
        return stage == "full" or share_of(sticky) < self._settings.share

    def observes(self) -> bool:
        """Whether the candidate wants to see what others decide."""
        return self.stage == "shadow" and self.slot.current is not None

    def report(self, *, ok: bool, agreed: bool | None = None) -> None:
        """How the candidate did on one request.

        Args:
            ok: it scored in time.
            agreed: it would have chosen what was chosen; None where that was not compared.
        """
        with self._lock:
            if self._stage == "returned":
                return
            count = self._count
            count.seen += 1
            count.failed += not ok
            if agreed is not None:
                count.compared += 1
                count.agreed += agreed
            self._judge(count)

    def describe(self) -> dict[str, Any]:
        """For status."""
        stage = self.stage
        with self._lock:
            return {
                "router": self.slot.name,
                "stage": stage,
                "share": {"shadow": 0.0, "canary": self._settings.share, "full": 1.0, "returned": 0.0}[stage],
                "decisions": self._count.seen,
                "failures": self._count.failed,
                "agreement": round(self._count.agreed / self._count.compared, 4) if self._count.compared else None,
                "reason": self._reason,
            }

    def _judge(self, count: _Count) -> None:
        bounds = self._settings
        if count.failed > bounds.max_failure_share * max(count.seen, bounds.min_decisions):
            self._return(f"{count.failed} of {count.seen} decisions failed")
        elif count.compared >= bounds.min_decisions and count.agreed < bounds.min_agreement * count.compared:
            self._return(f"agreement {count.agreed / count.compared:.2f} is below {bounds.min_agreement}")
        elif self._stage == "shadow" and count.seen >= bounds.shadow_decisions and bounds.share > 0:
            self._stage, self._count = "canary", _Count()
        elif self._stage == "canary" and bounds.canary_decisions and count.seen >= bounds.canary_decisions:
            self._stage, self._count = "full", _Count()

    def _return(self, reason: str) -> None:
        self._stage, self._reason = "returned", reason


def share_of(sticky: str) -> float:
    """A number from 0 to 1 that belongs to a text for ever."""
    return int.from_bytes(hashlib.sha256(sticky.encode()).digest()[:8], "big") / 2**64
