"""A systemd of its own: process 1 of fresh namespaces over a read-only file system, running the units we ship.

Needs root (namespaces and mounts). Only `home` is writable within, /opt/appliance is `home/opt`, the network is an
empty loopback, and the account `appliance` is made by the shipped sysusers file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
UNITS = CHECKOUT / "bundle" / "systemd"

_BOOT = r"""
set -e
home=$1; shift
mount --make-rprivate /
mkdir "$home/kept"; mount --bind "$1" "$home/kept"
mount -t proc proc /proc
mount -o remount,bind,ro /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for folder in /run /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
[ -d "$1" ] || { mkdir -p "$1"; mount --bind "$home/kept" "$1"; } # this checkout, where it lies below /tmp
mkdir -p /run/systemd /run/lock
cp -r "$home/units" /run/systemd/system
mount --bind "$home" "$home"; mount -o remount,bind,rw "$home"
for file in passwd group shadow gshadow; do
    [ ! -e "$home/etc/$file" ] || mount --bind "$home/etc/$file" "/etc/$file"
done
mount --bind "$home/opt" /opt; mount -o remount,bind,rw /opt
ip link set lo up
export container=docker
exec /lib/systemd/systemd --system --unit=room.target --log-target=console --show-status=no --log-level=notice
"""


@dataclass
class Systemd:
    """A running service manager.

    Attributes:
        home: its writable folder.
        pid: of its process 1, seen from here.
    """

    home: Path
    pid: int

    @property
    def prefix(self) -> Path:
        """/opt/appliance of within, seen from here."""
        return self.home / "opt" / "appliance"

    def command(self, *words: str) -> list[str]:
        """What runs a command in its namespaces, as root."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--ipc", "--cgroup", *words]

    def run(self, *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in its namespaces, to its end."""
        return subprocess.run(
            self.command(*command), capture_output=True, text=True, timeout=timeout_s, check=False
        )  # fmt: skip

    def systemctl(self, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """`systemctl ...`."""
        return self.run("systemctl", *arguments, timeout_s=timeout_s)

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", unit, "--property", name, "--value").stdout.strip()

    def wait(self, unit: str, state: str, *, limit_s: float = 300) -> str:
        """Wait until a unit's ActiveState is one of `state` (separated by `|`)."""
        end = time.monotonic() + limit_s
        while True:
            now = self.property(unit, "ActiveState")
            if now in state.split("|"):
                return now
            if time.monotonic() > end:
                raise AssertionError(f"{unit} is {now}\n{self.systemctl('status', unit).stdout}\n{self.log()}")
            time.sleep(0.2)

    def until(self, condition: Callable[[], object], *, limit_s: float = 300) -> None:
        """Wait until something holds."""
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, self.log()
            time.sleep(0.2)

    def log(self) -> str:
        """What the manager and its units said."""
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in sorted(self.home.glob("*.log")))


def prepare(home: Path, *, extra: Mapping[str, str] | None = None) -> Path:
    """Lay out accounts, units and an installed release in `home`; returns the prefix.

    Args:
        home: an empty folder that every user can reach.
        extra: further unit files, name -> content.
    """
    for folder in ("units", "etc", "opt/appliance/etc", "opt/appliance/state", "opt/appliance/releases/1/env/bin"):
        (home / folder).mkdir(parents=True)
    for name in ("passwd", "group", "shadow", "gshadow"):
        if Path("/etc", name).exists():
            shutil.copy2(Path("/etc", name), home / "etc" / name)
    subprocess.run(["systemd-sysusers", "--root", str(home), str(UNITS / "appliance.sysusers")], check=True)
    prefix = home / "opt" / "appliance"
    (prefix / "current").symlink_to("releases/1")
    command = prefix / "current" / "env" / "bin" / "appliance"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m appliance.cli.main "$@"\n')
    command.chmod(0o755)
    (command.parent / "python").symlink_to(sys.executable)
    for unit in UNITS.glob("appliance-*.*"):
        text = unit.read_text()
        if unit.suffix == ".service":
            # the package of this checkout instead of an installed one; the journal is not there to be read
            said = f"StandardOutput=append:{home}/{unit.stem}.log\nStandardError=inherit\n"
            said += f"Environment=PYTHONPATH={CHECKOUT}\nBindReadOnlyPaths={CHECKOUT} {sys.base_prefix}\n"
            # what lies in somebody's home or below /tmp stays visible
            text = text.replace("[Service]\n", f"[Service]\n{said}", 1).replace("ProtectHome=yes", "ProtectHome=tmpfs")
        (home / "units" / unit.name).write_text(text)
    for name, text in (extra or {}).items():
        (home / "units" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "units" / name).write_text(text)
    (home / "units" / "room.target").write_text("[Unit]\nDescription=an empty room\nAllowIsolate=yes\n")
    return prefix


def hand_over(prefix: Path) -> None:
    """Give `state` to the account `appliance`, and let it read `etc`, as `scripts/install-units` does."""
    passwd = (prefix.parents[1] / "etc" / "passwd").read_text()
    found = re.search(r"^appliance:[^:]*:(\d+):(\d+):", passwd, re.MULTILINE)
    assert found, "the sysusers file made no account"
    uid, gid = int(found[1]), int(found[2])
    for path in [prefix / "state", *(prefix / "state").rglob("*")]:
        os.chown(path, uid, gid, follow_symlinks=False)
    for path in [prefix / "etc", *(prefix / "etc").rglob("*")]:
        closed = path.is_file() and not path.stat().st_mode & 0o077  # a secret is the account's own
        os.chown(path, uid if closed else 0, gid, follow_symlinks=False)
        if not closed:
            path.chmod(0o750 if path.is_dir() else 0o640)


@contextlib.contextmanager
def systemd(home: Path) -> Iterator[Systemd]:
    """Run a systemd over what `prepare` laid out, until the block ends."""
    if os.geteuid() != 0:
        raise AssertionError("a systemd of its own needs root")
    with open(home / "manager.log", "ab") as log:
        outer = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--cgroup", "--ipc", "--uts", "--net",
             "sh", "-c", _BOOT, "sh", str(home), str(CHECKOUT)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Systemd(home, _wait_for_first_process(outer, home))
    finally:
        outer.send_signal(signal.SIGKILL)  # takes process 1 with it, and process 1 everything within
        outer.wait(60)


def _wait_for_first_process(outer: subprocess.Popen[bytes], home: Path) -> int:
    end = time.monotonic() + 300
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while time.monotonic() < end and outer.poll() is None:
        pids = children.read_text().split()
        if pids:
            manager = Systemd(home, int(pids[0]))
            if manager.systemctl("is-active", "room.target").stdout.strip() == "active":
                return manager.pid
        time.sleep(0.2)
    raise AssertionError((home / "manager.log").read_text())
