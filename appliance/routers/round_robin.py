"""Smooth weighted round-robin: what routes when nothing learned can.

The algorithm is nginx's (`ngx_http_upstream_get_peer`): each turn every candidate gains its weight, the richest is
chosen and pays the sum of the candidates' weights. Over one period each candidate is chosen exactly in proportion to
its weight, and evenly spread: weights 5, 1, 1 give a a b a c a a, not a a a a a b c.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from appliance.errors import RouterError

MAX_WEIGHT = 1_000_000
MAX_REMEMBERED = 4096  # deployments a group whose turn is kept


class SmoothWeightedRoundRobin:
    """Deterministic choice by weight, one state a group; safe to share between threads.

    Args:
        weights: group -> deployment id -> weight. An id without a weight in its group, and every id of an unnamed
            group, weighs 1; weight 0 is chosen only where nothing else is left.

    Raises:
        RouterError: ROUTER_WEIGHT for a weight that is not a whole number from 0 to a million.
    """

    def __init__(self, weights: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self._lock = threading.Lock()
        self._weights: dict[str, dict[str, int]] = {}
        self._current: dict[str, dict[str, int]] = {}
        self.configure(weights or {})

    def configure(self, weights: Mapping[str, Mapping[str, int]]) -> None:
        """Take new weights; the turn of deployments that stay is kept."""
        for group, members in weights.items():
            for deployment, weight in members.items():
                if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= MAX_WEIGHT:
                    raise RouterError(
                        "ROUTER_WEIGHT", f"weight {weight!r} of {deployment} is not 0 to {MAX_WEIGHT}", group=group
                    )
        with self._lock:
            self._weights = {group: dict(members) for group, members in weights.items()}

    def choose(self, group: str, candidates: Sequence[str]) -> str:
        """The next deployment of a group; as `turn`."""
        return self.turn(group, candidates)[0]

    def turn(self, group: str, candidates: Sequence[str]) -> tuple[str, dict[str, int]]:
        """The next deployment of a group, and what every candidate had gained before the richest paid.

        Args:
            group: the requested model group.
            candidates: deployment ids that may be chosen now; their order breaks ties.

        Raises:
            RouterError: ROUTER_NO_CANDIDATES where there is none.
        """
        if not candidates:
            raise RouterError("ROUTER_NO_CANDIDATES", f"no deployment of {group} is left to choose from", group=group)
        with self._lock:
            weights = self._weights.get(group, {})
            effective = {deployment: weights.get(deployment, 1) for deployment in candidates}
            if not any(effective.values()):
                effective = dict.fromkeys(effective, 1)
            # who is not a candidate now keeps its turn untouched, as in nginx: it can neither fall behind nor burst
            current = self._current.setdefault(group, {})
            if len(current) > MAX_REMEMBERED:
                current = self._current[group] = {d: turn for d, turn in current.items() if d in effective}
            for deployment, weight in effective.items():
                current[deployment] = current.get(deployment, 0) + weight
            gained = {deployment: current[deployment] for deployment in effective}
            chosen = richest(gained)
            current[chosen] -= sum(effective.values())
            return chosen, gained


def richest(gained: Mapping[str, int]) -> str:
    """Whose turn it is: who has gained most, among equals the first."""
    return max(gained, key=gained.__getitem__)
