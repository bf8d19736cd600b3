"""A host's trust state: TUF metadata and targets, the anchor, the time high-water mark, the host it belongs to.

Layout of the folder: `anchor.json`, `host.json`, `clock.json`, `generations/<n>/{metadata,targets}`, and `current`, a
link to one generation. A refresh works on a copy and moves the link when everything has verified; a kill or refusal
at any point leaves the old state.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from appliance import documents
from appliance.errors import DocumentError, FileError, TrustError
from appliance.files import locked, read_regular, sync_directory, translated, write_atomic
from appliance.trust import clock, tuf_client
from appliance.trust.anchor import Anchor, read_anchor
from appliance.trust.authorisation import Action, check_token
from appliance.trust.policy import read_policy
from appliance.trust.repository import POLICY, REVOCATIONS, TRUSTED_ROOT
from appliance.trust.trees import copy_tree, give_to_owner_of, sync_tree
from appliance.trust.trusted_root import parse_rfc3339, rfc3339
from appliance.trust.tuf_client import TrustedState
from appliance.trust.verification import TrustMaterial

_MAX_BYTES: Final = 1024 * 1024
_KEPT_GENERATIONS: Final = 2


@dataclass(frozen=True)
class TrustStore:
    """What one host trusts.

    Attributes:
        directory: the state folder, `<prefix>/state/trust`.
        anchor: what the zone got by the second channel.
    """

    directory: Path
    anchor: Anchor

    @classmethod
    def initialise(
        cls, directory: Path, anchor: bytes, source: Path, *, now: datetime, machine: str | None = None
    ) -> TrustStore:
        """Start to trust: an anchor from the second channel and the trust repository from the media.

        Args:
            directory: must not exist, or be empty.
            anchor: `anchor.json`; the caller has compared its SHA-256.
            source: the repository's folder.
            now: this host's clock.
            machine: this host's identity; None takes `machine_identity()`.

        Raises:
            TrustError: TRUST_STATE_EXISTS, TRUST_ANCHOR_MALFORMED, clock and metadata refusals, TRUST_OLDER.
        """
        parsed = read_anchor(anchor)
        if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
            raise TrustError("TRUST_STATE_EXISTS", f"{directory} is not an empty folder", path=str(directory))
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir(mode=0o755)
            write_atomic(fresh / "anchor.json", anchor)
            host = {"schema_version": 1, "machine": machine if machine is not None else machine_identity()}
            write_atomic(fresh / "host.json", documents.write_json(host))
            store = cls(fresh, parsed)
            store._switch(source, now=now)
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()
            fresh.rename(directory)
            sync_directory(directory.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return cls(directory, parsed)

    @classmethod
    def open(cls, directory: Path, *, machine: str | None = None) -> TrustStore:
        """Open this host's trust state.

        Raises:
            TrustError: TRUST_STATE_MISSING, TRUST_STATE_FOREIGN, TRUST_STATE_DAMAGED, TRUST_ANCHOR_MALFORMED.
        """
        if not (directory / "current").is_symlink():
            raise TrustError("TRUST_STATE_MISSING", f"no trust state in {directory}", path=str(directory))
        store = cls(directory, read_anchor(_read(directory / "anchor.json")))
        recorded = store._document("host.json").get("machine")
        present = machine if machine is not None else machine_identity()
        if recorded is not None and recorded != present:
            raise TrustError(
                "TRUST_STATE_FOREIGN",
                "this trust state was made on another host",
                recorded=str(recorded)[:16],
                present=str(present)[:16],
            )
        return store

    def refresh(self, source: Path, *, now: datetime) -> None:
        """Take over newer trust metadata from media; a refusal leaves the state as it was.

        Raises:
            TrustError: see `tuf_client.update` and `checked_time`; TRUST_OLDER where the media are older.
        """
        with locked(self.directory / "lock"):
            self._switch(source, now=now)

    def material(self, *, now: datetime) -> TrustMaterial:
        """What verification needs, checked anew from the anchor on; refuses clocks below the floor.

        Raises:
            TrustError: TRUST_CLOCK_BEHIND, TRUST_CLOCK_AHEAD, TRUST_METADATA_EXPIRED, TRUST_STATE_DAMAGED.
        """
        state = tuf_client.load(self._current(), root=self._root, now=self.checked_time(now))
        return TrustMaterial(state.contents[TRUSTED_ROOT], read_policy(state.contents[POLICY]))

    def revocation_list(self) -> bytes | None:
        """The TLS revocation list (PEM) that travelled with the trust metadata, if any."""
        return self.state().contents.get(REVOCATIONS)

    def state(self) -> TrustedState:
        """The kept metadata, checked, whether expired or not: for reports."""
        return tuf_client.load(self._current(), root=self._root, now=None)

    def checked_time(self, now: datetime) -> datetime:
        """The time to judge by; keeps the high-water mark.

        Raises:
            TrustError: TRUST_CLOCK_BEHIND, TRUST_CLOCK_AHEAD.
        """
        time = clock.checked(now.astimezone(UTC), self.floor())
        self._raise_mark(time)
        return time

    def witness(self, time: datetime) -> None:
        """Raise the high-water mark to a verified time (of a release that was just accepted)."""
        kept = self._kept_clock()
        if kept is None or time > kept:
            self._keep_clock(time)

    def redeem(self, token: bytes, *, action: Action, version: str, now: datetime, machine: str | None = None) -> None:
        """Use up an authorisation: it is recorded as used before this returns, and never accepted again.

        Args:
            token: what enough root key holders signed.
            action: `downgrade`, or `clock` (then the high-water mark is set to `version`, a time).
            version: the release version that is about to be installed, or the time.
            now: this host's clock.
            machine: this host's identity; None takes `machine_identity()`.

        Raises:
            TrustError: see `authorisation.check_token`.
        """
        here = machine if machine is not None else machine_identity()
        with locked(self.directory / "lock"):
            used = self._document("used.json") if (self.directory / "used.json").exists() else {}
            time = now.astimezone(UTC) if action == "clock" else self.checked_time(now)
            root = self.state().root
            granted = check_token(token, action=action, version=version, machine=here, root=root, used=used, now=time)
            used[granted.nonce] = rfc3339(time)
            write_atomic(self.directory / "used.json", documents.write_json(used))
            if action == "clock":
                self._keep_clock(parse_rfc3339(version))

    def floor(self) -> datetime:
        """The latest time that is proven: the anchor's, the metadata's, and this host's high-water mark."""
        known = [self.anchor.created_at]
        if (self.directory / "current").exists():
            known.append(self.state().issued)
        kept = self._kept_clock()
        return max(known if kept is None else [*known, kept])

    @property
    def _root(self) -> bytes:
        return self.anchor.root.encode()

    def _current(self) -> Path:
        with translated(self.directory / "current"):
            current = self.directory / (self.directory / "current").readlink()
        if not current.name.isdecimal() or not current.is_dir():
            raise TrustError("TRUST_STATE_DAMAGED", "the trust state's link leads nowhere", path=str(current))
        return current

    def _switch(self, source: Path, *, now: datetime) -> None:
        """Update a copy of the current generation and make it the current one."""
        generations = self.directory / "generations"
        with translated(generations):
            generations.mkdir(exist_ok=True)
        present = (self.directory / "current").is_symlink()
        number = int(self._current().name) + 1 if present else 1
        for stale in generations.iterdir():
            if not stale.name.isdecimal() or not number - _KEPT_GENERATIONS <= int(stale.name) < number:
                shutil.rmtree(stale)
        draft, link = generations / str(number), self.directory / f".current.{number}"
        try:
            with translated(draft):
                if present:
                    copy_tree(self._current(), draft)
                time = self._time_for(source, now, draft)
                found = tuf_client.load(draft, root=self._root, now=time)
                self._check_lowest(found)
                read_policy(found.contents[POLICY])
                give_to_owner_of(self.directory, draft)  # an installation by root must not lock the service out
                sync_tree(draft)
                link.unlink(missing_ok=True)
                link.symlink_to(Path("generations") / str(number))
            self._raise_mark(time)  # proven by what was just verified, whether or not the link gets moved
        except BaseException:
            link.unlink(missing_ok=True)
            shutil.rmtree(draft, ignore_errors=True)
            raise
        with translated(link):
            link.rename(self.directory / "current")
            sync_directory(self.directory)

    def _time_for(self, source: Path, now: datetime, draft: Path) -> datetime:
        """Update the draft; a clock far ahead of the kept floor may be right if the media are as new."""
        now = now.astimezone(UTC)
        try:
            time = clock.checked(now, self.floor())
        except TrustError as error:
            if error.code != "TRUST_CLOCK_AHEAD":
                raise
            time = now
        try:
            tuf_client.update(draft, source, root=self._root, now=time)
        except TrustError as error:
            if error.code == "TRUST_METADATA_EXPIRED":
                clock.checked(now, self.floor())  # then the clock, rather than the media, is the likelier fault
            raise
        issued = tuf_client.load(draft, root=self._root, now=None).issued
        return clock.checked(now, max(issued, self.floor()))

    def _check_lowest(self, found: TrustedState) -> None:
        for role, lowest in self.anchor.lowest_versions.items():
            if found.versions[role] < lowest:
                raise TrustError(
                    "TRUST_OLDER",
                    f"the trust metadata are older than the anchor ({role} {found.versions[role]}, at least {lowest})",
                    role=role,
                )

    def _kept_clock(self) -> datetime | None:
        if not (self.directory / "clock.json").exists():
            return None
        try:
            return parse_rfc3339(str(self._document("clock.json").get("high_water")))
        except ValueError:
            raise TrustError("TRUST_STATE_DAMAGED", "clock.json holds no time", path=str(self.directory)) from None

    def _raise_mark(self, time: datetime) -> None:
        """Raise the high-water mark to the time that is judged by, in steps."""
        kept = self._kept_clock()
        if kept is None or time - kept >= clock.KEPT_EVERY:
            self._keep_clock(time)

    def _keep_clock(self, time: datetime) -> None:
        """Persist the mark; a reader without write permission leaves that to the state's owner."""
        try:
            kept = {"schema_version": 1, "high_water": rfc3339(time)}
            write_atomic(self.directory / "clock.json", documents.write_json(kept))
        except FileError as error:
            if error.code != "FILE_PERMISSION":
                raise

    def _document(self, name: str) -> dict[str, Any]:
        try:
            document = documents.read_json(_read(self.directory / name), what=name)
        except DocumentError as error:
            raise TrustError("TRUST_STATE_DAMAGED", error.cause, path=str(self.directory)) from None
        if not isinstance(document, dict):
            raise TrustError("TRUST_STATE_DAMAGED", f"{name} is not an object", path=str(self.directory))
        return document


def machine_identity(root: Path = Path("/")) -> str | None:
    """This host's identity: a hash of `/etc/machine-id` (machine-id(5) asks not to give it away), None without one."""
    try:
        text = read_regular(root / "etc/machine-id", max_bytes=256).strip()
    except FileError:
        return None
    return hashlib.sha256(b"llm-routing-appliance trust state\n" + text).hexdigest() if text else None


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=_MAX_BYTES)
    except FileError as error:
        raise TrustError("TRUST_STATE_DAMAGED", f"the trust state lacks {path.name} ({error.cause})") from None
