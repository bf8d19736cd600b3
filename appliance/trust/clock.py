"""Time without a network: what a host may believe of its own clock. Pure arithmetic on evidence.

The floor is the latest time that signed evidence or this host's own past has shown. A clock somewhat behind it is
lifted to it; far behind, or further ahead than anything signed could still be valid, is a wrong clock and is said to
be one (https://github.com/rauc/rauc/issues/581: certificates "not yet valid" that were fine).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from appliance.errors import TrustError

BEHIND_TOLERANCE: Final = timedelta(days=1)  # a wrong time zone, a slow clock: lifted to the floor
AHEAD_LIMIT: Final = timedelta(days=550)  # beyond the longest life of trust metadata (ca/profiles.yaml)
KEPT_EVERY: Final = timedelta(hours=1)  # the host's own clock is kept in steps of so much


def checked(now: datetime, floor: datetime) -> datetime:
    """The time to judge by: `now`, never before the floor.

    Raises:
        TrustError: TRUST_CLOCK_BEHIND, TRUST_CLOCK_AHEAD.
    """
    if now < floor - BEHIND_TOLERANCE:
        raise TrustError(
            "TRUST_CLOCK_BEHIND",
            f"this host's clock says {now:%Y-%m-%d %H:%M}, but it is at least {floor:%Y-%m-%d %H:%M}",
            clock=now,
            at_least=floor,
        )
    if now > floor + AHEAD_LIMIT:
        raise TrustError(
            "TRUST_CLOCK_AHEAD",
            f"this host's clock says {now:%Y-%m-%d %H:%M}; the last time that is proven is {floor:%Y-%m-%d %H:%M}",
            clock=now,
            last_proven=floor,
        )
    return max(now, floor)
