"""Steps 6 to 8 of the demo, inside the sealed room: install, route, break, restore, count.

Run as `python -m scripts.demo.sealed FOLDER BRIDGES`; writes FOLDER/result.json with the rows of the summary.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.demo import sealed_room
from scripts.demo.bridges import inner_half
from scripts.demo.narrate import Commands, say, step

ROOT = Path(__file__).resolve().parents[2]
OUTCOMES = ROOT / "tests" / "data" / "routing_outcomes.sample.jsonl.gz"
LABELS = {"mixtral-8x7b-instruct": "small", "gpt-4-1106-preview": "large"}
PROMPTS = 8


class Room:
    """Everything the inner half of the demo works with.

    Args:
        work: the demo's folder, with `release/`, `router/` and `encoder/`.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.prefix = work / "prefix"
        self.release = next((work / "release").glob("*.tar"))
        self.developer = Commands(ROOT, path=Path(sys.executable).parent)
        self.operator = Commands(work, path=self.prefix / "current" / "env" / "bin")
        self.config = self.prefix / "etc" / "appliance.yaml"
        self.key = "sk-" + secrets.token_hex(32)
        self.port = free_port()

    def status(self) -> dict[str, Any]:
        """What the running gateway says of itself; an `error` while it does not run yet."""
        command = ("appliance", "status", "--config", self.config)
        report: dict[str, Any] = self.operator.json(*command, show=False, check=False)
        return report

    def wait_for_mode(self, mode: str, seconds: float = 90) -> dict[str, Any]:
        """Wait until the router `default` is served as `mode` (`ml` or `weighted-round-robin`)."""
        deadline = time.monotonic() + seconds
        while True:
            report = self.status()
            router: dict[str, Any] = report.get("routers", {}).get("default", {})
            if router.get("mode") == mode:
                return router
            if time.monotonic() > deadline:
                raise SystemExit(f"    the router did not become {mode!r} within {seconds:.0f} s: {report}")
            time.sleep(0.3)


def main(work: Path, bridges: dict[str, dict[str, str]]) -> int:
    """Run the inner steps; 0 where every claim held."""
    sealed = bool(os.environ.get("DEMO_SEALED"))
    if sealed:
        sealed_room.raise_loopback()
    rows: list[tuple[str, str]] = [("guard", os.environ["DEMO_GUARD"])]
    room = Room(work)
    before = sealed_room.attempts() if sealed else 0
    with contextlib.ExitStack() as stack:
        with step(6, "In the sealed room: verify, install, registry, gateway, real prompts"):
            say(f"guard: {os.environ['DEMO_GUARD']}; interfaces here: {', '.join(sealed_room.interfaces())}")
            rows += install(room)
            start_registry(room, stack)
            start_gateway(room, stack, bridges)
            shares = send_prompts(room, streaming=True)
            rows.append(("routed by the router", describe(shares)))
        with step(7, "A corrupt router: weighted round-robin goes on; restored: the router returns"):
            rows += break_and_restore(room)
        with step(8, "What tried to leave the room"):
            rows.append(("non-loopback connections attempted", count_attempts(room, sealed, before)))
    (work / "result.json").write_text(json.dumps(rows))
    return 0 if rows[-1][1].startswith("0") else 1


def install(room: Room) -> list[tuple[str, str]]:
    """Verify the release and install it with stage 0, which needs Python and openssl only."""
    media = room.work / "release"
    shutil.rmtree(room.prefix, ignore_errors=True)
    anchor = media / "anchor.json"
    room.developer("appliance", "bundle", "verify", room.release, "--trust", anchor)
    say("stage 0, as the operator types it; python3 and openssl are all it uses:")
    begun = time.monotonic()
    room.operator("python3", media / "stage0.py", room.release, "--prefix", room.prefix, "--trust", anchor)
    took = time.monotonic() - begun
    releases = room.operator.json("appliance", "releases", "--prefix", room.prefix)
    current = next(release for release in releases["releases"] if release["current"])
    return [("installed", f"{current['version']} ({current['digest'][:12]}) by stage 0 in {took:.0f} s")]


def start_registry(room: Room, stack: contextlib.ExitStack) -> None:
    """Start a real S3 server over TLS, publish the signed router, sync it to the volume that gateways follow."""
    folder = room.work / "registry"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [str(ROOT / "scripts" / "dev-s3"), "--out", str(folder)]
    say("$ scripts/dev-s3 --out .demo/registry   (OpenStack Swift with its S3 face, TLS under our CA)")
    stack.enter_context(running(command, ROOT, folder / "server.log", ready="ready:"))
    (room.prefix / "state" / "volume").mkdir()
    settings, trust = folder / "registry.yaml", room.prefix / "state" / "trust"
    room.developer("appliance", "artifact", "publish", room.work / "router", "--registry", settings, "--trust", trust)
    version = yaml.safe_load((room.work / "router" / "router.yaml").read_text())["version"]
    room.developer("appliance", "artifact", "promote", "demo", version, "--registry", settings, "--trust", trust)
    sync(room)


def sync(room: Room) -> None:
    """One pass of the sidecar: registry -> shared volume, everything verified."""
    state = room.prefix / "state"
    room.operator(
        *("appliance", "sync", "--once", "--registry", room.work / "registry" / "registry.yaml"),
        *("--trust", state / "trust", "--to", state / "volume", "--cache", state / "sync"),
    )


def start_gateway(room: Room, stack: contextlib.ExitStack, bridges: dict[str, dict[str, str]]) -> None:
    """Configure and boot the installed gateway over TLS, in front of two model servers."""
    bases = {name: stack.enter_context(upstream(room, name, bridges.get(name))) for name in LABELS.values()}
    tls = room.prefix / "etc" / "tls"
    room.developer(
        "appliance", "ca", "issue", "tls-server", "gateway", "--san", "127.0.0.1", "--san", "localhost", "--out", tls
    )
    secret = room.prefix / "etc" / "secrets" / "master.key"
    secret.parent.mkdir(mode=0o700, exist_ok=True)
    secret.touch(mode=0o600)
    secret.write_text(room.key)
    room.config.write_text(yaml.safe_dump(configuration(room, bases), sort_keys=False))
    say("$ appliance serve --config prefix/etc/appliance.yaml &")
    log = room.work / "gateway.log"
    program = room.prefix / "current" / "env" / "bin" / "appliance"
    stack.enter_context(running([str(program), "serve", "--config", str(room.config)], room.work, log, port=room.port))
    room.wait_for_mode("ml")
    room.operator("appliance", "status", "--config", room.config)


def configuration(room: Room, bases: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The gateway's `appliance.yaml`: two deployments of one group, routed by the router of the volume."""
    key = os.environ.get("DEMO_API_KEY", "none")
    deployments = [
        {
            "model_name": "chat",
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": base,
                "api_key": key,
            },
            "model_info": {"id": name},
        }
        for name, (base, model) in bases.items()
    ]
    return {
        "schema_version": 1,
        "state_dir": "../state/gateway",
        "listen": {"port": room.port, "tls": {"certificate": "tls/gateway.pem", "key": "tls/gateway.key"}},
        "litellm": {"inline": {"model_list": deployments}, "master_key_file": "secrets/master.key"},
        "trust": {"store": "../state/trust"},
        "routing": {
            "encoders": ["../current/payload/encoder"],
            "routers": {
                "default": {
                    "directory": str(newest_router(room)),
                    "on_bad_update": "static",
                }
            },
            "groups": {
                "chat": {
                    "strategy": "ml",
                    "router": "default",
                    "weights": {"small": 3, "large": 1},
                    # USD per million tokens, as the RouteLLM paper gives them for the two models of the data
                    "costs": {"small": 0.24, "large": 24.7},
                    "cost_weight": 0.15,
                }
            },
        },
        "drain": {"readiness_s": 0},
    }


def newest_router(room: Room) -> Path:
    """Folder of the router in the volume."""
    return next((room.prefix / "state" / "volume" / "routers" / "demo").iterdir())


def send_prompts(room: Room, *, streaming: bool) -> dict[str, int]:
    """Send prompts of the sample through the stock client; show which deployment each went to and why."""
    import httpx
    from openai import OpenAI

    trusted = str(room.prefix / "etc" / "tls" / "ca.pem")
    counts: dict[str, int] = {}
    with httpx.Client(verify=trusted, trust_env=False, timeout=60) as http:
        client = OpenAI(base_url=f"https://127.0.0.1:{room.port}/v1", api_key=room.key, http_client=http, max_retries=0)
        for number, prompt in enumerate(some_prompts()):
            stream = streaming and number % 2 == 1
            raw = client.chat.completions.with_raw_response.create(
                model="chat", messages=[{"role": "user", "content": prompt}], stream=stream, max_tokens=64
            )
            answer = raw.parse()
            text = "".join(part.choices[0].delta.content or "" for part in answer if part.choices) if stream else (
                answer.choices[0].message.content)  # fmt: skip
            deployment, why = raw.headers["x-appliance-deployment"], raw.headers["x-appliance-routing"]
            counts[deployment] = counts.get(deployment, 0) + 1
            kind = "stream" if stream else "whole "
            say(f"{kind} {' '.join(prompt.split())[:44]:44} -> {deployment:6} {why}  ({len(text or '')} characters)")
    return counts


def some_prompts() -> list[str]:
    """The same few prompts each time, spread over the sample."""
    with gzip.open(OUTCOMES, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["query"] for row in rows[:: len(rows) // PROMPTS]][:PROMPTS]


def break_and_restore(room: Room) -> list[tuple[str, str]]:
    """Flip bytes in the router's file, watch static routing take over, sync again, watch the router return."""
    weights = next(newest_router(room).glob("*.safetensors"))
    with open(weights, "r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(os.urandom(64))
    say(f"64 bytes of {weights.relative_to(room.work)} overwritten")
    problem = room.wait_for_mode("weighted-round-robin")["problem"]
    room.operator("appliance", "status", "--config", room.config)
    shares = send_prompts(room, streaming=True)
    rows = [
        ("corrupt router", f"refused with {problem['code']}; requests went on: {describe(shares)} by weight 3 : 1"),
    ]
    say("the sidecar's next pass finds the volume damaged and repairs it:")
    sync(room)
    room.wait_for_mode("ml")
    shares = send_prompts(room, streaming=False)
    rows.append(("restored router", f"served again without a restart: {describe(shares)}"))
    return rows


def count_attempts(room: Room, sealed: bool, before: int) -> str:
    """The kernel's count in a sealed room, proven to count; else what the appliance's own guard refused."""
    if not sealed:
        refused = sum(worker["egress"]["refused"] for worker in room.status()["workers"])
        return f"{refused} (refused by the appliance's own guard, in the gateway only)"
    attempts = sealed_room.attempts() - before
    counts = sealed_room.prove_counter()
    say(f"the kernel counted {attempts}; one deliberate attempt afterwards was {'' if counts else 'NOT '}counted")
    return f"{attempts} (counted by the kernel{'' if counts else '; BUT THE COUNTER DID NOT MOVE'})"


@contextlib.contextmanager
def upstream(room: Room, name: str, bridge: dict[str, str] | None) -> Iterator[tuple[str, str]]:
    """A model server: yours through its bridge, or a small streaming one of ours. Yields base URL and model name."""
    if bridge is not None:
        with inner_half(bridge["socket"]) as port:
            say(f"{name}: your server, bridged to 127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}{bridge['path']}", os.environ.get(f"DEMO_{name.upper()}_MODEL", name)
        return
    port = free_port()
    command = [sys.executable, "-m", "tests.support.upstream", "--port", str(port), "--name", name]
    with running(command, ROOT, room.work / f"upstream-{name}.log", port=port):
        yield f"http://127.0.0.1:{port}/v1", name


@contextlib.contextmanager
def running(
    command: list[str],
    folder: Path,
    log: Path,
    *,
    port: int | None = None,
    ready: str | None = None,
    seconds: float = 90,
) -> Iterator[None]:
    """Run a server until it listens on `port` or has printed `ready`; stop it by its own process id."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + seconds
        while not (listens(port) if port else ready in log.read_text("utf-8", "replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(
                    f"    it did not start: {' '.join(command)}\n{log.read_text('utf-8', 'replace')[-2000:]}"
                )
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def describe(counts: dict[str, int]) -> str:
    """`5 small, 3 large`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
