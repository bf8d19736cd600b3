"""The sealed room: a network namespace with nothing but loopback, and the kernel's own count of what tried to leave.

In such a namespace every packet for another host finds no route, and the kernel counts each attempt (`OutNoRoutes` of
RFC 2011's and RFC 4293's IP groups, read from /proc/self/net/snmp and snmp6), DNS queries included. So zero is
measured and not assumed; `prove_counter` shows that the counter moves when something does try.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x1 | 0x40
DOCUMENTATION_ADDRESS = ("192.0.2.1", 443)  # RFC 5737, never a real host


@dataclass(frozen=True)
class Guard:
    """How the room is sealed: the command prefix that enters it, and its name for the summary."""

    name: str
    prefix: tuple[str, ...]

    @property
    def sealed(self) -> bool:
        """Whether a namespace keeps everything in; without one the appliance's own egress guard is all there is."""
        return bool(self.prefix)


def choose_guard() -> Guard:
    """The strongest guard this machine allows: an unprivileged namespace, root's own, or the appliance's guard."""
    unshare = shutil.which("unshare")
    if unshare and _works([unshare, "-rn", "true"]):
        return Guard("network namespace with only loopback (unshare -rn)", (unshare, "-rn"))
    if unshare and os.geteuid() == 0 and _works([unshare, "-n", "true"]):
        return Guard("network namespace with only loopback (unshare -n, root)", (unshare, "-n"))
    ip = shutil.which("ip")
    if ip and os.geteuid() == 0:
        name = f"appliance-demo-{os.getpid()}"
        if _works([ip, "netns", "add", name]):
            return Guard(f"network namespace with only loopback (ip netns {name})", (ip, "netns", "exec", name))
    return Guard("the appliance's own egress guard (no network namespace allowed here)", ())


def dismiss(guard: Guard) -> None:
    """Remove a named namespace that `choose_guard` made."""
    if guard.prefix[1:3] == ("netns", "exec"):
        subprocess.run([guard.prefix[0], "netns", "delete", guard.prefix[3]], check=False)


def raise_loopback() -> None:
    """Bring `lo` up in the namespace this process is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP_RUNNING))


def interfaces() -> list[str]:
    """Names of the interfaces of this namespace."""
    return sorted(name for _, name in socket.if_nameindex())


def attempts() -> int:
    """Packets and connections that tried to leave this namespace and found no route, as the kernel counted them."""
    lines = [line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines() if line.startswith("Ip:")]
    ipv4 = int(dict(zip(*lines, strict=True))["OutNoRoutes"])
    table = Path("/proc/self/net/snmp6")
    six = dict(line.split() for line in table.read_text().splitlines()) if table.exists() else {}
    return ipv4 + int(six.get("Ip6OutNoRoutes", 0))


def prove_counter() -> bool:
    """Try once to leave; True where the kernel counted exactly that attempt."""
    before = attempts()
    with socket.socket() as probe:
        try:
            probe.connect(DOCUMENTATION_ADDRESS)
        except OSError:
            return attempts() == before + 1
    return False


def _works(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
