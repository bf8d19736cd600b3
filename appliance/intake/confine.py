"""A process gives up everything but its memory and the pipes it has: Landlock, seccomp, resource limits.

Called by the conversion worker after its imports and before it touches a producer's bytes. From then on the process
opens no file, makes no socket, starts no program and no thread, and maps no code; trying to is its end (SIGSYS) or an
error, and the parent sees which. Landlock (ABI 1 to 7, through its three system calls) and seccomp (libseccomp) each
enforce this alone; both are used, and either missing is said, never passed over.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from dataclasses import dataclass
from typing import Any

from appliance.errors import IntakeError, catalogue

_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # the same number on every architecture
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
# every access right of each ABI, in include/uapi/linux/landlock.h
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # ABI -> number of bits
_NET_RIGHTS, _SCOPES = 0b11, 0b11  # TCP bind and connect (ABI 4); abstract sockets and signals (ABI 6)

# what a numerical computation on bytes in memory needs
_ALLOWED = (
    "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "exit", "exit_group", "fstat", "futex",
    "getcpu", "getpid", "getrandom", "getrusage", "gettid", "gettimeofday", "lseek", "madvise", "mremap", "munmap",
    "nanosleep", "newfstatat", "read", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "sched_getaffinity", "sched_yield", "set_robust_list", "sigaltstack", "sysinfo", "time", "uname",
)  # fmt: skip
# nothing honest asks for these: the attempt itself is the finding
_DEADLY = (
    "accept", "accept4", "bind", "bpf", "chmod", "chown", "connect", "creat", "execve", "execveat", "fork",
    "io_uring_setup", "kill", "link", "linkat", "listen", "mkdir", "mknod", "mount", "open_by_handle_at",
    "pidfd_open", "process_vm_readv", "process_vm_writev", "ptrace", "rename", "renameat", "renameat2", "rmdir",
    "sendmsg", "sendto", "setuid", "socket", "socketpair", "symlink", "symlinkat", "tkill", "unlink", "unlinkat",
    "unshare", "userfaultfd", "vfork",
)  # fmt: skip
_PROT_EXEC = 4


@dataclass(frozen=True)
class Confinement:
    """What holds the process.

    Attributes:
        landlock: the ABI in force, 0 for none.
        seccomp: whether the system call filter is in force.
    """

    landlock: int
    seccomp: bool


def confine(*, memory_bytes: int, cpu_seconds: int) -> Confinement:
    """Confine this process for good.

    Args:
        memory_bytes: address space beyond what is mapped now.
        cpu_seconds: processor time from now on.

    Raises:
        IntakeError: INTAKE_SANDBOX where the system call filter cannot be set: nothing is loaded then.
    """
    rules = _filter()  # libraries are opened before the files are gone
    _limits(memory_bytes, cpu_seconds)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise IntakeError("INTAKE_SANDBOX", "the kernel does not let this process renounce privileges")
    landlock = _landlock(libc)
    try:
        rules.load()
    except OSError as error:
        raise IntakeError("INTAKE_SANDBOX", f"the kernel refused the system call filter: {error}") from None
    return Confinement(landlock, seccomp=True)


def _limits(memory_bytes: int, cpu_seconds: int) -> None:
    with open("/proc/self/statm", "rb") as stream:
        mapped = int(stream.read().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    for limit, value in (
        (resource.RLIMIT_AS, mapped + memory_bytes),
        (resource.RLIMIT_CPU, spent + cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _landlock(libc: ctypes.CDLL) -> int:
    """Deny every path and every TCP port; the ABI in force, or 0."""
    abi = int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    if abi < 1:
        return 0
    files = (1 << _FS_RIGHTS[min(abi, 5)]) - 1
    attributes = struct.pack("=QQQ", files, _NET_RIGHTS if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = int(libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
    if ruleset < 0:
        return 0
    try:
        return abi if libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _filter() -> Any:
    """The system call filter, not yet in force."""
    catalogue()  # a refusal after this point needs no file either
    try:
        import errno

        import pyseccomp as seccomp

        rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        for name in _ALLOWED:
            rules.add_rule(seccomp.ALLOW, name)
        for stream in (1, 2):
            rules.add_rule(seccomp.ALLOW, "write", seccomp.Arg(0, seccomp.EQ, stream))
        for name in ("mmap", "mprotect"):
            rules.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, _PROT_EXEC, 0))
        for name in _DEADLY:
            with contextlib.suppress(OSError, RuntimeError):  # not every architecture has every call
                rules.add_rule(seccomp.KILL_PROCESS, name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise IntakeError("INTAKE_SANDBOX", f"no system call filter: {type(error).__name__}: {error}") from None
    return rules
