"""Put the running release right from its own media: what differs from what was signed, file by file.

The release runs meanwhile, so nothing of it is taken apart: a file of the environment is replaced by one rename, one of
the payload is away for as long as its archive is read. What stood there is kept as evidence. A killed repair is
repeated to its end, the health check.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.bundle.authentication import FullVerdict
from appliance.bundle.bytecode import clear_bytecode, compiling_ahead
from appliance.bundle.comparison import (
    NO_ENVIRONMENT,
    Comparison,
    compare_environment,
    compare_payload,
    installed_wheels,
    site_packages,
)
from appliance.bundle.health import MODULES, check_health, require_room
from appliance.bundle.releases import MARKER, installed_releases, write_marker
from appliance.bundle.stage0.environment import settle_environment
from appliance.bundle.stage0.extract import extract_members, verified_present
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.manifest import Manifest
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE
from appliance.bundle.stage0.preparing import Conduct, check_payload
from appliance.bundle.stage0.refusal import Refused, space_refusals
from appliance.bundle.stage0.region import Region
from appliance.errors import InstallError

SET_ASIDE = "set-aside"  # below the release, one folder for each repair
UNFINISHED = ".repair"  # below the release, from the first change to the health check


@dataclass(frozen=True)
class Repair:
    """What a repair came to.

    Attributes:
        changed: whether anything was put right, now or by a run that was killed.
        files: what was not as signed, below the release.
        health: findings of the health check, where anything was put right.
        anew: the environment cannot be mended file by file; it must be made anew.
    """

    changed: bool = False
    files: tuple[str, ...] = ()
    health: tuple[dict[str, Any], ...] = ()
    anew: bool = False


@dataclass(frozen=True)
class Repairing:
    """What a repair needs; the caller holds the prefix's lock.

    Attributes:
        prefix: where.
        verdict: the authenticated release, which runs there.
        region: its media's payload.
        conduct: how to speak.
        now: the clock.
    """

    prefix: Prefix
    verdict: FullVerdict
    region: Region
    conduct: Conduct
    now: datetime

    def run(self) -> Repair:
        """Compare every installed byte with what was signed, and replace what differs.

        Raises:
            Refused: BUNDLE_DELTA_BASE where the media are a delta without the files needed; INSTALL_NO_SPACE,
                INSTALL_PERMISSION, and whatever the media refuse.
            InstallError: INSTALL_UNCHECKED, INSTALL_NO_SPACE: nobody could tell whether it works.
        """
        self.conduct.say("it is installed: comparing every file with what was signed")
        documents = self._documents()
        payload = compare_payload(self._folder, self._manifest, deep=True)
        mended = self._mend_payload(payload) if payload.differing or not self._payload_is_sound() else ()
        environment = compare_environment(self._folder, (), deep=True)
        files = (*documents, *mended, *environment.differing)
        if not self._is_mendable(environment):
            self._set_aside(environment.differing, keep=True)
            return Repair(True, files, anew=True)
        self._mend_environment(environment)
        changed = (self._folder / UNFINISHED).exists()
        try:
            health = self._check_health(anything=changed)
        except InstallError as error:
            if error.code != "INSTALL_UNHEALTHY":
                raise
            return Repair(True, files, anew=True)
        (self._folder / UNFINISHED).unlink(missing_ok=True)
        return Repair(changed, files, tuple(health))

    @property
    def _manifest(self) -> Manifest:
        return self.verdict.release.manifest

    @property
    def _folder(self) -> Path:
        return self.prefix.release(self._manifest.release_id)

    def _documents(self) -> tuple[str, ...]:
        """The manifest, its signature and the mark of a whole release."""
        release = self.verdict.release
        wanted = {MANIFEST: release.manifest_bytes, SIGNATURE: release.signature}
        differing = [name for name, data in wanted.items() if not _holds(self._folder / name, data)]
        for name in differing:
            self._begin()
            self._set_aside((name,), keep=True)
            self.prefix.write(self._folder / name, wanted[name].decode("utf-8"))
        if not _is_marked(self.prefix):
            self._begin()
            write_marker(self.prefix, release.manifest.release_id, signer=self.verdict.verdict.identity, now=self.now)
            differing.append(MARKER)
        return tuple(differing)

    def _begin(self) -> None:
        """Note that something is about to be changed: after a kill nobody could tell from the files."""
        self.prefix.write(self._folder / UNFINISHED, "")

    def _payload_is_sound(self) -> bool:
        """Whether modes are right as well, and no folder on the way is a link."""
        try:
            check_payload(self.prefix, self._manifest)
        except Refused:
            return False
        return True

    def _mend_payload(self, found: Comparison) -> tuple[str, ...]:
        release = self.verdict.release
        carried = set(release.carried if release.carried is not None else (m.path for m in self._manifest.members))
        needed = {name.removeprefix("payload/") for name in (*found.changed, *found.missing)}
        if lacking := sorted(needed - carried):
            raise Refused(
                "BUNDLE_DELTA_BASE",
                f"{len(lacking)} files of the installed release are damaged, and this delta does not carry them",
                files=lacking[:5],
            )
        self.conduct.say("putting the payload right")
        self._begin()
        self._set_aside(found.differing)
        payload = self._folder / "payload"
        with space_refusals("mending the release"):
            payload.mkdir(exist_ok=True)
        descriptor = os.open(payload, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            members = [member for member in self._manifest.members if member.path in carried]
            present = verified_present(members, descriptor)
            extract_members(
                self.region,
                members,
                descriptor,
                present=present,
                progress=self.conduct.progress,
                checkpoint=self.conduct.checkpoint,
            )
        finally:
            os.close(descriptor)
        check_payload(self.prefix, self._manifest)
        written = {f"payload/{member.path}" for member in members if member.path not in present}
        return tuple(sorted(written.union(found.foreign)))

    def _is_mendable(self, found: Comparison) -> bool:
        """Whether wheels can say what belongs in every place that differs; the text of programs they cannot."""
        return not any(name == NO_ENVIRONMENT or name.startswith("bin/") for name in found.differing)

    def _mend_environment(self, found: Comparison) -> None:
        if not found.differing:
            return
        self.conduct.say(f"putting {len(found.differing)} files of the environment right")
        self._begin()
        self._set_aside(found.foreign)
        found = compare_environment(self._folder, (), deep=True)  # a link that is gone hid what is missing behind it
        wanted = {name.removeprefix("env/") for name in (*found.changed, *found.missing)}
        signed = {member.path: member.sha256 for member in self._manifest.members}
        with space_refusals("mending the environment"):
            for wheel in installed_wheels(self._folder, ()).good:
                data = wheel.read_bytes()
                if hashlib.sha256(data).hexdigest() != signed.get(f"wheels/{wheel.name}"):
                    text = f"{wheel.name} is no longer what the manifest signs"
                    raise Refused("INSTALL_STAGED_ALTERED", text, path=str(wheel))
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    for entry in archive.infolist():
                        if entry.filename in wanted:
                            name = f"env/{entry.filename}"
                            self._set_aside((name,), keep=True)
                            executable = bool(entry.external_attr >> 16 & 0o111)
                            _replace(self._place(name), archive.read(entry), executable=executable)
                            self.conduct.checkpoint("mended: a file of the environment")

    def _set_aside(self, names: Sequence[str], *, keep: bool = False) -> None:
        """Move what stands there out of the way, as evidence; `keep` leaves it in its place as well."""
        aside = self._folder / SET_ASIDE / self.now.strftime("%Y%m%dT%H%M%SZ")
        with space_refusals("setting aside what was found"):
            for name in names:
                source, target = self._place(name), aside / name
                if not os.path.lexists(source) or os.path.lexists(target):
                    continue
                aside.mkdir(parents=True, exist_ok=True, mode=0o700)
                target.parent.mkdir(parents=True, exist_ok=True)
                if keep and source.is_file():
                    os.link(source, target, follow_symlinks=False)
                else:
                    source.rename(target)

    def _place(self, name: str) -> Path:
        """Where a file of a `Comparison` lies."""
        kind, _, below = name.partition("/")
        site = site_packages(self._folder)
        if kind == "env" and site is not None:
            return site / below
        return self._folder / "env" / name if kind == "bin" else self._folder / name

    def _check_health(self, *, anything: bool) -> list[dict[str, Any]]:
        """Ask whether it works; where anything differed, bytecode is not believed either."""
        environment, payload = self._folder / "env", self._folder / "payload"
        python = environment / "bin" / "python"
        if not anything:
            check_health(python, payload, "in place")
            return []
        self.conduct.say("checking health")
        profile = self._manifest.profile
        clear_bytecode(environment)
        with compiling_ahead(environment, MODULES.get(profile, ()), python=self.conduct.python):
            health = check_health(python, payload, profile, keep_bytecode=True)
        require_room(environment)
        settle_environment(self._folder)
        return health


def _is_marked(prefix: Prefix) -> bool:
    try:
        return any(release.current for release in installed_releases(prefix))
    except InstallError:
        return False


def _holds(path: Path, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return not path.is_symlink() and path.read_bytes() == data
    return False


def _replace(target: Path, data: bytes, *, executable: bool) -> None:
    """Put a file in its place by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.mending")
    temporary.unlink(missing_ok=True)
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o755 if executable else 0o644)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
