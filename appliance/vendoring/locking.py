"""Write the locks with pip-tools, on the connected side; what it wrote is read back by our own strict reader.

Profiles are locked on top of each other (`-c gateway.lock` in `training.in`), so that a package has one version
everywhere. torch is locked alone: its CPU build must be installed before a resolver can think of another.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import VendorError
from appliance.files import read_regular, write_atomic
from appliance.vendoring.fetch import Progress, silent
from appliance.vendoring.locks import MAX_LOCK_BYTES, Lock, parse_lock

ORDER = ("gateway", "torch", "training", "dev")
ALONE = frozenset({"torch"})  # locked without what it needs, and left out of every other lock
LOCK_TIMEOUT_S = 3600.0
_OPTIONS = (
    "--quiet", "--generate-hashes", "--strip-extras", "--resolver=backtracking", "--no-emit-index-url",
    "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What a lock run changed for one package; None where it was not, or is no longer, there."""

    package: str
    before: str | None
    after: str | None


def lock(
    requirements: Path,
    names: Sequence[str] = ORDER,
    *,
    upgrade: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> dict[str, list[Change]]:
    """Lock `<name>.in` into `<name>.lock`, each name in order.

    Versions that stand in a lock stay unless a requirement, or `upgrade`, moves them. A lock is replaced only after
    the new one has been read back.

    Args:
        requirements: folder of the inputs and locks.
        names: which to lock.
        upgrade: packages to move to their newest version.
        environment: of the subprocess; the present one where None.
        progress: told each step.

    Returns:
        Lock name -> what changed.

    Raises:
        VendorError: VENDOR_TOOL_FAILED, VENDOR_LOCK_MALFORMED, VENDOR_LOCK_FOREIGN, VENDOR_LOCK_UNHASHED.
    """
    changes: dict[str, list[Change]] = {}
    for name in names:
        progress(f"locking {name}", None, None)
        target = requirements / f"{name}.lock"
        before = _versions(target, name)
        data = _compile(requirements, name, upgrade, environment)
        after = parse_lock(data, name=target.name)
        if not target.exists() or read_regular(target, max_bytes=MAX_LOCK_BYTES) != data:
            write_atomic(target, data)
        now = {pin.name: str(pin.version) for pin in after.pins}
        changes[name] = [
            Change(package, before.get(package), now.get(package))
            for package in sorted(before.keys() | now.keys())
            if before.get(package) != now.get(package)
        ]
    return changes


def _versions(path: Path, name: str) -> dict[str, str]:
    if not path.exists():
        return {}
    old: Lock = parse_lock(read_regular(path, max_bytes=MAX_LOCK_BYTES), name=name)
    return {pin.name: str(pin.version) for pin in old.pins}


def _compile(requirements: Path, name: str, upgrade: Sequence[str], environment: Mapping[str, str] | None) -> bytes:
    source, target, work = (requirements / f"{name}{suffix}" for suffix in (".in", ".lock", ".lock.new"))
    if not source.exists():
        raise VendorError("VENDOR_TOOL_FAILED", f"{source} is missing", tool="pip-compile", path=str(source))
    command = [sys.executable, "-m", "piptools", "compile", *_OPTIONS]
    command += ["--allow-unsafe"] if name in ALONE else [f"--unsafe-package={package}" for package in sorted(ALONE)]
    command += [f"--upgrade-package={package}" for package in upgrade]
    try:
        if target.exists():  # what stands there is what pip-compile prefers
            work.write_bytes(target.read_bytes())
        result = subprocess.run(
            [*command, f"--output-file={work.name}", source.name],
            cwd=requirements,
            env={
                **(os.environ if environment is None else environment),
                "CUSTOM_COMPILE_COMMAND": "appliance vendor lock",
            },
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
        return _alone(work.read_bytes(), name) if name in ALONE else work.read_bytes()
    except subprocess.TimeoutExpired:
        raise VendorError(
            "VENDOR_TOOL_FAILED",
            f"pip-compile did not finish {source.name} in {LOCK_TIMEOUT_S:.0f} s",
            tool="pip-compile",
        ) from None
    finally:
        work.unlink(missing_ok=True)


def _alone(data: bytes, name: str) -> bytes:
    """Keep the package itself; what it needs stands in the lock of the profile."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", data.decode("utf-8"))
    kept = [re.sub(r"\n\n#.*\Z", "\n", block, flags=re.DOTALL) for block in blocks[1:] if block.startswith(f"{name}==")]
    head = blocks[0].split("\n\n#")[0].rstrip("\n")
    return "\n".join([head, *(block.rstrip("\n") for block in kept), ""]).encode()


def _last_words(text: str) -> str:
    """The lines of pip's complaint that a person needs, without the traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [
        line for line in lines if re.match(r"(ERROR|Could not|No matching|.*ResolutionImpossible|.*conflict)", line)
    ]
    return "\n".join((errors or lines)[-6:])[:2000]
