"""The facts that the checks judge: gathered once, then nothing looks at the host again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, TrustError
from appliance.trust import clock


@dataclass(frozen=True)
class Trust:
    """The host's trust state.

    Attributes:
        expires: metadata role (root, timestamp, snapshot, targets) -> when it expires.
        versions: metadata role -> version.
        keys_expire: name of a CA, log or time-stamping key in the trusted root -> end of its window, None where open.
        floor: the latest time that is proven.
    """

    expires: Mapping[str, datetime]
    versions: Mapping[str, int]
    keys_expire: Mapping[str, datetime | None]
    floor: datetime

    def judged(self, now: datetime) -> datetime:
        """The time to judge expiry by: a clock that cannot be right must hide nothing that has ended."""
        try:
            return clock.checked(now, self.floor)
        except TrustError:
            return self.floor


@dataclass(frozen=True)
class Volume:
    """A file system, in bytes and inodes; `inodes` is 0 where it does not count them.

    `releases` says whether the next release will be installed there.
    """

    path: Path
    free_bytes: int
    size_bytes: int
    free_inodes: int = 0
    inodes: int = 0
    read_only: bool = False
    releases: bool = True


@dataclass(frozen=True)
class Certificate:
    """A TLS certificate file.

    Attributes:
        use: what it serves, e.g. `gateway`.
        path: of the PEM file.
        subject, issuer: as RFC 4514 text.
        not_before, not_after: of the leaf.
        problem: why the chain, the key or the file is not usable; empty where it is.
    """

    use: str
    path: Path
    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    problem: str = ""


@dataclass(frozen=True)
class Drift:
    """Installed files against the signed manifest.

    Attributes:
        release: its id.
        signer: identity that signed the manifest.
        compared: how many files.
        deep: whether every byte was hashed, or sizes and small files only.
        changed, missing, foreign: paths below the release.
        signature_problem: where the manifest's signature does not verify now.
    """

    release: str
    signer: str
    compared: int
    deep: bool
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    signature_problem: ApplianceError | None = None


@dataclass(frozen=True)
class FileMode:
    """A path whose mode matters.

    Attributes:
        path: where.
        kind: `secret` (its owner alone), `state` (nobody else writes), `release` (nobody but its owner writes).
        mode: permission bits.
        owner: numeric user id.
    """

    path: Path
    kind: str
    mode: int
    owner: int


@dataclass(frozen=True)
class Kernel:
    """What the kernel offers for isolation; `landlock_abi` 0 means none."""

    release: str
    landlock_abi: int
    seccomp: bool
    user_namespaces: bool
    core_pattern_piped: bool
    core_limit_bytes: int
    ptrace_scope: int | None


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket and the command that holds it, empty where it cannot be seen."""

    address: str
    port: int
    command: str = ""

    @property
    def loopback(self) -> bool:
        """Whether only this host reaches it."""
        return self.address.startswith("127.") or self.address == "::1"


@dataclass(frozen=True)
class Attempt:
    """One try to leave the room: where to, and how it ended.

    `connected` or an error's name after a real try; `routed` or `no route` where only the kernel was asked.
    """

    target: str
    outcome: str

    @property
    def escaped(self) -> bool:
        """Whether something outside could be reached: an answer, or a refusal sent by a host out there."""
        return self.outcome in {"connected", "ECONNREFUSED"}


@dataclass(frozen=True)
class Channel:
    """A registry channel as this host's sidecar follows it."""

    name: str
    version: str | None
    epoch: int
    contact: datetime | None
    expires: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """Everything at one moment. A field that could not be gathered holds the refusal instead.

    Attributes:
        at: the clock.
        uid: who looks.
        trust, volumes, certificates, drift, modes, kernel, listeners, egress, channels: as above.
        gateway: `operations.status.collect`.
        expected_ports: ports that the configuration names.
        unfinished: release whose installation was begun and not finished.
    """

    at: datetime
    uid: int
    trust: Trust | ApplianceError
    volumes: tuple[Volume, ...]
    certificates: tuple[Certificate, ...] | ApplianceError
    drift: Drift | ApplianceError | None
    modes: tuple[FileMode, ...]
    kernel: Kernel
    listeners: tuple[Listener, ...]
    egress: tuple[Attempt, ...]
    channels: tuple[Channel, ...] | ApplianceError
    gateway: Mapping[str, Any] | ApplianceError
    expected_ports: frozenset[int] = field(default_factory=frozenset)
    unfinished: str | None = None

    @property
    def time(self) -> datetime:
        """What expiry and ages are judged by: the clock, or the proven time where the clock cannot be right."""
        return self.at if isinstance(self.trust, ApplianceError) else self.trust.judged(self.at)
