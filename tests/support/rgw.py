"""Ceph RGW over TLS: the S3 server that enforces object lock and conditional writes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.support.ports import free_port
from tests.support.s3 import REGION, Identity, S3Server
from tests.support.servers import (
    START_LIMIT_S,
    as_service,
    give_to_service,
    listens,
    running,
    service_directory,
    wait_until,
    write_for_service,
)

_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {d}/admin.keyring
ms bind msgr1 = false
run dir = {d}
admin socket = {d}/$name.asok
log file =
log to stderr = true
err to stderr = true
mon cluster log file = /dev/null
crash dir = {d}/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
mon allow pool size one = true
mon data avail crit = 1
mon osd nearfull ratio = 1.0
mon osd full ratio = 1.0
osd max object name len = 256
osd max object namespace len = 64
[mon.a]
mon data = {d}/mon
keyring = {d}/mon.keyring
[osd.0]
osd data = {d}/osd
keyring = {d}/osd/keyring
[client.rgw]
keyring = {d}/rgw.keyring
rgw data = {d}/rgw
rgw frontends = beast ssl_endpoint=127.0.0.1:{rgw_port} ssl_certificate={d}/server.pem ssl_private_key={d}/server.key
rgw dns name = 127.0.0.1
rgw thread pool size = 16
rgw enable usage log = false
rgw lifecycle work time = 00:00-00:01
"""


@contextlib.contextmanager
def rgw_server(identity: Identity) -> Iterator[S3Server]:
    """One monitor, one OSD in memory, one gateway.

    Args:
        identity: certificate for 127.0.0.1, its key and CA.
    """
    with service_directory() as directory, contextlib.ExitStack() as servers:
        ceph = _Cluster(directory)
        mon_port, rgw_port, fsid = free_port(), free_port(), str(uuid.uuid4())
        text = _CONF.format(d=directory, fsid=fsid, mon_port=mon_port, rgw_port=rgw_port)
        write_for_service(directory / "ceph.conf", text)
        write_for_service(directory / "server.pem", identity.certificate_pem)
        write_for_service(directory / "server.key", identity.key_pem)
        for folder in ("mon", "osd", "rgw", "crash"):
            (directory / folder).mkdir()
            give_to_service(directory / folder)
        ceph.make_keys(fsid, mon_port)

        mon = servers.enter_context(ceph.daemon("ceph-mon", "-i", "a", "-f"))
        wait_until(lambda: listens(mon_port), what="ceph-mon", process=mon, log=directory / "ceph-mon.log")
        ceph.add_osd(fsid)
        servers.enter_context(ceph.daemon("ceph-osd", "-i", "0", "-f"))
        key = ceph.run("ceph", "auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx")
        write_for_service(directory / "rgw.keyring", key)
        rgw = servers.enter_context(ceph.daemon("radosgw", "-n", "client.rgw", "-f"))
        wait_until(lambda: listens(rgw_port), what="radosgw", process=rgw, log=directory / "radosgw.log")

        def add_user(name: str) -> tuple[str, str]:
            said = ceph.run("radosgw-admin", "user", "create", "--uid", name, "--display-name", name)
            [pair] = json.loads(said)["keys"]
            return pair["access_key"], pair["secret_key"]

        endpoint = f"127.0.0.1:{rgw_port}"
        owner = add_user("registry")
        yield S3Server(endpoint, *owner, identity.ca_pem, enforces_conditions=True, add_user=add_user)


class _Cluster:
    """The commands that bring a cluster up."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, program: str, *arguments: str, timeout_s: float = START_LIMIT_S) -> bytes:
        """Run one of Ceph's tools with our configuration; its standard output."""
        configured = (
            ["-c", str(self._directory / "ceph.conf")] if program not in {"ceph-authtool", "monmaptool"} else []
        )
        done = subprocess.run(
            [program, *configured, *arguments],
            cwd=self._directory,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            **as_service(program),  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr.decode()[-2000:]}"
        return bytes(done.stdout)

    def daemon(self, program: str, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        """A running daemon."""
        configured = [program, "-c", self._directory / "ceph.conf", *arguments]
        return running(configured, directory=self._directory, log=f"{program}.log")

    def make_keys(self, fsid: str, mon_port: int) -> None:
        """Keys of monitor and administrator, the monitor's map and store."""
        d = self._directory
        all_caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        self.run(
            "ceph-authtool",
            "--create-keyring",
            f"{d}/mon.keyring",
            "--gen-key",
            "-n",
            "mon.",
            "--cap",
            "mon",
            "allow *",
        )
        self.run(
            "ceph-authtool", "--create-keyring", f"{d}/admin.keyring", "--gen-key", "-n", "client.admin", *all_caps
        )
        self.run("ceph-authtool", f"{d}/mon.keyring", "--import-keyring", f"{d}/admin.keyring")
        self.run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", "--fsid", fsid, f"{d}/monmap")
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{d}/monmap", "--keyring", f"{d}/mon.keyring")

    def add_osd(self, fsid: str) -> None:
        """Register one OSD and make its store."""
        d = self._directory
        identity = str(uuid.uuid4())
        self.run("ceph", "osd", "new", identity)
        key = self.run("ceph", "auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *")
        write_for_service(d / "osd" / "keyring", key)
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity, "--osd-objectstore", "memstore")


__all__ = ["REGION", "rgw_server"]
