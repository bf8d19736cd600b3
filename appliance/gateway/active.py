"""The router that serves now: one reference, swapped whole, with the reason when there is none."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from appliance.errors import ApplianceError

if TYPE_CHECKING:  # heavy: numpy, onnxruntime, sigstore
    from appliance.routers.encoder import Encoder
    from appliance.routers.loading import LoadedRouter
    from appliance.trust.verification import Verdict

Origin = Literal["directory", "last-known-good", "registry"]


@dataclass(frozen=True)
class Serving:
    """A verified router and the encoder it was fitted with, ready to score.

    Attributes:
        name: below `routing.routers`.
        router, encoder: the loaded pair; a request uses one pair from begin to end.
        verdict: who signed the router, and when.
        origin: where the verified bytes came from.
        loaded_at: RFC 3339, UTC.
    """

    name: str
    router: LoadedRouter
    encoder: Encoder
    verdict: Verdict
    origin: Origin
    loaded_at: str

    @property
    def digest(self) -> str:
        """Digest of the router's artifact."""
        return self.router.digest

    def identity(self) -> dict[str, Any]:
        """Which router it is, and whose."""
        metadata = self.router.metadata
        return {
            "digest": self.digest,
            "artifact": f"{metadata.name} {metadata.version}",
            "strategy": metadata.strategy,
            "signed_by": self.verdict.identity,
            "signer_role": self.verdict.role,
            "signed_at": self.verdict.signed_at.isoformat(),
        }

    def describe(self) -> dict[str, Any]:
        """For status."""
        return {
            **self.identity(),
            "labels": dict(self.router.metadata.labels),
            "encoder_digest": self.encoder.digest,
            "origin": self.origin,
            "loaded_at": self.loaded_at,
        }


class Slot:
    """Where a named router serves from. Reading `current` takes no lock: it is one reference."""

    def __init__(self, name: str, *, current: Serving | None = None) -> None:
        self.name = name
        self.current = current
        self._problem: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._swaps = 0

    @property
    def problem(self) -> dict[str, Any] | None:
        """Why the last update was refused, None where it was not."""
        return self._problem

    def swap(self, serving: Serving, *, problem: dict[str, Any] | None = None) -> None:
        """Serve this from the next request on; `problem` stays shown where this is only the second choice."""
        with self._lock:
            self.current, self._problem = serving, problem
            self._swaps += 1

    def healthy(self) -> None:
        """What was wrong with an update is no longer so; what serves stays."""
        with self._lock:
            self._problem = None

    def refuse(self, error: ApplianceError, *, keep: bool) -> None:
        """Note why an update was refused; `keep` says whether what serves goes on or routing becomes static."""
        with self._lock:
            self._problem = {"at": utc_now(), **error.as_dict()["error"]}
            if not keep:
                self.current = None

    def describe(self) -> dict[str, Any]:
        """For status."""
        with self._lock:
            serving = self.current
            return {
                "mode": "ml" if serving else "weighted-round-robin",
                "serving": serving.describe() if serving else None,
                "problem": self._problem,
                "swaps": self._swaps,
            }


def utc_now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
