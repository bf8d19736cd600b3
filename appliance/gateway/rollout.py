"""A new router tries itself: in shadow, then for a sticky share of traffic, then for all; or it is sent back.

In shadow it scores what the serving router has decided, beside the request; only its agreement, its failures and its
lateness are kept. As a canary it decides for a share of the users, always the same ones, and sees what is decided for
the others. Any bound broken sends it back at once. Bounds are judged on what it did lately: a router that was good for
a month and turns bad goes back as quickly as one that was never good.

The workers of a host keep one count and one stage (`shared.Record`), so that a bound is broken for all of them at once,
and a candidate that was sent back stays so after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from appliance.gateway.active import Slot
from appliance.gateway.shared import Record
from appliance.settings import Candidate

Stage = Literal["shadow", "canary", "full", "returned"]
LATELY = 10  # times `min_decisions`: what bounds are judged on, at least, once so many were seen


@dataclass
class _State:
    """Where a candidate stands, as the workers share it; a new version of it begins again in shadow.

    Attributes:
        digest: of the version.
        stage: where it stands.
        reason: why it was sent back.
        decisions: watched in shadow, made in the later stages.
        seen, failed: requests that it scored lately, and those of them that it failed or was late for.
        compared, agreed: lately, those that were compared, and on which it would have chosen alike.
    """

    digest: str = ""
    stage: Stage = "shadow"
    reason: str | None = None
    decisions: int = 0
    seen: int = 0
    failed: int = 0
    agreed: int = 0
    compared: int = 0

    def enter(self, stage: Stage, reason: str | None = None) -> None:
        """Change the stage; a new one counts from zero, a return keeps what it was decided on."""
        self.stage, self.reason = stage, reason
        if stage != "returned":
            self.decisions = self.seen = self.failed = self.agreed = self.compared = 0

    def forget(self) -> None:
        """Let what was seen count half."""
        self.seen, self.failed, self.agreed, self.compared = (
            n // 2 for n in (self.seen, self.failed, self.agreed, self.compared)
        )


_TYPES = {"digest": str, "stage": str, "reason": str | None}


class Rollout:
    """The stage of one candidate in one group.

    Args:
        settings: bounds and lengths of the stages.
        slot: where the candidate serves from.
        record: what the workers share.
    """

    def __init__(self, settings: Candidate, slot: Slot, record: Record | None = None) -> None:
        self.slot, self._settings, self._record = slot, settings, record or Record()

    @property
    def stage(self) -> Stage:
        """Where the candidate stands."""
        with self._state() as state:
            return state.stage

    @contextmanager
    def _state(self) -> Iterator[_State]:
        serving = self.slot.current
        with self._record.change() as kept:
            state = _State(**_sound(kept))
            if serving is not None and serving.digest != state.digest:
                state = _State(digest=serving.digest)
            yield state
            kept.clear()
            kept.update(asdict(state))

    def decides(self, sticky: str) -> bool:
        """Whether the candidate decides a request; `sticky` falls on the same side every time."""
        stage = self.stage
        if self.slot.current is None or stage in {"shadow", "returned"}:
            return False
        return stage == "full" or share_of(sticky) < self._settings.share

    def observes(self) -> bool:
        """Whether the candidate wants to see what the serving router decides."""
        return self.slot.current is not None and self.stage in {"shadow", "canary"}

    def decided(self, *, ok: bool) -> None:
        """The candidate was asked to decide a request; `ok` says whether it did so in time."""
        self._count(ok=ok, agreed=None)

    def observed(self, *, ok: bool, agreed: bool | None = None) -> None:
        """The candidate looked at a request that the serving router decided.

        Args:
            ok: it would have been in time.
            agreed: it would have chosen what was chosen; None where it did not score.
        """
        self._count(ok=ok, agreed=agreed, aside=True)

    def _count(self, *, ok: bool, agreed: bool | None, aside: bool = False) -> None:
        with self._state() as state:
            if state.stage == "returned":
                return
            state.decisions += not aside or state.stage == "shadow"
            state.seen += 1
            state.failed += not ok
            if agreed is not None:
                state.compared += 1
                state.agreed += agreed
            self._judge(state)
            if state.seen >= 2 * LATELY * self._settings.min_decisions:
                state.forget()

    def describe(self) -> dict[str, Any]:
        """For status."""
        with self._state() as state:
            share = {"shadow": 0.0, "canary": self._settings.share, "full": 1.0, "returned": 0.0}[state.stage]
            return {
                "router": self.slot.name,
                "stage": state.stage,
                "share": share,
                "decisions": state.decisions,
                "failures": state.failed,
                "agreement": round(state.agreed / state.compared, 4) if state.compared else None,
                "reason": state.reason,
            }

    def _judge(self, state: _State) -> None:
        bounds = self._settings
        if state.failed > bounds.max_failure_share * max(state.seen, bounds.min_decisions):
            state.enter("returned", f"{state.failed} of {state.seen} decisions failed")
        elif state.compared >= bounds.min_decisions and state.agreed < bounds.min_agreement * state.compared:
            agreement = state.agreed / state.compared
            state.enter("returned", f"agreement {agreement:.2f} is below {bounds.min_agreement}")
        elif state.stage == "shadow" and state.decisions >= bounds.shadow_decisions and bounds.share > 0:
            state.enter("canary")
        elif state.stage == "canary" and bounds.canary_decisions and state.decisions >= bounds.canary_decisions:
            state.enter("full")


def _sound(kept: dict[str, Any]) -> dict[str, Any]:
    """What was kept, or nothing where another version of the appliance, or a damaged file, left something else."""
    if not {"digest", "stage"} <= kept.keys() <= {field.name for field in fields(_State)}:
        return {}
    if not all(isinstance(value, _TYPES.get(name, int)) for name, value in kept.items()):
        return {}
    return kept if kept["stage"] in get_args(Stage) else {}


def share_of(sticky: str) -> float:
    """A number from 0 to 1 that belongs to a text for ever."""
    return int.from_bytes(hashlib.sha256(sticky.encode()).digest()[:8], "big") / 2**64
