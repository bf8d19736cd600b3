"""The full verdict on a release: the trust repository, the signature with its log and time, the manifest, the head."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.bundle.stage0.main import check_head
from appliance.bundle.stage0.manifest import read_delta, read_manifest
from appliance.bundle.stage0.media import DELTA, DELTA_SIGNATURE, MANIFEST, SIGNATURE, Head
from appliance.bundle.stage0.preparing import Authenticated
from appliance.bundle.stage0.refusal import space_refusals
from appliance.bundle.stage0.workspace import workspace
from appliance.errors import BundleError, TrustError
from appliance.files import sha256_hex
from appliance.trust.store import TrustStore
from appliance.trust.verification import TrustMaterial, Verdict, verify_statement


@dataclass(frozen=True)
class FullVerdict:
    """An authenticated release and who vouches for it."""

    release: Authenticated
    verdict: Verdict


class Authenticator:
    """Judges heads against an anchor, or against the trust state that an installation has.

    Args:
        anchor: the anchor's bytes; may be None where `state` exists.
        state: the host's trust state (`PREFIX/state/trust`); it is read, copied and never changed here.
        now: the clock.
    """

    def __init__(self, anchor: bytes | None, *, now: datetime, state: Path | None = None) -> None:
        self._anchor = anchor
        self._state = state if state is not None and state.is_dir() else None
        self._now = now

    def __call__(self, head: Head) -> FullVerdict:
        """Authenticate one head.

        Raises:
            TrustError: whatever the trust repository, the signature or the policy refuses.
            BundleError: BUNDLE_ANCHOR, BUNDLE_HEAD. Refused: what the manifest's reader refuses.
        """
        with _copying("reading the trust metadata"), workspace("trust") as work:
            store = self._first_store(head, work) if self._state is None else self._store(head, work)
            return self._judge(head, store.material(now=self._now), store.checked_time(self._now))

    def commit(self, head: Head, state: Path, *, witness: datetime) -> None:
        """Make the head's trust metadata the host's, after it was authenticated.

        Args:
            head: as it was authenticated.
            state: `PREFIX/state/trust`.
            witness: the verified time of the release; no later clock may be before it.

        Raises:
            TrustError: as `__call__`.
        """
        with _copying("taking over the trust metadata"), workspace("trust") as work:
            source = _written(head, work)
            if state.is_dir():
                store = TrustStore.open(state)
                _refresh(store, source, self._now)
            else:
                store = TrustStore.initialise(state, self._required_anchor(), source, now=self._now)
            store.witness(witness)

    def _first_store(self, head: Head, work: Path) -> TrustStore:
        """A throw-away trust state on a host that has none; where the anchor does not fit, that is what is said."""
        anchor, carried = self._required_anchor(), head.files.get("trust/anchor.json", b"")
        try:
            return TrustStore.initialise(work / "state", anchor, _written(head, work), now=self._now)
        except TrustError as error:
            if error.code != "TRUST_THRESHOLD" or anchor == carried:
                raise
            raise BundleError(
                "BUNDLE_ANCHOR",
                "the release was made for another anchor than the one given",
                given=sha256_hex(anchor),
                carried=sha256_hex(carried),
                because=error.code,
            ) from error

    def _store(self, head: Head, work: Path) -> TrustStore:
        """A throw-away copy of the host's trust state that has seen the media's metadata."""
        source = _written(head, work)
        assert self._state is not None  # noqa: S101 (the caller asked)
        shutil.copytree(self._state, work / "state", symlinks=True)
        store = TrustStore.open(work / "state")
        _refresh(store, source, self._now)
        return store

    def _judge(self, head: Head, material: TrustMaterial, at: datetime) -> FullVerdict:
        manifest_bytes, signature = head.files[MANIFEST], head.files[SIGNATURE]
        verdict = verify_statement(manifest_bytes, signature, kind="release", material=material, at=at)
        manifest = read_manifest(manifest_bytes)
        delta = None
        if DELTA in head.files:
            verify_statement(head.files[DELTA], head.files[DELTA_SIGNATURE], kind="delta", material=material, at=at)
            delta = read_delta(head.files[DELTA], manifest)
        release = Authenticated(manifest, manifest_bytes, signature, delta)
        check_head(head, release)
        return FullVerdict(release, verdict)

    def _required_anchor(self) -> bytes:
        if self._anchor is None:
            raise BundleError("BUNDLE_ANCHOR", "no trust anchor was given, and none is installed")
        return self._anchor


@contextlib.contextmanager
def _copying(doing: str) -> Iterator[None]:
    """`space_refusals`, also for `shutil.copytree`, which gathers its errors as text."""
    with space_refusals(doing):
        try:
            yield
        except shutil.Error as error:
            if any(f"[Errno {errno.ENOSPC}]" in str(problem[-1]) for problem in error.args[0]):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def _written(head: Head, work: Path) -> Path:
    """The head's trust metadata as the folder that python-tuf wants; only it parses them."""
    source = work / "source"
    for name, data in head.trust.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return source


def _refresh(store: TrustStore, source: Path, now: datetime) -> None:
    """Take the media's trust metadata unless the host's are newer already."""
    try:
        store.refresh(source, now=now)
    except TrustError as error:
        if error.code != "TRUST_OLDER":
            raise
