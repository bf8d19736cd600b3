"""Start a real gateway process on a free port, with TLS, and talk to it."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from appliance import settings
from appliance.errors import GatewayError
from appliance.operations.status import collect
from tests.support.ports import free_port
from tests.support.upstream import Upstream

# seconds after which something has hung; nothing is measured with them, and a crowded machine takes its time
BOOT_LIMIT_S = 400.0
PATIENCE_S = 200.0


@dataclass
class Gateway:
    """A running gateway.

    Attributes:
        directory: where its files lie.
        config: its appliance.yaml.
        port: of the listener.
        key: the master key.
        process: the server.
        tls: client context that trusts its certificate, None for plain HTTP.
    """

    directory: Path
    config: Path
    port: int
    key: str
    process: subprocess.Popen[bytes]
    tls: ssl.SSLContext | None
    log: Path
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Without a path."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def client(self) -> httpx.Client:
        """A client with the master key."""
        if not self.clients:
            self.clients.append(self.new_client())
        return self.clients[0]

    def new_client(self, **options: Any) -> httpx.Client:
        """A client of its own connections."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=PATIENCE_S, verify=self.tls or True, trust_env=False, **options
        )

    def chat(self, prompt: str, *, model: str = "chat", **body: Any) -> httpx.Response:
        """One chat completion."""
        message = {"role": "user", "content": prompt}
        return self.client.post("/v1/chat/completions", json={"model": model, "messages": [message], **body})

    def status(self) -> dict[str, Any]:
        """What `appliance status --json` prints; a gateway that is too busy to say it in time is asked again."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return collect(settings.load(self.config))
            except GatewayError as error:
                if error.code != "GATEWAY_BOOTING" or self.process.poll() is not None or time.monotonic() > end:
                    raise

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `appliance ...`."""
        return run(*arguments)

    def wait_until(self, condition: Any, *, limit_s: float = PATIENCE_S, what: str = "condition") -> Any:
        """Poll `condition()` until it is truthy."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"{what} not reached in {limit_s} s; log:\n{self.log.read_text()[-4000:]}")

    def stop(self, sig: int = signal.SIGTERM, *, limit_s: float = PATIENCE_S) -> int:
        """Signal it and wait for the end."""
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(limit_s)


def run(*arguments: str, timeout_s: float = BOOT_LIMIT_S, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `appliance ...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli.main", *arguments],
        capture_output=True, text=True, timeout=timeout_s, check=False, **options,
    )  # fmt: skip


def certificate(directory: Path, *, days: int = 1, start: dt.datetime | None = None) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway test")])
    begin = start or dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / "tls.crt", directory / "tls.key"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.touch(0o600)
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_path, key_path


def deployment(
    group: str, upstream: Upstream, *, model: str | None = None, id_: str | None = None, **parameters: Any
) -> dict[str, Any]:
    """One entry of LiteLLM's model_list; its id is the upstream's name where it has none of its own."""
    return {
        "model_name": group,
        "litellm_params": {
            "model": f"openai/{model or upstream.name}", "api_base": upstream.url, "api_key": "none", **parameters
        },
        "model_info": {"id": id_ or upstream.name},
    }  # fmt: skip


def write_config(
    directory: Path,
    deployments: Sequence[dict[str, Any]],
    *,
    port: int | None = None,
    tls: bool = True,
    litellm: dict[str, Any] | None = None,
    secret_files: dict[str, Path] | None = None,
    **sections: Any,
) -> tuple[Path, str]:
    """An appliance.yaml with everything it needs; returns it and the master key.

    Args:
        directory: where the files go.
        deployments: LiteLLM's model_list.
        port: of the listener.
        tls: whether it speaks TLS.
        litellm: further sections of LiteLLM's configuration.
        secret_files: name -> file of what LiteLLM's configuration names as `os.environ/NAME`.
        sections: further sections of appliance.yaml; `listen` is merged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    key = f"sk-{secrets.token_hex(24)}"
    key_path = directory / "master.key"
    key_path.touch(0o600)
    key_path.write_text(key + "\n")
    (directory / "litellm.yaml").write_text(
        yaml.safe_dump(
            {
                "model_list": list(deployments),
                "router_settings": {"num_retries": 2, "cooldown_time": 5},
                **(litellm or {}),
            }
        )
    )
    listen: dict[str, Any] = {"host": "127.0.0.1", "port": port or free_port(), **sections.pop("listen", {})}
    if tls:
        certificate(directory)
        listen["tls"] = {"certificate": "tls.crt", "key": "tls.key"}
    document = {
        "schema_version": 1,
        "state_dir": "state",
        "listen": listen,
        "litellm": {
            "config": "litellm.yaml",
            "master_key_file": "master.key",
            "secrets": {name: str(file) for name, file in (secret_files or {}).items()},
        },
        "drain": {"readiness_s": 0.1, "streams_s": 10},
        **sections,
    }
    path = directory / "appliance.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path, key


@contextlib.contextmanager
def gateway(
    directory: Path,
    deployments: Sequence[dict[str, Any]],
    *,
    wait: bool = True,
    environment: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
    **options: Any,
) -> Iterator[Gateway]:
    """Run `appliance serve` until the block ends.

    Args:
        directory: where its files go.
        deployments: LiteLLM's model_list.
        wait: until it is ready.
        environment: further variables.
        prefix: a command to run it under, e.g. `("unshare", "-n")`.
        options: as `write_config`.
    """
    path, key = write_config(directory, deployments, **options)
    with serve(path, key, wait=wait, environment=environment, prefix=prefix) as running:
        yield running


@contextlib.contextmanager
def serve(
    path: Path,
    key: str,
    *,
    wait: bool = True,
    environment: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Gateway]:
    """Run `appliance serve --config path` until the block ends."""
    document = yaml.safe_load(path.read_text())
    log = path.parent / "gateway.log"
    tls = ssl.create_default_context(cafile=path.parent / "tls.crt") if "tls" in document["listen"] else None
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "appliance.cli.main", "serve", "--config", str(path)],
            stdout=output, stderr=output, env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
    running = Gateway(path.parent, path, document["listen"]["port"], key, process, tls, log)
    try:
        if wait:
            _wait_ready(running)
        yield running
    finally:
        try:
            running.stop()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(running: Gateway) -> None:
    end = time.monotonic() + BOOT_LIMIT_S
    while time.monotonic() < end:
        if running.process.poll() is not None:
            raise AssertionError(
                f"the gateway ended with {running.process.returncode}:\n{running.log.read_text()[-6000:]}"
            )
        with contextlib.suppress(httpx.HTTPError):
            if running.client.get("/appliance/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"not ready in {BOOT_LIMIT_S} s:\n{running.log.read_text()[-6000:]}")
