"""Space, permissions, kernel, sockets: read from the system's own interfaces."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from appliance.operations.doctor.snapshot import Attempt, FileMode, Kernel, Listener, Volume

_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def volumes(paths: Iterable[Path], *, releases: Path) -> tuple[Volume, ...]:
    """The file systems below the paths, each once; the next release will want room below `releases`."""
    found: dict[int, Volume] = {}
    device = releases.stat().st_dev if releases.exists() else None
    for path in paths:
        with contextlib.suppress(OSError):  # not there, or not ours to see
            space = os.statvfs(path)
            found.setdefault(
                path.stat().st_dev,
                Volume(
                    path,
                    space.f_bavail * space.f_frsize,
                    space.f_blocks * space.f_frsize,
                    space.f_favail,
                    space.f_files,
                    bool(space.f_flag & os.ST_RDONLY) and path.name == "state",
                    releases=path.stat().st_dev == device,
                ),
            )
    return tuple(found.values())


def modes(secrets: Iterable[Path], state: Iterable[Path], release: Iterable[Path]) -> tuple[FileMode, ...]:
    """Modes of the paths that exist; links are not followed."""
    kinds = (("secret", secrets), ("state", state), ("release", release))
    return tuple(found for kind, paths in kinds for path in paths for found in _mode(path, kind))


def kernel() -> Kernel:
    """What the kernel offers."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    scope = _text("/proc/sys/kernel/yama/ptrace_scope")
    return Kernel(
        release=platform.release(),
        landlock_abi=max(abi, 0),
        seccomp="errno" in _text("/proc/sys/kernel/seccomp/actions_avail"),
        user_namespaces=_text("/proc/sys/user/max_user_namespaces") not in {"", "0"},
        core_pattern_piped=_text("/proc/sys/kernel/core_pattern").startswith("|"),
        core_limit_bytes=resource.getrlimit(resource.RLIMIT_CORE)[0] & 0x7FFFFFFFFFFFFFFF,
        ptrace_scope=int(scope) if scope.isdigit() else None,
    )


def listeners(proc: Path = Path("/proc")) -> tuple[Listener, ...]:
    """Listening TCP sockets of this network namespace."""
    commands = dict(_socket_commands(proc))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in _text(str(proc / "net" / table)).splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                address, port = fields[1].split(":")
                found.add(Listener(_address(address), int(port, 16), commands.get(fields[9], "")))
    return tuple(sorted(found, key=lambda each: (each.port, each.address)))


def attempts(targets: Iterable[str], *, timeout_s: float = 1.0) -> tuple[Attempt, ...]:
    """Try to connect to each `host:port`; a sealed room lets none succeed."""
    return tuple(Attempt(target, _attempt(target, timeout_s)) for target in targets)


def routes(addresses: Iterable[str]) -> tuple[Attempt, ...]:
    """Ask the kernel for a route to each address. Connecting a datagram socket sends nothing."""
    return tuple(Attempt(address, _route(address)) for address in addresses)


def _mode(path: Path, kind: str) -> Iterator[FileMode]:
    try:
        status = path.lstat()
    except OSError:
        return
    if not stat.S_ISLNK(status.st_mode):
        yield FileMode(path, kind, stat.S_IMODE(status.st_mode), status.st_uid)


def _attempt(target: str, timeout_s: float) -> str:
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return "connected"
    except TimeoutError:
        return "timeout"
    except socket.gaierror:
        return "no such name"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "error")


def _route(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # the discard port
    except OSError:
        return "no route"
    return "routed"


def _address(text: str) -> str:
    raw = bytes.fromhex(text)
    words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))  # words in host order (little-endian)
    if len(words) == 16 and words[:12] == b"\0" * 10 + b"\xff\xff":
        words = words[12:]
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)


def _socket_commands(proc: Path) -> Iterator[tuple[str, str]]:
    """Socket inode -> command, for the processes this user may look into."""
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "comm").read_text().strip()
            for descriptor in (process / "fd").iterdir():
                link = str(descriptor.readlink())
                if link.startswith("socket:["):
                    yield link[8:-1], command
        except OSError:
            continue


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""
