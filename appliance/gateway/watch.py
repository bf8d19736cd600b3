"""Keeping routers current: a change in a folder is loaded beside the running router, then swapped in or refused.

A thread of its own polls cheap fingerprints (names, sizes, inodes, mtimes): that also works on shared and network
file systems, where inotify does not. A change must hold still for two looks before it is read, so that a copy in
progress is not judged; what was refused is not tried again until the folder changes or somebody asks.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.artifact import ArtifactFiles
from appliance.errors import ApplianceError, FileError, GatewayError
from appliance.gateway.active import Serving, Slot
from appliance.gateway.loading import LastGood, Loader
from appliance.registry.sidecar import Sidecar
from appliance.settings import Router

log = logging.getLogger("appliance.routers")

DENIED = frozenset({"TRUST_DENIED", "REGISTRY_REVOKED", "GATEWAY_CHANNEL_WITHDRAWN"})

Fingerprint = tuple[tuple[str, int, int, int], ...]


def fingerprint(directory: Path) -> Fingerprint:
    """Names, inodes, sizes and modification times (ns) of a folder's entries, one level of subfolders included."""
    found: list[tuple[str, int, int, int]] = []
    pending = [(directory, "", 0)]
    while pending:
        folder, prefix, depth = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    name = f"{prefix}{entry.name}"
                    found.append((name, status.st_ino, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)))
                    if depth < 4 and entry.is_dir(follow_symlinks=False):
                        pending.append((Path(entry.path), f"{name}/", depth + 1))
        except OSError as error:
            found.append((f"{prefix}!", error.errno or 0, 0, 0))
    return tuple(sorted(found))


class Watch(ABC):
    """Keeps one slot in step with a source, on a thread of its own.

    Args:
        slot: where the router serves from.
        settings: of this router.
        loader: verifies and loads.
        last_good: where a router that serves is kept.
        jitter: share of the interval by which looks are spread, so that many hosts do not ask at once.
    """

    def __init__(
        self, slot: Slot, settings: Router, loader: Loader, *, last_good: LastGood, jitter: float = 0.0
    ) -> None:
        self.slot, self._settings, self._loader, self._jitter = slot, settings, loader, jitter
        self._last_good = last_good
        self._kept: dict[str, Any] | None = None
        self._wake = threading.Event()
        self._stop = False
        self._again = False
        self._thread: threading.Thread | None = None

    @abstractmethod
    def first(self) -> None:
        """Load what is there, or the last known good."""

    @abstractmethod
    def look(self) -> bool:
        """One look at the source. Returns whether something was judged."""

    def describe(self) -> dict[str, Any]:
        """What status shows beside the slot."""
        return {"last_known_good": self._kept}

    def start(self) -> None:
        """Load now, then keep watching."""
        self.first()
        self._thread = threading.Thread(target=self._run, name=f"watch-{self.slot.name}", daemon=True)
        self._thread.start()

    def reload(self) -> None:
        """Look at once and judge again even what was refused (SIGHUP, the endpoint)."""
        self._again = True
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stop = True
        self._wake.set()

    def _run(self) -> None:
        while not self._stop:
            pause = self._settings.poll_interval_s * (1 + self._jitter * random.uniform(-1, 1))  # noqa: S311
            self._wake.wait(pause)
            self._wake.clear()
            if self._stop:
                return
            try:
                self.look()
            except Exception:
                log.exception("looking for router %s failed", self.slot.name)

    def _take(self, load: Callable[[], tuple[Serving, ArtifactFiles]]) -> None:
        """Load beside what serves, then swap and keep, or refuse."""
        try:
            serving, files = load()
            previous = self.slot.current
            if previous is not None and previous.digest != serving.digest:
                self._loader.check_in_time(serving)
        except ApplianceError as error:
            self._refuse(error)
            return
        except Exception as error:
            log.exception("router %s could not be loaded", self.slot.name)
            self._refuse(GatewayError("GATEWAY_ROUTER_LOAD", f"{type(error).__name__}: {error}", router=self.slot.name))
            return
        if previous is not None and _told(previous) == _told(serving):
            self.slot.healthy()
        else:
            self.slot.swap(serving)
        log.info("router serves", extra={"router": self.slot.name, "digest": serving.digest})
        try:
            self._last_good.keep(files)
            self._kept = serving.identity()
        except (FileError, OSError) as error:
            log.warning("last-known-good could not be written: %s", error)

    def _fall_back(self, may_serve: Callable[[str], bool] = lambda _: True) -> None:
        """After a start with nothing to serve: find the last known good router, and serve it where settings say so.

        Args:
            may_serve: whether a digest may, by whatever the source knows beyond the zone's trust.
        """
        home = self._last_good.find()
        if self.slot.current is not None or home is None:
            return
        try:
            serving, _ = self._loader.from_directory(self.slot.name, home, origin="last-known-good")
        except ApplianceError as error:
            log.warning("last-known-good refused", extra={"router": self.slot.name, "code": error.code})
            return
        if not may_serve(serving.digest):
            return
        self._kept = serving.identity()
        if self._settings.on_bad_update == "keep-last-good":
            self.slot.swap(serving, problem=self.slot.problem)

    def _forget(self) -> None:
        """What was good once must not come back."""
        self._kept = None
        try:
            self._last_good.forget()
        except OSError as error:
            log.warning("last-known-good could not be forgotten: %s", error)

    def _refuse(self, error: ApplianceError) -> None:
        # what the zone's trust has denied was good once, and is so no longer
        keep = self._settings.on_bad_update == "keep-last-good" and error.code not in DENIED
        self.slot.refuse(error, keep=keep)
        if error.code in DENIED:
            self._kept = None
        log.warning(
            "router update refused",
            extra={"router": self.slot.name, "code": error.code, "cause": error.cause, "kept": keep},
        )


class DirectoryWatch(Watch):
    """Keeps one slot in step with a folder, and with the zone's trust, whose deny-list may grow.

    Args:
        slot, settings, loader, last_good: as `Watch`.
        directory: of the artifact.
        trust: the trust store; a new generation of it judges the folder anew.
        sidecar: of this host, which may run although this router comes from a folder.
    """

    def __init__(
        self, slot: Slot, settings: Router, loader: Loader, *, directory: Path, trust: Path, last_good: LastGood,
        sidecar: Sidecar,
    ) -> None:  # fmt: skip
        super().__init__(slot, settings, loader, last_good=last_good)
        self._directory, self._trust, self._sidecar = directory, trust, sidecar
        self._judged: Fingerprint | None = None  # what the present state was decided on
        self._seen: Fingerprint | None = None

    def first(self) -> None:
        """Load from the folder, else the last known good."""
        self._sidecar.look()
        self._judge(self._state())
        self._fall_back()

    def look(self) -> bool:
        """Judge the folder where it has changed and holds still."""
        self._sidecar.look()
        now = self._state()
        steady, self._seen = now == self._seen, now
        if self._again:
            self._judged = None
        if now == self._judged or not (steady or self._again):
            return False
        self._again = False
        self._judge(now)
        return True

    def describe(self) -> dict[str, Any]:
        """What status shows; `unfollowed` are the channels that the sidecar brings and this router does not follow."""
        told = self._sidecar.every(datetime.now(UTC)).items()
        unfollowed = [{"name": name, "contact_age_s": each.age_s, "problem": each.problem} for name, each in told]
        return {**super().describe(), "unfollowed": unfollowed}

    def _state(self) -> Fingerprint:
        return (*fingerprint(self._directory), (generation(self._trust), 0, 0, 0))

    def _judge(self, state: Fingerprint) -> None:
        self._judged = state
        self._take(lambda: self._loader.from_directory(self.slot.name, self._directory))


def _told(serving: Serving) -> tuple[object, ...]:
    """What status tells of a router, its time of loading aside."""
    return serving.digest, serving.origin, serving.verdict


def generation(trust: Path) -> str:
    """Name of the trust store's current generation; changes with every refresh."""
    try:
        return str((trust / "current").readlink())
    except OSError as error:
        return f"! {error.errno}"
