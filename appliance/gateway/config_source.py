"""The seam for deployments that come from elsewhere than the file: Postgres in deployment B, or whatever a site has.

A source says what LiteLLM's `model_list` should be; `apply` brings the running router there by differences, because
replacing the whole list blocks the event loop for half a second at 500 deployments and a single change takes under one
millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Entry = Mapping[str, Any]


class ConfigSource(Protocol):
    """Where deployments come from."""

    def read(self) -> Sequence[Entry] | None:
        """The whole `model_list` as it should be; None where nothing has changed since the last call.

        Raises:
            ApplianceError: out of reach or malformed; what runs goes on.
        """


class Deployments(Protocol):
    """The running router, as much as is needed here; `proxy` implements it over LiteLLM."""

    def upsert(self, entry: Entry) -> None:
        """Add or replace one deployment."""

    def delete(self, id_: str) -> None:
        """Remove one deployment; running requests finish."""


@dataclass(frozen=True)
class Difference:
    """What has to be done.

    Attributes:
        upserts: entries that are new or differ.
        deletes: ids that are no longer wanted.
    """

    upserts: tuple[Entry, ...]
    deletes: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.upserts or self.deletes)


def difference(running: Sequence[Entry], wanted: Sequence[Entry]) -> Difference:
    """Compare by deployment id, group and parameters.

    Args:
        running: entries as they were applied before.
        wanted: entries as they should be; ids unique.
    """
    before = {_id(entry): entry for entry in running}
    after = {_id(entry): entry for entry in wanted}
    return Difference(
        tuple(entry for id_, entry in after.items() if before.get(id_) != entry),
        tuple(id_ for id_ in before if id_ not in after),
    )


def apply(change: Difference, deployments: Deployments, *, pause: Callable[[], None] = lambda: None) -> None:
    """Bring the running router there: additions first, so that no group is empty in between.

    Args:
        change: what has to be done.
        deployments: the running router.
        pause: called between two steps, to let requests pass.
    """
    for entry in change.upserts:
        deployments.upsert(entry)
        pause()
    for id_ in change.deletes:
        deployments.delete(id_)
        pause()


def _id(entry: Entry) -> str:
    return str(entry["model_info"]["id"])
