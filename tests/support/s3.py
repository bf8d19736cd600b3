"""Real S3 servers for tests and developers: OpenStack Swift with its s3api, and Ceph RGW, both over TLS."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.ports import free_port
from tests.support.servers import (
    as_service,
    give_to_service,
    listens,
    running,
    service_directory,
    wait_until,
    write_for_service,
)

REGION = "us-east-1"


class Identity(Protocol):
    """Certificate chain, key and CA as PEM (`tests.support.faulty_tls.Identity`, `trust.tls.TlsIdentity`)."""

    @property
    def certificate_pem(self) -> bytes: ...
    @property
    def key_pem(self) -> bytes: ...
    @property
    def ca_pem(self) -> bytes: ...


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        endpoint: `127.0.0.1:port`.
        access_key, secret_key: of an account that may do everything.
        ca_pem: what its certificate hangs on.
        enforces_conditions: whether `If-None-Match: *` has one winner under a race, and objects can be locked.
        add_user: name -> access and secret key of a further account that may do nothing by itself.
    """

    endpoint: str
    access_key: str
    secret_key: str
    ca_pem: bytes
    enforces_conditions: bool
    add_user: Callable[[str], tuple[str, str]] | None = None

    def settings(self, directory: Path, *, bucket: str, prefix: str = "", **more: object) -> dict[str, object]:
        """The key `registry` of a settings file that reaches it; CA and credentials are written to `directory`."""
        ca = directory / "registry-ca.pem"
        ca.write_bytes(self.ca_pem)
        credentials = directory / "registry-credentials.yaml"
        credentials.write_text(f"access_key: {self.access_key}\nsecret_key: {self.secret_key}\n")
        credentials.chmod(0o600)
        fixed = {"home": "s3", "endpoint": self.endpoint, "bucket": bucket, "prefix": prefix, "region": REGION}
        return {**fixed, "ca_file": str(ca), "credentials_file": str(credentials), **more}

    def make_bucket(self, directory: Path, bucket: str, *, object_lock: bool = False) -> None:
        """Create a bucket with the stock client, over the hardened transport."""
        from minio import Minio

        from appliance.registry.tls import client_context
        from appliance.registry.transport import HttpsPool

        ca = directory / "make-bucket-ca.pem"
        ca.write_bytes(self.ca_pem)
        pool = HttpsPool(client_context(ca), pins=frozenset(), connect_timeout_s=60, read_timeout_s=120)
        client = Minio(self.endpoint, self.access_key, self.secret_key, region=REGION, http_client=pool)
        client.make_bucket(bucket, object_lock=object_lock)


_RINGS = """
import sys
from swift.common.ring import RingBuilder
directory, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{directory}/{name}.ring.gz")
"""

_STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
log_address = /nonexistent
fallocate_reserve = 0
disable_fallocate = true
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PIPELINE = (
    "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo dlo versioned_writes"
    " symlink proxy-server"
)

_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
cert_file = {certificate}
key_file = {key}
log_address = /nonexistent
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_registry = {secret} .admin
[filter:s3api]
use = egg:swift#s3api
location = {region}
dns_compliant_bucket_names = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{dead}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""


@contextlib.contextmanager
def swift_server(identity: Identity) -> Iterator[S3Server]:
    """OpenStack Swift with s3api behind TLS: account, container, object and proxy server.

    Args:
        identity: certificate for 127.0.0.1, its key and CA.
    """
    import getpass

    secret = "registry-secret"
    user = "nobody" if as_service(sys.executable) else getpass.getuser()
    binaries = Path(sys.executable).parent
    with service_directory() as directory, contextlib.ExitStack() as servers:
        for folder in ("devices", "devices/d"):
            (directory / folder).mkdir()
            give_to_service(directory / folder)
        ports = {kind: free_port() for kind in ("account", "container", "object", "proxy")}
        storage = ("account", "container", "object")
        write_for_service(directory / "swift.conf", "[swift-hash]\nswift_hash_path_suffix = tests\n")
        rings = [sys.executable, "-W", "ignore", "-c", _RINGS, directory, *(str(ports[kind]) for kind in storage)]
        dropped = as_service(sys.executable)
        subprocess.run([str(part) for part in rings], check=True, capture_output=True, **dropped)  # type: ignore[call-overload]
        for kind in storage:
            text = _STORAGE.format(kind=kind, port=ports[kind], directory=directory, user=user)
            write_for_service(directory / f"{kind}.conf", text)
        text = _PROXY.format(
            port=ports["proxy"],
            directory=directory,
            user=user,
            certificate=write_for_service(directory / "server.pem", identity.certificate_pem),
            key=write_for_service(directory / "server.key", identity.key_pem),
            secret=secret,
            region=REGION,
            pipeline=_PIPELINE,
            dead=free_port(),
        )
        write_for_service(directory / "proxy.conf", text)
        started = {}
        for kind in ports:
            command = [
                sys.executable,
                "-W",
                "ignore",
                binaries / f"swift-{kind}-server",
                directory / f"{kind}.conf",
                "-v",
            ]
            started[kind] = servers.enter_context(running(command, directory=directory, log=f"{kind}.log"))
        for kind, port in ports.items():
            wait_until(
                lambda port=port: listens(port),  # type: ignore[misc]
                what=f"swift {kind} server",
                process=started[kind],
                log=directory / f"{kind}.log",
            )
        yield S3Server(
            f"127.0.0.1:{ports['proxy']}", "test:registry", secret, identity.ca_pem, enforces_conditions=False
        )
