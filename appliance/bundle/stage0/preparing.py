"""The first half of an installation: from authenticated media to a staged release with its environment.

Stage 0 runs exactly this, then hands over; the installed appliance runs it too and goes on. A killed run is taken up
where it stood: the journal names the last finished step, and files that lie there are hashed before they count.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .environment import make_environment
from .extract import check_tree, extract_members, link_from, verified_present
from .journal import NOT_YET_DURABLE, STEPS, Prefix, Transaction, current_boot, sync_folder
from .manifest import Delta, Manifest, Member
from .media import MANIFEST, SIGNATURE
from .refusal import Refused, space_refusals
from .region import Region


@dataclass(frozen=True)
class Authenticated:
    """A release whose manifest was verified.

    Attributes:
        manifest: parsed from the verified bytes.
        manifest_bytes, signature: as they came.
        delta: the verified delta statement, where the media hold one.
    """

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes
    delta: Delta | None = None

    @property
    def carried(self) -> tuple[str, ...] | None:
        """Paths that the media hold; None means all."""
        return self.delta.carried if self.delta else None

    @property
    def carried_bytes(self) -> int:
        """What the media hold of the payload."""
        carried = set(self.carried if self.carried is not None else (m.path for m in self.manifest.members))
        return sum(member.size_bytes for member in self.manifest.members if member.path in carried)


@dataclass(frozen=True)
class Conduct:
    """How a run behaves towards its surroundings.

    Attributes:
        say: called with one line for each step.
        progress: called with bytes done and in all.
        checkpoint: called with a name at every point where a kill leaves another state behind.
        python: the host's interpreter for the environment.
    """

    say: Callable[[str], None] = lambda _: None
    progress: Callable[[int, int], None] = lambda _done, _all: None
    checkpoint: Callable[[str], None] = lambda _: None
    python: str = "python3"


def prepare(prefix: Prefix, release: Authenticated, region: Region, conduct: Conduct) -> Transaction:
    """Bring a release to the step `environment`; the caller holds the prefix's lock.

    Returns:
        The transaction, at `environment` or beyond where an earlier run came further.

    Raises:
        Refused: whatever makes a step impossible; what was done so far stays for the next run to take up.
    """
    require_base(prefix, release)
    transaction = _begin(prefix, release, conduct)
    folder = prefix.release(transaction.release)
    if not reached(transaction, "staged"):
        conduct.say(f"extracting {release.carried_bytes / 1e6:.1f} MB")
        _stage(prefix, release, region, conduct)
        transaction = advance(prefix, transaction, "staged", conduct)
    if not reached(transaction, "environment"):
        conduct.say("making the environment")
        make_environment(prefix.payload(transaction.release), folder, python=conduct.python)
        transaction = advance(prefix, transaction, "environment", conduct)
    return transaction


def is_settled(prefix: Prefix, release: Authenticated) -> bool:
    """Whether this very release runs already and nothing is left to do."""
    return prefix.active() == release.manifest.release_id and prefix.transaction() is None


def begin_anew(prefix: Prefix, release: Authenticated) -> None:
    """Have the release that runs made anew where it lies: its program no longer starts, there is nothing to spare."""
    manifest = release.manifest
    prefix.record(Transaction(manifest.release_id, manifest.digest, "begun", prefix.previous(), current_boot()))


def reached(transaction: Transaction, step: str) -> bool:
    """Whether a transaction has finished a step."""
    return STEPS.index(transaction.step) >= STEPS.index(step)


def advance(prefix: Prefix, transaction: Transaction, step: str, conduct: Conduct) -> Transaction:
    """Write down that a step is finished."""
    conduct.checkpoint(f"{step}: done, not written down")
    transaction = replace(transaction, step=step, boot=current_boot())
    prefix.record(transaction)
    conduct.checkpoint(f"{step}: written down")
    return transaction


def _begin(prefix: Prefix, release: Authenticated, conduct: Conduct) -> Transaction:
    """Take up the transaction of this very release, or undo another's and begin."""
    found = prefix.transaction()
    if found is not None and found.digest == release.manifest.digest:
        conduct.say(f"taking up the installation of {found.release} after step {found.step!r}")
        # one that is complete was durable long ago, unless it is the one that runs and is being made anew
        complete = find_base(prefix, found.digest) is not None and prefix.active() != found.release
        lost = found.step in NOT_YET_DURABLE and found.boot != current_boot() and not complete
        if lost:
            conduct.say("the host was restarted meanwhile: making the environment anew")
            found = replace(found, step="staged", boot=current_boot())
            prefix.record(found)
        if found.step == "staged":
            try:
                check_payload(prefix, release.manifest)
            except Refused as refusal:
                conduct.say(f"{refusal.cause}: taking it from the media again")
                found = stage_again(prefix, found)
        elif reached(found, "activated") and prefix.active() != found.release:
            conduct.say("it was rolled back meanwhile: activating it again")
            found = replace(found, step="healthy", previous=prefix.active(), boot=current_boot())
            prefix.record(found)
        return found
    if found is not None:
        conduct.say(f"undoing the unfinished installation of {found.release}")
        if prefix.active() != found.release:
            prefix.discard(found.release)
        conduct.checkpoint("other transaction undone")
    # a release that was complete before needs no new environment: it is verified, asked for its health and activated
    step = "environment" if find_base(prefix, release.manifest.digest) else "begun"
    manifest = release.manifest
    active = prefix.active()
    previous = active if active != manifest.release_id else prefix.previous()
    transaction = Transaction(manifest.release_id, manifest.digest, step, previous, current_boot())
    prefix.record(transaction)
    conduct.checkpoint("begun: written down")
    return transaction


def check_payload(prefix: Prefix, manifest: Manifest) -> None:
    """Hash what was staged again, from the disk.

    Raises:
        Refused: INSTALL_STAGED_ALTERED.
    """
    payload = prefix.payload(manifest.release_id)
    try:
        descriptor = os.open(payload, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refused("INSTALL_STAGED_ALTERED", f"{payload}: {error.strerror}", path=str(payload)) from None
    try:
        check_tree(manifest.members, descriptor)
    finally:
        os.close(descriptor)


def stage_again(prefix: Prefix, transaction: Transaction) -> Transaction:
    """Step back to where every file that lies there is hashed, and taken from the media where it is damaged.

    It stops being a release that `rollback` could return to; the one that runs keeps its mark, and its epoch with it.
    """
    if prefix.active() != transaction.release:
        (prefix.release(transaction.release) / "release.json").unlink(missing_ok=True)
    transaction = replace(transaction, step="begun", boot=current_boot())
    prefix.record(transaction)
    return transaction


def _stage(prefix: Prefix, release: Authenticated, region: Region, conduct: Conduct) -> None:
    manifest = release.manifest
    folder, payload = prefix.release(manifest.release_id), prefix.payload(manifest.release_id)
    with space_refusals("staging the release"):
        payload.mkdir(parents=True, exist_ok=True)
        for name, data in ((MANIFEST, release.manifest_bytes), (SIGNATURE, release.signature)):
            prefix.write(folder / name, data.decode("utf-8"))
        conduct.checkpoint("staging: manifest written")
    descriptor = os.open(payload, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        present = verified_present(manifest.members, descriptor)
        members = manifest.members
        if release.delta is not None:
            carried = set(release.delta.carried)
            members = tuple(member for member in manifest.members if member.path in carried)
            wanted = [
                member for member in manifest.members if member.path not in carried and member.path not in present
            ]
            conduct.say(f"taking {len(wanted)} files from release {release.delta.base[:12]}, each hashed")
            _link_base(prefix, release.delta.base, wanted, descriptor)
            conduct.checkpoint("staging: base linked")
        extract_members(
            region, members, descriptor, present=present, progress=conduct.progress, checkpoint=conduct.checkpoint
        )
    finally:
        os.close(descriptor)
    sync_folder(folder)


def _link_base(prefix: Prefix, base: str, wanted: list[Member], descriptor: int) -> None:
    source = find_base(prefix, base)
    if source is None:
        raise Refused(
            "BUNDLE_DELTA_BASE", "the release that this delta builds upon has just been removed", base=base[:12]
        )
    handle = os.open(source / "payload", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lacking = link_from(wanted, handle, descriptor)
    finally:
        os.close(handle)
    if lacking:
        raise Refused(
            "BUNDLE_DELTA_BASE",
            f"{len(lacking)} files of the installed base are damaged or gone",
            files=[member.path for member in lacking[:5]],
        )


def require_base(prefix: Prefix, release: Authenticated) -> None:
    """Refuse a delta whose base is not here, before anything is written.

    Raises:
        Refused: BUNDLE_DELTA_BASE.
    """
    if release.delta is not None and find_base(prefix, release.delta.base) is None:
        installed = sorted(path.name for path in prefix.releases.iterdir()) if prefix.releases.is_dir() else []
        raise Refused(
            "BUNDLE_DELTA_BASE",
            f"this delta builds upon release {release.delta.base[:12]}, which is not installed here",
            installed=installed,
        )


def find_base(prefix: Prefix, digest: str) -> Path | None:
    """Folder of the complete installed release with a manifest digest, or None."""
    if prefix.releases.is_dir():
        for folder in sorted(prefix.releases.iterdir()):
            if folder.name.endswith(f"-{digest[:12]}") and (folder / "release.json").is_file():
                return folder
    return None
