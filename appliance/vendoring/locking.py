"""Write the locks with pip-tools, on the connected side; what it wrote is read back by our own strict reader.

Profiles are locked on top of each other (`-c gateway.lock` in `training.in`), so that a package has one version
everywhere. torch is locked alone: its CPU build must be installed before a resolver can think of another. Only wheels
are considered, because a source archive's build would run its code here; releases younger than the policy asks are
passed over for the newest that has ripened.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from appliance.errors import VendorError
from appliance.files import read_regular, write_atomic
from appliance.vendoring.fetch import Progress, silent
from appliance.vendoring.index import Index
from appliance.vendoring.locks import MAX_LOCK_BYTES, Lock, Pin, parse_lock
from appliance.vendoring.policy import Ripening
from appliance.vendoring.selection import LOOKUPS_AT_ONCE, version_of

ORDER = ("gateway", "torch", "training", "dev")
ALONE = frozenset({"torch"})  # locked without what it needs, and left out of every other lock
LOCK_TIMEOUT_S = 3600.0
_UNRIPE = "unripe.in"  # the constraints that pass over them, while pip-compile runs
_OPTIONS = (
    "--quiet", "--generate-hashes", "--strip-extras", "--resolver=backtracking", "--no-emit-index-url",
    "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options", "--pip-args=--only-binary=:all:",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What a lock run changed for one package; None where it was not, or is no longer, there."""

    package: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Locked:
    """The outcome of locking one input.

    Attributes:
        changes: to the lock that was there.
        rehashed: releases that stay with other files than before: how many hashes came, how many went. A file that
            came late to an old release is how that can be poisoned.
        passed_over: releases (`name==version`) that the resolver wanted and the policy found too young.
    """

    changes: tuple[Change, ...]
    rehashed: dict[str, tuple[int, int]]
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class Ripeness:
    """Which releases are too young to be locked.

    Attributes:
        rule: of the policy.
        now: against which ages are measured, with a zone.
        index: tells upload times (PEP 700).
    """

    rule: Ripening
    now: datetime
    index: Index

    def unripe(self, pins: Sequence[Pin]) -> list[Pin]:
        """The pins whose newest file is younger than the policy asks; what no index dates counts as ripe here."""
        asked = [pin for pin in pins if self.rule.reason_for(pin.name, pin.version) is None]
        with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:
            return [pin for pin, young in zip(asked, pool.map(self._is_young, asked), strict=True) if young]

    def _is_young(self, pin: Pin) -> bool:
        # a file added late to an old release counts: that is how an old version can be poisoned
        offers = (file for file in self.index.files(pin.name) if version_of(file.filename) == pin.version)
        uploaded = max((file.uploaded for file in offers if file.uploaded), default=None)
        return uploaded is not None and self.now - uploaded < timedelta(days=self.rule.minimum_days)


def lock(
    requirements: Path,
    names: Sequence[str] = ORDER,
    *,
    upgrade: Sequence[str] = (),
    ripeness: Ripeness | None = None,
    environment: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> dict[str, Locked]:
    """Lock `<name>.in` into `<name>.lock`, each name in order.

    Versions that stand in a lock stay unless a requirement, `upgrade` or their age moves them. A lock is replaced only
    after the new one has been read back.

    Args:
        requirements: folder of the inputs and locks.
        names: which to lock.
        upgrade: packages to move to their newest version.
        ripeness: decides what is too young; None takes every release.
        environment: of the subprocess; the present one where None.
        progress: told each step.

    Raises:
        VendorError: VENDOR_TOOL_FAILED, VENDOR_UNRIPE, VENDOR_LOCK_MALFORMED, VENDOR_LOCK_FOREIGN,
            VENDOR_LOCK_UNHASHED.
    """
    outcome: dict[str, Locked] = {}
    (requirements / _UNRIPE).unlink(missing_ok=True)  # of a run that was killed
    for name in names:
        progress(f"locking {name}", None, None)
        target = requirements / f"{name}.lock"
        before = _pins(target)
        data, lock_, passed_over = _ripe(requirements, name, upgrade, ripeness, environment, progress)
        if not target.exists() or read_regular(target, max_bytes=MAX_LOCK_BYTES) != data:
            write_atomic(target, data)
        now = {pin.name: pin for pin in lock_.pins}
        versions, versions_now = ({pin.name: str(pin.version) for pin in pins.values()} for pins in (before, now))
        changes = tuple(
            Change(package, versions.get(package), versions_now.get(package))
            for package in sorted(before.keys() | now.keys())
            if versions.get(package) != versions_now.get(package)
        )
        rehashed = {
            str(pin): (len(pin.hashes - old.hashes), len(old.hashes - pin.hashes))
            for pin in lock_.pins
            if (old := before.get(pin.name)) and old.version == pin.version and old.hashes != pin.hashes
        }
        outcome[name] = Locked(changes, rehashed, passed_over)
    return outcome


def _pins(path: Path) -> dict[str, Pin]:
    if not path.exists():
        return {}
    return {pin.name: pin for pin in parse_lock(read_regular(path, max_bytes=MAX_LOCK_BYTES), name=path.name).pins}


def _ripe(
    requirements: Path,
    name: str,
    upgrade: Sequence[str],
    ripeness: Ripeness | None,
    environment: Mapping[str, str] | None,
    progress: Progress,
) -> tuple[bytes, Lock, tuple[str, ...]]:
    """Compile until nothing in the lock is too young."""
    passed_over: list[str] = []
    while True:
        with _constraints(requirements, passed_over) as constraints:
            try:
                data = _compile(requirements, name, upgrade, constraints, environment)
            except VendorError as error:
                if not passed_over:
                    raise
                raise VendorError(
                    "VENDOR_UNRIPE",
                    f"{name}: cannot be resolved without releases that are too young",
                    young=passed_over,
                    says=error.evidence.get("says", error.cause),
                ) from None
        lock_ = parse_lock(data, name=f"{name}.lock")
        young = ripeness.unripe(lock_.pins) if ripeness else []
        if not young:
            return data, lock_, tuple(passed_over)
        progress(f"passing over {', '.join(map(str, young))}: too young", None, None)
        passed_over += map(str, young)


@contextmanager
def _constraints(requirements: Path, passed_over: Sequence[str]) -> Iterator[list[str]]:
    path = requirements / _UNRIPE
    if not passed_over:
        yield []
        return
    path.write_text("".join(f"{release.replace('==', '!=', 1)}\n" for release in passed_over))
    try:
        yield [f"--constraint={_UNRIPE}"]
    finally:
        path.unlink()


def _compile(
    requirements: Path,
    name: str,
    upgrade: Sequence[str],
    constraints: Sequence[str],
    environment: Mapping[str, str] | None,
) -> bytes:
    source, target, work = (requirements / f"{name}{suffix}" for suffix in (".in", ".lock", ".lock.new"))
    if not source.exists():
        raise VendorError("VENDOR_TOOL_FAILED", f"{source} is missing", tool="pip-compile", path=str(source))
    command = [sys.executable, "-m", "piptools", "compile", *_OPTIONS, *constraints]
    command += ["--allow-unsafe"] if name in ALONE else [f"--unsafe-package={package}" for package in sorted(ALONE)]
    command += [f"--upgrade-package={package}" for package in upgrade]
    base = os.environ if environment is None else environment
    try:
        if target.exists():  # what stands there is what pip-compile prefers
            work.write_bytes(target.read_bytes())
        result = subprocess.run(
            [*command, f"--output-file={work.name}", source.name],
            cwd=requirements,
            env={**base, "CUSTOM_COMPILE_COMMAND": "appliance vendor lock"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LOCK_TIMEOUT_S,
        )
        if result.returncode != 0:
            raise VendorError(
                "VENDOR_TOOL_FAILED",
                f"pip-compile cannot resolve {source.name}",
                tool="pip-compile",
                status=result.returncode,
                says=_last_words(result.stderr),
            )
        data = _without_constraints(work.read_bytes())
        return _alone(data, name) if name in ALONE else data
    except subprocess.TimeoutExpired:
        cause = f"pip-compile did not finish {source.name} in {LOCK_TIMEOUT_S:.0f} s"
        raise VendorError("VENDOR_TOOL_FAILED", cause, tool="pip-compile") from None
    finally:
        work.unlink(missing_ok=True)


def _without_constraints(data: bytes) -> bytes:
    """Leave the passing constraint file out of the `# via` comments: a later run without it writes the same lock."""
    text = data.decode("utf-8")
    text = re.sub(rf"(?m)^    # via -c {re.escape(_UNRIPE)}\n", "", text)
    text = re.sub(rf"(?m)^    #   -c {re.escape(_UNRIPE)}\n", "", text)
    # a list that has lost all but one entry is written on one line
    return re.sub(r"(?m)^    # via\n    #   (.*)\n(?!    #   )", r"    # via \1\n", text).encode()


def _alone(data: bytes, name: str) -> bytes:
    """Keep the package itself; what it needs stands in the lock of the profile."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", data.decode("utf-8"))
    kept = [re.sub(r"\n\n#.*\Z", "\n", block, flags=re.DOTALL) for block in blocks[1:] if block.startswith(f"{name}==")]
    head = blocks[0].split("\n\n#")[0].rstrip("\n")
    return "\n".join([head, *(block.rstrip("\n") for block in kept), ""]).encode()


def _last_words(text: str) -> str:
    """The lines of pip's complaint that a person needs, without the traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|Could not|No matching|The conflict|.*depends on)", line)]
    return "\n".join((errors or lines)[-6:])[:2000]
