"""The kernel's own locks for this process: Landlock for TCP connections, seccomp for what a gateway never calls.

Through `ctypes`, because the serving host carries no wrapper for either. Both are optional kernel features: a result
says what holds, and status shows it.

Sources: linux/landlock.h, linux/seccomp.h, linux/filter.h; landlock(7), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

_PR_SET_NO_NEW_PRIVS = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_RULE_NET_PORT = 2
_NET_CONNECT_TCP = 2
_FIRST_ABI_WITH_NET = 4

_SECCOMP_SET_MODE_FILTER = 1
_FLAG_TSYNC = 1
_RET_ALLOW, _RET_ERRNO, _RET_KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LD_ABS, _JEQ, _JSET, _RET, _AND = 0x20, 0x15, 0x45, 0x06, 0x54
_ARCHITECTURE, _NUMBER, _ARG0, _ARG1 = 4, 0, 16, 24  # offsets into struct seccomp_data
_AF_PACKET, _SOCK_RAW, _TYPE_MASK = 17, 3, 0xF
_X32_BIT = 0x40000000


class _Machine:
    """System call numbers of one architecture."""

    def __init__(self, audit: int, seccomp: int, sock: int, forbidden: tuple[int, ...]) -> None:
        self.audit, self.seccomp, self.socket, self.forbidden = audit, seccomp, sock, forbidden


# execve execveat ptrace process_vm_readv process_vm_writev mount kexec_load init_module finit_module bpf
# perf_event_open userfaultfd
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 317, 41, (59, 322, 101, 310, 311, 165, 246, 175, 313, 321, 298, 323)
    ),
    "aarch64": _Machine(
        0xC00000B7, 277, 198, (221, 281, 117, 270, 271, 40, 104, 105, 273, 280, 241, 282)
    ),
}  # fmt: skip


def landlock(ports: Iterable[int]) -> str:
    """Allow TCP connections of this thread, and of what it starts, to these ports only. Call before threads exist.

    Returns:
        `enforced`, or why not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    if abi < _FIRST_ABI_WITH_NET:
        return f"not available: {_last_error()}" if abi < 0 else f"not available: ABI {abi} has no network rules"
    attributes = ctypes.create_string_buffer(struct.pack("=QQ", 0, _NET_CONNECT_TCP), 16)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(16), ctypes.c_uint32(0))
    if ruleset < 0:
        return f"not available: {_last_error()}"
    try:
        for port in sorted(set(ports)):
            rule = ctypes.create_string_buffer(struct.pack("=QQ", _NET_CONNECT_TCP, port), 16)
            if libc.syscall(_ADD_RULE, ruleset, _RULE_NET_PORT, rule, ctypes.c_uint32(0)) != 0:
                return f"not enforced: {_last_error()}"
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return f"not enforced: {_last_error()}"
        if libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) != 0:
            return f"not enforced: {_last_error()}"
    finally:
        os.close(ruleset)
    return "enforced"


def seccomp() -> str:
    """Forbid every thread of this process to run programs, trace others, load kernel code, or open raw sockets.

    Returns:
        `enforced`, or why not.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return f"not available: no system call table for {platform.machine()}"
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"not enforced: {_last_error()}"
    result = libc.syscall(machine.seccomp, ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), ctypes.c_uint(_FLAG_TSYNC), program)
    if result != 0:
        return f"not enforced: {_last_error()}" if result < 0 else f"not enforced: thread {result} differs"
    return "enforced"


def _program(machine: _Machine) -> list[tuple[int, int, int, int]]:
    """The filter: (code, jump if true, jump if false, constant)."""
    refuse = _RET_ERRNO | errno.EPERM
    program = [
        (_LD_ABS, 0, 0, _ARCHITECTURE),
        (_JEQ, 1, 0, machine.audit),
        (_RET, 0, 0, _RET_KILL),
        (_LD_ABS, 0, 0, _NUMBER),
    ]
    if platform.machine() == "x86_64":  # the x32 numbers would walk around the table
        program += [(_JSET, 0, 1, _X32_BIT), (_RET, 0, 0, refuse)]
    for number in machine.forbidden:
        program += [(_JEQ, 0, 1, number), (_RET, 0, 0, refuse)]
    program += [
        (_JEQ, 1, 0, machine.socket),
        (_RET, 0, 0, _RET_ALLOW),
        (_LD_ABS, 0, 0, _ARG0),
        (_JEQ, 0, 1, _AF_PACKET),
        (_RET, 0, 0, refuse),
        (_LD_ABS, 0, 0, _ARG1),
        (_AND, 0, 0, _TYPE_MASK),
        (_JEQ, 0, 1, _SOCK_RAW),
        (_RET, 0, 0, refuse),
        (_RET, 0, 0, _RET_ALLOW),
    ]
    return program


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
