"""Whether a host can carry a release, asked before anything is written: named checks, each with its remedy.

`read_host` gathers facts, `findings` judges them and nothing else, so that every check can be tested without the host
it warns about.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .manifest import Manifest
from .refusal import Refused

_BASELINE = {"x86_64": {"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"}, "aarch64": {"asimd"}}  # what the wheels assume
_FAST = {"x86_64": {"avx2", "fma"}, "aarch64": {"asimddp"}}  # what the encoder is quick with
CLOCK_TOLERANCE = dt.timedelta(hours=24)
CLOCK_FAR = dt.timedelta(days=2 * 365)  # after the release: nothing here can tell whether it is true
GATEWAY_PORT = 8443  # of the configuration that a first installation brings
_BYTECODE = 1.2  # compiled modules lie beside their sources
_OURS = {"releases", "current", "state", "etc", "lost+found"}
_WITHOUT_LINKS = {"vfat", "msdos", "exfat"}  # the switch between releases is a symbolic link


@dataclass(frozen=True)
class Host:
    """Facts of a host.

    Attributes:
        python: (major, minor) of the interpreter for the environment.
        architecture: as `uname -m` prints it.
        glibc: (major, minor), or None where the C library is another.
        cpu_features: flags of the first processor; empty where unknown.
        free_bytes, free_inodes: on the prefix's file system; inodes None where it does not count them.
        file_system, mount_point: of the prefix, as the kernel names them; empty where unknown.
        noexec, read_only: whether it forbids execution, or writing.
        foreign: what lies below a prefix that holds no installation yet, and belongs to none.
        exists: whether the prefix is there.
        writable: whether the prefix, or the nearest folder above it that exists, may be written.
        selinux_enforcing: whether SELinux enforces.
        ports, busy_ports: those asked about, and of them those in use.
        now: the clock.
    """

    python: tuple[int, int]
    architecture: str
    glibc: tuple[int, int] | None
    cpu_features: frozenset[str]
    free_bytes: int
    free_inodes: int | None
    file_system: str
    mount_point: str
    noexec: bool
    read_only: bool
    foreign: tuple[str, ...]
    exists: bool
    writable: bool
    selinux_enforcing: bool
    ports: tuple[int, ...]
    busy_ports: tuple[int, ...]
    now: dt.datetime


@dataclass(frozen=True)
class Finding:
    """The outcome of one named check.

    Attributes:
        check: its name.
        status: `ok`, `warning` or `refused`.
        text: what was found.
        code: for `refused`, the code.
        remedy: what to do about it; empty for `ok`.
    """

    check: str
    status: str
    text: str
    code: str = ""
    remedy: str = ""


def read_host(prefix: Path, *, now: dt.datetime, python: tuple[int, int], ports: Sequence[int] = ()) -> Host:
    """Gather the facts; touches nothing.

    Args:
        prefix: where the appliance shall live.
        now: the clock.
        python: (major, minor) of the interpreter for the environment.
        ports: to ask about; where none is named and nothing runs here yet, the gateway's.
    """
    nearest = prefix.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    space = os.statvfs(nearest)
    mount_point, file_system = _mounted(nearest)
    ports = tuple(ports) or (() if (prefix / "current").is_symlink() else (GATEWAY_PORT,))
    return Host(
        python=python,
        architecture=platform.machine(),
        glibc=_glibc(),
        cpu_features=_cpu_features(),
        free_bytes=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail if space.f_files else None,
        file_system=file_system,
        mount_point=mount_point,
        noexec=bool(space.f_flag & os.ST_NOEXEC),
        read_only=bool(space.f_flag & os.ST_RDONLY),
        foreign=_foreign(prefix.absolute()),
        exists=nearest == prefix.absolute(),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        selinux_enforcing=_text("/sys/fs/selinux/enforce").strip() == "1",
        ports=ports,
        busy_ports=tuple(port for port in ports if _busy(port)),
        now=now,
    )


def preflight_findings(manifest: Manifest, host: Host, prefix: Path, *, staged_bytes: int = 0) -> list[Finding]:
    """Judge a host for a release.

    Args:
        manifest: the release.
        host: the facts.
        prefix: for messages.
        staged_bytes: what an earlier, killed run has extracted already.
    """
    return [
        _python(manifest, host),
        _architecture(manifest, host),
        _c_library(manifest, host),
        _cpu(host),
        _disk(manifest, host, prefix, staged_bytes),
        _inodes(manifest, host, prefix),
        _prefix(host, prefix),
        _permissions(host, prefix),
        _mount(host, prefix),
        _clock(manifest, host),
        _ports(host),
        _selinux(host, prefix),
    ]


def refuse_unfit(findings: Sequence[Finding]) -> None:
    """Refuse with the first finding that forbids the installation; all of them are evidence.

    Raises:
        Refused: the code of that finding.
    """
    bad = [finding for finding in findings if finding.status == "refused"]
    if bad:
        evidence = {finding.check: f"{finding.text} ({finding.remedy})" for finding in bad[1:]}
        raise Refused(bad[0].code, bad[0].text, remedy=f"{bad[0].remedy}.", **evidence)


def _python(manifest: Manifest, host: Host) -> Finding:
    have, need = ".".join(map(str, host.python)), manifest.target["python"]
    if have == need:
        return Finding("python", "ok", f"Python {have}")
    return Finding(
        "python", "refused", f"the release is for Python {need}, this is {have}", "INSTALL_PYTHON",
        f"Run it with Python {need}: python{need} stage0.py ..., or build for this Python",
    )  # fmt: skip


def _architecture(manifest: Manifest, host: Host) -> Finding:
    need = manifest.target["architecture"]
    if host.architecture == need:
        return Finding("architecture", "ok", need)
    return Finding(
        "architecture", "refused", f"the release is for {need}, this is {host.architecture}", "INSTALL_ARCHITECTURE",
        "Bring the release built for this architecture",
    )  # fmt: skip


def _c_library(manifest: Manifest, host: Host) -> Finding:
    need = tuple(int(part) for part in manifest.target["glibc"].split("."))
    if host.glibc is not None and host.glibc >= need:
        return Finding("glibc", "ok", f"glibc {host.glibc[0]}.{host.glibc[1]}")
    have = f"glibc {host.glibc[0]}.{host.glibc[1]}" if host.glibc else "no glibc"
    return Finding(
        "glibc", "refused", f"the release needs glibc {manifest.target['glibc']}, here is {have}", "INSTALL_GLIBC",
        "Use a distribution with a newer glibc, see `ldd --version`",
    )  # fmt: skip


def _cpu(host: Host) -> Finding:
    if not host.cpu_features:
        return Finding("cpu", "warning", "processor features are unknown", remedy="Check `lscpu`")
    missing = _BASELINE.get(host.architecture, set()) - host.cpu_features
    if missing:
        return Finding(
            "cpu", "refused", f"the processor lacks {', '.join(sorted(missing))}", "INSTALL_CPU",
            "Use a newer processor, or give the virtual machine the host's CPU model",
        )  # fmt: skip
    slow = _FAST.get(host.architecture, set()) - host.cpu_features
    if slow:
        return Finding(
            "cpu", "warning", f"without {', '.join(sorted(slow))} prompts are encoded several times more slowly",
            remedy="Give the virtual machine the host's CPU model",
        )  # fmt: skip
    return Finding("cpu", "ok", "all features that the wheels use")


def _disk(manifest: Manifest, host: Host, prefix: Path, staged_bytes: int) -> Finding:
    need = max(0, manifest.payload_bytes - staged_bytes) + int(manifest.installed_bytes * _BYTECODE)
    text = f"{need / 1e9:.2f} GB needed, {host.free_bytes / 1e9:.2f} GB free at {prefix}"
    if host.free_bytes >= need:
        return Finding("disk", "ok", text)
    return Finding(
        "disk", "refused", text, "INSTALL_NO_SPACE", f"Free {(need - host.free_bytes) / 1e9:.2f} GB, see `df -h`"
    )


def _inodes(manifest: Manifest, host: Host, prefix: Path) -> Finding:
    need = int(manifest.installed_files * 2.2) + len(manifest.members)
    if host.free_inodes is None or host.free_inodes >= need:
        return Finding("inodes", "ok", f"{need} needed")
    return Finding(
        "inodes", "refused", f"{need} inodes needed, {host.free_inodes} free at {prefix}", "INSTALL_NO_SPACE",
        "Remove files or make the file system with more inodes, see `df -i`",
    )  # fmt: skip


def _prefix(host: Host, prefix: Path) -> Finding:
    if host.file_system in _WITHOUT_LINKS:
        return Finding(
            "prefix", "refused", f"{prefix} lies on {host.file_system}, which knows no symbolic links",
            "INSTALL_PREFIX", "Choose a prefix on ext4, xfs or the like, see `findmnt -D`",
        )  # fmt: skip
    if host.foreign:
        return Finding(
            "prefix", "refused", f"{prefix} holds other things: {', '.join(host.foreign[:5])}",
            "INSTALL_PREFIX", "Choose an empty folder, or one that does not exist yet",
        )  # fmt: skip
    return Finding("prefix", "ok", f"{prefix} is the appliance's own")


def _permissions(host: Host, prefix: Path) -> Finding:
    place = shlex.quote(str(prefix))
    if host.read_only:
        return Finding(
            "permissions", "refused", f"{prefix} lies on a file system mounted read-only", "INSTALL_PERMISSION",
            f"Choose another prefix, or: mount -o remount,rw {shlex.quote(host.mount_point)}",
        )  # fmt: skip
    if host.writable:
        return Finding("permissions", "ok", f"{prefix} may be written")
    return Finding(
        "permissions", "refused", f"{prefix} may not be written by this user", "INSTALL_PERMISSION",
        f"Run as its owner, see: ls -ld {place}" if host.exists
        else f"Run as root, or have it made for you: sudo install -d -o $USER {place}",
    )  # fmt: skip


def _mount(host: Host, prefix: Path) -> Finding:
    if not host.noexec:
        return Finding("mount", "ok", "execution is allowed")
    return Finding(
        "mount", "refused", f"{prefix} lies on a file system mounted noexec", "INSTALL_NOEXEC",
        f"Choose another prefix, or: mount -o remount,exec {shlex.quote(host.mount_point)}",
    )  # fmt: skip


def _clock(manifest: Manifest, host: Host) -> Finding:
    created = dt.datetime.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)
    if host.now > created + CLOCK_FAR:
        return Finding(
            "clock", "warning", f"clock {host.now:%Y-%m-%d}, long after the release, which is of {created:%Y-%m-%d}",
            remedy="Compare it with a watch; if it is wrong: date -u -s 'YYYY-MM-DD HH:MM'",
        )  # fmt: skip
    if host.now >= created - CLOCK_TOLERANCE:
        return Finding("clock", "ok", host.now.strftime("%Y-%m-%d %H:%M UTC"))
    return Finding(
        "clock", "refused", f"clock {host.now:%Y-%m-%d}, but the release is of {created:%Y-%m-%d}", "INSTALL_CLOCK",
        f"Set the clock: date -u -s '{created:%Y-%m-%d %H:%M}' or later",
    )  # fmt: skip


def _ports(host: Host) -> Finding:
    if not host.busy_ports:
        free = f"free: {', '.join(map(str, host.ports))}" if host.ports else "none asked about: the gateway has its own"
        return Finding("ports", "ok", free)
    busy = ", ".join(map(str, host.busy_ports))
    return Finding(
        "ports", "warning", f"in use: {busy}", remedy=f"See who holds it: ss -ltnp 'sport = :{host.busy_ports[0]}'"
    )


def _selinux(host: Host, prefix: Path) -> Finding:
    if not host.selinux_enforcing:
        return Finding("selinux", "ok", "not enforcing")
    return Finding(
        "selinux", "warning", "SELinux enforces",
        remedy=f"Label the programs: semanage fcontext -a -t bin_t '{prefix}/releases/[^/]+/env/bin(/.*)?' "
        f"&& restorecon -R {shlex.quote(str(prefix))}",
    )  # fmt: skip


def _foreign(prefix: Path) -> tuple[str, ...]:
    try:
        if (prefix / "state" / "install").is_dir():
            return ()
        names = sorted(entry.name for entry in prefix.iterdir())
    except OSError:  # not there yet, or not to be entered: another check says so
        return ()
    return tuple(name for name in names if name not in _OURS and not name.startswith("."))


def _mounted(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> tuple[str, str]:
    """Where the file system that a folder lies on is mounted, and its kind; proc(5) describes the table."""
    where, found, kind = f"{folder.resolve()}/", "", ""
    for line in _text(str(table)).splitlines():
        fields = line.split(" ")
        if len(fields) < 8 or "-" not in fields[6:-1]:
            continue
        point = fields[4].replace("\\040", " ").rstrip("/") + "/"
        if where.startswith(point) and len(point) >= len(found):  # of two at one place the later covers the earlier
            found, kind = point, fields[fields.index("-", 6) + 1]
    return found.rstrip("/") or found, kind


def _glibc() -> tuple[int, int] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) if name == "glibc" else None
    except (ValueError, OSError):
        return None


def _cpu_features() -> frozenset[str]:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def _busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
