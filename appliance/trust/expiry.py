"""How near an end is: one scale for the doctor, the status page and whoever else warns. Pure: no clock of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Nearness(StrEnum):
    """How near."""

    FAR = "far"
    SOON = "soon"  # somebody should act
    URGENT = "urgent"
    ENDED = "ended"


@dataclass(frozen=True)
class Scale:
    """From which span on an end is soon, and from which urgent.

    Attributes:
        soon, urgent: spans before the end.
        of_life: whether a short life shortens them: soon in its last third at most, urgent in its last tenth.
    """

    soon: timedelta
    urgent: timedelta = timedelta(0)
    of_life: bool = False

    def nearness(self, end: datetime, *, now: datetime, begin: datetime | None = None) -> Nearness:
        """How near an end is; `begin` is when its life began."""
        left, soon, urgent = end - now, self.soon, self.urgent
        if self.of_life and begin is not None:
            soon, urgent = min(soon, (end - begin) / 3), min(urgent, (end - begin) / 10)
        if left <= timedelta(0):
            return Nearness.ENDED
        return Nearness.URGENT if left < urgent else Nearness.SOON if left < soon else Nearness.FAR


METADATA = Scale(timedelta(days=30))  # media come seldom
KEY = Scale(timedelta(days=90))  # a root ceremony needs people
CERTIFICATE = Scale(timedelta(days=21), timedelta(days=3), of_life=True)
