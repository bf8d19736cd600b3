"""Keeping routers current: a change in a folder is loaded beside the running router, then swapped in or refused.

A thread of its own polls cheap fingerprints (names, sizes, inodes, mtimes): that also works on shared and network
file systems, where inotify does not. A change must hold still for two looks before it is read, so that a copy in
progress is not judged; what was refused is not tried again until the folder changes or somebody asks.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from appliance.errors import ApplianceError, FileError, GatewayError
from appliance.gateway.active import Slot
from appliance.gateway.loading import LastGood, Loader
from appliance.settings import Router

log = logging.getLogger("appliance.routers")

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


class RouterWatch:
    """Keeps one slot in step with its folder.

    Args:
        slot: where the router serves from.
        settings: of this router.
        loader: reads, verifies, loads.
        last_good: where a router that serves is kept, or None.
    """

    def __init__(self, slot: Slot, settings: Router, loader: Loader, last_good: LastGood | None) -> None:
        self.slot, self._settings, self._loader, self._last_good = slot, settings, loader, last_good
        self._judged: Fingerprint | None = None  # what the present state was decided on
        self._seen: Fingerprint | None = None
        self._wake = threading.Event()
        self._stop = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load now, then keep watching on a thread."""
        self._judge(fingerprint(self._settings.directory))
        if self.slot.current is None and self._settings.on_bad_update == "keep-last-good":
            self._from_last_good()
        self._thread = threading.Thread(target=self._run, name=f"watch-{self.slot.name}", daemon=True)
        self._thread.start()

    def reload(self) -> None:
        """Look at once and judge again even what was refused (SIGHUP, the endpoint)."""
        with self._lock:
            self._judged = None
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stop = True
        self._wake.set()

    def look(self) -> bool:
        """One look at the folder. Returns whether something was judged."""
        now = fingerprint(self._settings.directory)
        steady, self._seen = now == self._seen, now
        if now == self._judged or not steady:
            return False
        self._judge(now)
        return True

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(self._settings.poll_interval_s)
            self._wake.clear()
            if self._stop:
                return
            try:
                self.look()
            except Exception:
                log.exception("looking at %s failed", self._settings.directory)

    def _judge(self, state: Fingerprint) -> None:
        self._judged = state
        try:
            serving, files = self._loader.from_directory(self.slot.name, self._settings.directory)
        except ApplianceError as error:
            self._refuse(error)
            return
        except Exception as error:
            log.exception("router %s could not be loaded", self.slot.name)
            self._refuse(GatewayError("GATEWAY_ROUTER_LOAD", f"{type(error).__name__}: {error}", router=self.slot.name))
            return
        previous = self.slot.current
        if previous is not None and previous.digest == serving.digest and previous.origin == serving.origin:
            self.slot.healthy()
        else:
            self.slot.swap(serving)
        log.info("router serves", extra={"router": self.slot.name, "digest": serving.digest})
        if self._last_good is not None:
            try:
                self._last_good.keep(files)
            except (FileError, OSError) as error:
                log.warning("last-known-good could not be written: %s", error)

    def _refuse(self, error: ApplianceError) -> None:
        keep = self._settings.on_bad_update == "keep-last-good"
        self.slot.refuse(error, keep=keep)
        log.warning(
            "router update refused",
            extra={"router": self.slot.name, "code": error.code, "cause": error.cause, "kept": keep},
        )

    def _from_last_good(self) -> None:
        home = self._last_good.find() if self._last_good else None
        if home is None:
            return
        try:
            serving, _ = self._loader.from_directory(self.slot.name, home, origin="last-known-good")
        except ApplianceError as error:
            log.warning("last-known-good refused", extra={"router": self.slot.name, "code": error.code})
            return
        problem = self.slot.problem
        self.slot.swap(serving, problem=problem)
