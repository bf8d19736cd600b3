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
import socket
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
_ARCHITECTURE, _NUMBER, _ARG0, _ARG1, _ARG2 = 4, 0, 16, 24, 32  # offsets into struct seccomp_data
_TYPE_MASK = 0xF
_X32_BIT = 0x40000000
_REFUSE = _RET_ERRNO | errno.EPERM
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


class _Machine:
    """System call numbers of one architecture."""

    def __init__(self, audit: int, seccomp: int, sock: int, forbidden: tuple[int, ...]) -> None:
        self.audit, self.seccomp, self.socket, self.forbidden = audit, seccomp, sock, forbidden


# execve execveat ptrace process_vm_readv process_vm_writev mount kexec_load init_module finit_module bpf
# perf_event_open userfaultfd io_uring_setup (whose sockets no filter sees) pidfd_getfd
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 317, 41, (59, 322, 101, 310, 311, 165, 246, 175, 313, 321, 298, 323, 425, 438)
    ),
    "aarch64": _Machine(
        0xC00000B7, 277, 198, (221, 281, 117, 270, 271, 40, 104, 105, 273, 280, 241, 282, 425, 438)
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


def seccomp(*, udp: bool = True) -> str:
    """Forbid every thread of this process to run programs, trace others or load kernel code, and all sockets but TCP's.

    Landlock's rules are for TCP alone: Multipath TCP (which a server of plain TCP answers), SCTP or a virtual machine's
    own sockets would walk around them.

    Args:
        udp: whether sockets for UDP may be made, which the look-up of a name needs.

    Returns:
        `enforced`, or why not.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return f"not available: no system call table for {platform.machine()}"
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(machine, udp=udp))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"not enforced: {_last_error()}"
    result = libc.syscall(machine.seccomp, ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), ctypes.c_uint(_FLAG_TSYNC), program)
    if result != 0:
        return f"not enforced: {_last_error()}" if result < 0 else f"not enforced: thread {result} differs"
    return "enforced"


def _program(machine: _Machine, *, udp: bool) -> list[_Instruction]:
    """The filter."""
    program = [
        (_LD_ABS, 0, 0, _ARCHITECTURE),
        (_JEQ, 1, 0, machine.audit),
        (_RET, 0, 0, _RET_KILL),
        (_LD_ABS, 0, 0, _NUMBER),
    ]
    if platform.machine() == "x86_64":  # the x32 numbers would walk around the table
        program += [(_JSET, 0, 1, _X32_BIT), (_RET, 0, 0, _REFUSE)]
    for number in machine.forbidden:
        program += [(_JEQ, 0, 1, number), (_RET, 0, 0, _REFUSE)]
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM) if udp else (socket.SOCK_STREAM,)
    return [
        *program,
        (_JEQ, 1, 0, machine.socket),
        (_RET, 0, 0, _RET_ALLOW),
        (_LD_ABS, 0, 0, _ARG0),
        (_JEQ, 0, 1, socket.AF_UNIX),
        (_RET, 0, 0, _RET_ALLOW),
        *_only(socket.AF_INET, socket.AF_INET6),
        (_LD_ABS, 0, 0, _ARG1),
        (_AND, 0, 0, _TYPE_MASK),
        *_only(*kinds),
        (_LD_ABS, 0, 0, _ARG2),
        *_only(0, socket.IPPROTO_TCP, socket.IPPROTO_UDP),
        (_RET, 0, 0, _RET_ALLOW),
    ]


def _only(*values: int) -> list[_Instruction]:
    """Go on where the accumulator holds one of the values, else refuse."""
    return [*((_JEQ, len(values) - n, 0, value) for n, value in enumerate(values)), (_RET, 0, 0, _REFUSE)]


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
