"""The host: space, permissions, kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.operations.doctor.finding import Finding, critical, fine, warning
from appliance.operations.doctor.snapshot import FileMode, Snapshot

SPACE_WARNING_BYTES = 3 * 1024**3  # room for one more release
SPACE_SMALL_BYTES = 512 * 1024**2  # where no release will go
SPACE_CRITICAL_BYTES = 256 * 1024**2
INODES_WARNING = 0.05  # share that is free
LANDLOCK_WANTED = 4  # the first ABI with TCP rules


def disk(snapshot: Snapshot) -> Iterator[Finding]:
    """Is there room?"""
    name = "disk"
    for volume in snapshot.volumes:
        evidence: dict[str, Any] = {
            "path": volume.path,
            "free_mb": volume.free_bytes // 10**6,
            "size_mb": volume.size_bytes // 10**6,
        }
        free = f"{volume.free_bytes / 1e9:.1f} GB free at {volume.path}"
        if volume.read_only:
            yield critical(name, "OPERATION_DISK_READ_ONLY", f"{volume.path} is mounted read-only", **evidence)
        elif volume.free_bytes < SPACE_CRITICAL_BYTES:
            yield critical(name, "OPERATION_DISK_LOW", f"only {free}", **evidence)
        elif volume.releases and volume.free_bytes < SPACE_WARNING_BYTES:
            yield warning(name, "OPERATION_DISK_LOW", f"{free}: not enough for the next release", **evidence)
        elif volume.free_bytes < SPACE_SMALL_BYTES:
            yield warning(name, "OPERATION_DISK_LOW", free, **evidence)
        elif volume.inodes and volume.free_inodes / volume.inodes < INODES_WARNING:
            text = f"{volume.free_inodes} inodes free at {volume.path}"
            yield warning(name, "OPERATION_DISK_LOW", text, free_inodes=volume.free_inodes, inodes=volume.inodes)
        else:
            yield fine(name, free, **evidence)


def permissions(snapshot: Snapshot) -> Iterator[Finding]:
    """Can others read secrets, or write what we trust?"""
    name = "permissions"
    open_paths = [(found, why) for found in snapshot.modes if (why := _too_open(found, snapshot.uid))]
    for found, why in open_paths:
        severity = critical if found.kind == "secret" else warning
        fix = f"chmod {'go-rwx' if found.kind == 'secret' else 'go-w'} {found.path}"
        evidence: dict[str, Any] = {"path": found.path, "mode": f"{found.mode:04o}", "owner": found.owner}
        yield severity(name, "OPERATION_PERMISSIONS", f"{found.path}: {why}", remedy=f"Run `{fix}`.", **evidence)
    if not open_paths:
        yield fine(name, f"{len(snapshot.modes)} paths with secrets, state and code are closed to others")


def kernel(snapshot: Snapshot) -> Iterator[Finding]:
    """Does the kernel have what the gateway closes its doors with?"""
    name = "kernel"
    found = snapshot.kernel
    evidence: dict[str, Any] = {"kernel": found.release, "landlock_abi": found.landlock_abi, "seccomp": found.seccomp}
    lacking = []
    if found.landlock_abi < LANDLOCK_WANTED:
        lacking.append(
            f"Landlock ABI {LANDLOCK_WANTED} (has {found.landlock_abi}): TCP rules rest on the firewall alone"
        )
    if not found.seccomp:
        lacking.append("seccomp filters")
    if lacking:
        yield warning(name, "OPERATION_KERNEL", f"kernel {found.release} lacks {'; '.join(lacking)}", **evidence)
    else:
        yield fine(name, f"kernel {found.release} has seccomp and Landlock ABI {found.landlock_abi}", **evidence)
    if found.core_pattern_piped and found.core_limit_bytes > 0:
        text = "a crash would hand memory, keys included, to a core-dump program"
        yield warning(name, "OPERATION_CORE_DUMPS", text, core_limit_bytes=found.core_limit_bytes)


def _too_open(found: FileMode, uid: int) -> str:
    if found.kind == "secret" and found.mode & 0o077:
        return f"others can open a secret (mode {found.mode:04o})"
    if found.mode & 0o022:
        return f"others can write here (mode {found.mode:04o})"
    if found.kind != "release" and found.owner not in {0, uid}:
        return f"it belongs to user {found.owner}, who is neither root nor the appliance"
    return ""
