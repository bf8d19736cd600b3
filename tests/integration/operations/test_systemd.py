"""The units we ship, run by a real systemd, with the real gateway and a real embedding in them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from appliance.artifact import read, router_metadata
from appliance.operations.doctor.facts.host import kernel
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from appliance.training.encoder_export import write_encoder
from tests.support import systemd as manager
from tests.support.gateway import deployment, write_config
from tests.support.routing import zone
from tests.support.training import rows, tiny_encoder_artifact
from tests.support.trust import make_authority
from tests.support.upstream import Upstream
from tests.unit.training.test_extract import lines, otlp

pytestmark = [pytest.mark.slow, pytest.mark.server]

ROOT = Path(__file__).parents[3]
GATEWAY = "appliance-gateway.service"
ASK = """
import json, sys, urllib.request
body = {{"model": "chat", "messages": [{{"role": "user", "content": sys.argv[1]}}]}}
request = urllib.request.Request("http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
    {{"content-type": "application/json", "authorization": "Bearer {key}"}})
with urllib.request.urlopen(request, timeout=200) as answer:
    names = ("deployment", "routing")
    print(json.dumps({{name: answer.headers[f"x-appliance-{{name}}"] for name in names}}))
"""
STATUS = """
import urllib.request
headers = {{"authorization": "Bearer {key}"}}
request = urllib.request.Request("http://127.0.0.1:{port}/appliance/status", headers=headers)
print(urllib.request.urlopen(request, timeout=200).read().decode())
"""


@pytest.fixture(scope="module")
def room():
    if os.geteuid() != 0:
        pytest.skip("a systemd of its own needs root")
    # not below /tmp or /var/tmp: the units have their own
    with tempfile.TemporaryDirectory(prefix="appliance-room-", dir="/var/lib") as name:
        home = Path(name)
        home.chmod(0o755)
        upstreams = [Upstream("small", port=9001), Upstream("large", port=9002)]
        units = {
            f"{upstream.name}.service": f"[Service]\nWorkingDirectory={ROOT}\n"
            f"ExecStart={sys.executable} -m tests.support.upstream --name {upstream.name} --port {upstream.port}\n"
            for upstream in upstreams
        }
        units["appliance-gateway.service.d/impatient.conf"] = "[Service]\nWatchdogSec=40\nTimeoutAbortSec=2\n"
        prefix = manager.prepare(home, extra=units)
        here = zone(home / "zone", make_authority(home / "ca"), labels={"small": "small", "large": "large"})
        here.put()
        _, key = write_config(
            prefix / "etc", [deployment("chat", u) for u in upstreams], port=8443, tls=False, **here.sections()
        )
        config = yaml.safe_load((prefix / "etc" / "appliance.yaml").read_text())
        (prefix / "etc" / "appliance.yaml").write_text(
            yaml.safe_dump({**config, "state_dir": "/opt/appliance/state/gateway"}).replace(
                str(home / "zone"), "/opt/appliance/state"
            )
        )
        promoted(prefix / "registry", here)
        (prefix / "etc" / "registry.yaml").write_text("registry: {home: directory, path: /opt/appliance/registry}\n")
        for made in ("trust", "router", "encoder"):
            (home / "zone" / made).rename(prefix / "state" / made)
        shutil.copytree(ROOT / "scripts", prefix / "current" / "payload" / "scripts")
        collected(prefix / "etc" / "training" / "traces")
        write_encoder(tiny_encoder_artifact(), prefix / "etc" / "encoder")
        manager.hand_over(prefix)
        with manager.systemd(home) as running:
            for upstream in upstreams:
                assert running.systemctl("start", f"{upstream.name}.service").returncode == 0, running.log()
            assert running.systemctl("start", "appliance-gateway.socket").returncode == 0, running.log()
            started = running.systemctl("start", GATEWAY)
            assert started.returncode == 0, f"{running.systemctl('status', GATEWAY).stdout}\n{running.log()}"
            running.key = key
            running.ask = lambda prompt: ask(running, key, prompt)
            yield running


def promoted(folder: Path, here) -> None:
    """A registry with one router in it, as an officer left it."""
    folder.mkdir()
    material = here.authority.material
    registry = Registry(DirectoryStore(folder), material=lambda: material, clock=lambda: datetime.now(UTC))
    registry.publish(here.artifact(), name="default", version="1.0.0")
    registry.promote("default", "1.0.0", here.authority.signer("import-officer"))


def collected(traces: Path) -> None:
    """Judged traffic: one model answered each prompt, by the toss of a coin that the gateway recorded."""
    traces.mkdir(parents=True)
    spans = []
    for number, row in enumerate(rows(400)):
        model = f"m{number % 2}"
        spans.append(otlp(
            number + 1, litellm__call_id=str(number), llm__routing__selected_model=model, router__propensity=0.5,
            gen_ai__input__messages=json.dumps([{"role": "user", "content": row["query"]}]),
            judge__score=float(row["scores"][model]) if model == "m1" else 0.6,
        ))  # fmt: skip
    lines(traces / "week-1.jsonl", spans)


def ask(running, key: str, prompt: str) -> dict:
    done = running.run(sys.executable, "-c", ASK.format(port=8443, key=key), prompt)
    assert done.returncode == 0, f"{done.stderr}\n{running.log()}"
    return json.loads(done.stdout)


def process(running) -> dict[str, str]:
    """/proc/PID/status of the gateway."""
    pid = running.property(GATEWAY, "MainPID")
    lines = running.run("cat", f"/proc/{pid}/status").stdout.splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_real_prompt_is_embedded_and_routed_inside_the_hardened_unit(room):
    assert room.ask("easy what is the capital")["deployment"] == "small"
    answer = room.ask("hard prove the theorem")
    assert answer["deployment"] == "large"
    assert answer["routing"].startswith("ml:knn; success")


def test_the_unit_became_active_by_its_own_word(room):
    assert room.property(GATEWAY, "Type") == "notify"
    assert room.property(GATEWAY, "ActiveState") == "active"


def test_it_runs_as_its_own_user_without_a_single_capability(room):
    found = process(room)
    assert found["Uid"].split()[0] != "0"
    assert {int(found[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"


def test_memory_and_tasks_are_limited(room):
    assert room.property(GATEWAY, "MemoryMax") == str(4 * 1024**3)
    assert room.property(GATEWAY, "TasksMax") == "256"


LISTEN = """
import socket
listener = socket.create_server(("10.99.0.1", 7777))
print("listens", flush=True)
while True:
    listener.accept()
"""
CONNECT = """
import os, socket, sys
open(f"/sys/fs/cgroup{sys.argv[1]}/cgroup.procs", "w").write(str(os.getpid()))
try:
    socket.create_connection(("10.99.0.1", 7777), 3)
except OSError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_what_runs_in_the_units_control_group_reaches_nobody_but_this_host(room):
    """The kernel's filter, with a listener that anybody else in the room reaches."""
    assert room.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo").returncode == 0
    command = room.command(sys.executable, "-c", LISTEN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger:
        try:
            assert stranger.stdout.readline() == "listens\n"
            free = room.run(sys.executable, "-c", CONNECT, "/")
            assert free.returncode == 0, free.stderr
            caught = room.run(sys.executable, "-c", CONNECT, room.property(GATEWAY, "ControlGroup"))
            assert caught.returncode != 0
            assert "imeout" in caught.stderr or "not permitted" in caught.stderr, caught.stderr
        finally:
            stranger.kill()


def test_the_doctor_sees_from_its_unit_what_is_there(room):
    """A filter that kept the doctor's own questions from the kernel would make it warn on every host."""
    room.systemctl("start", "appliance-doctor.service")  # fails where a finding wants a hand, as here
    said = (room.home / "appliance-doctor.log").read_text()
    findings = {line.split()[1]: line for line in said.splitlines() if line[:1].strip()}
    assert findings["gateway"].startswith("ok"), said
    assert findings["permissions"].startswith("ok"), said
    abi = kernel().landlock_abi
    assert f"Landlock ABI {abi}" in findings["kernel"] or f"(has {abi})" in findings["kernel"], said
    assert (room.prefix / "state" / "doctor.prom").exists()


def told_of_the_registry(running) -> dict:
    """What the gateway's status says of the sidecar's channel, which the router of this room does not follow."""
    done = running.run(sys.executable, "-c", STATUS.format(port=8443, key=running.key))
    assert done.returncode == 0, done.stderr
    (channel,) = json.loads(done.stdout)["routers"]["default"]["unfollowed"] or [{}]
    return channel


def test_the_sidecar_brings_routers_in_its_hardened_unit_and_the_gateway_hears_how_the_registry_is(room):
    unit, volume = "appliance-sync.service", room.prefix / "state" / "volume"
    started = room.systemctl("start", unit)
    assert started.returncode == 0, (room.home / "appliance-sync.log").read_text()
    assert (volume / "routers" / "default" / "1.0.0" / "router.yaml").exists()
    assert volume.stat().st_uid == (room.prefix / "state").stat().st_uid != 0
    room.until(lambda: told_of_the_registry(room).get("contact_age_s") is not None)
    assert told_of_the_registry(room)["problem"] is None
    (room.prefix / "registry").rename(room.prefix / "registry-gone")
    try:
        room.until(lambda: told_of_the_registry(room)["problem"] == "REGISTRY_NOT_FOUND")
        assert room.ask("easy what is the capital")["deployment"] == "small"
        assert room.property(unit, "ActiveState") == "active", "a dead registry stops no sidecar"
    finally:
        (room.prefix / "registry-gone").rename(room.prefix / "registry")
        room.systemctl("stop", unit)


def test_the_training_job_runs_in_its_hardened_unit_and_ends_with_a_packaged_router(room):
    unit, options = "appliance-train.service", room.prefix / "etc" / "training" / "environment"
    options.write_text("TRAIN_OPTIONS=--strategy knn\n")
    assert room.systemctl("start", unit).returncode == 0, (room.home / "appliance-train.log").read_text()
    (packaged,) = room.prefix.glob("state/training/default/*/packaged")
    assert router_metadata(read(packaged)).evaluation["gate"]["passed"]
    status = packaged.stat()
    assert status.st_uid == (room.prefix / "state").stat().st_uid != 0
    assert status.st_mode & 0o077 == 0
    options.write_text("TRAIN_OPTIONS=--sources /opt/appliance/etc/none\n")
    assert room.systemctl("start", unit).returncode != 0
    assert room.property(unit, "Result") == "exit-code"
    assert "is no folder" in (room.home / "appliance-train.log").read_text()


def test_a_gateway_that_hangs_is_killed_by_the_watchdog_and_comes_back(room):
    pid = room.property(GATEWAY, "MainPID")
    restarts = int(room.property(GATEWAY, "NRestarts"))
    room.run("kill", "-STOP", pid)
    end = time.monotonic() + 600
    while int(room.property(GATEWAY, "NRestarts")) == restarts:
        assert time.monotonic() < end, "the watchdog did not bite"
        time.sleep(1)
    room.wait(GATEWAY, "active")
    assert room.property(GATEWAY, "MainPID") != pid
    assert room.ask("hard prove the theorem")["deployment"] == "large"


LOAD = """
import json, os, sys, urllib.request
count, failures = 0, []
while not os.path.exists(sys.argv[1]):
    body = {{"model": "chat", "messages": [{{"role": "user", "content": f"easy {{count}}"}}]}}
    request = urllib.request.Request("http://127.0.0.1:8443/v1/chat/completions", json.dumps(body).encode(),
        {{"content-type": "application/json", "authorization": "Bearer {key}"}})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()
    except OSError as error:
        failures.append(repr(error))
    count += 1
    print(json.dumps([count, failures]), flush=True)
"""


def test_while_the_gateway_is_restarted_its_listener_waits_and_no_request_fails(room):
    assert room.property("appliance-gateway.socket", "ActiveState") == "active"
    pid = room.property(GATEWAY, "MainPID")
    stop = room.home / "stop-load"
    command = room.command(sys.executable, "-c", LOAD.format(key=room.key), str(stop))
    logs = [room.home / f"client-{number}" for number in range(2)]
    clients = []
    for log in logs:
        with log.open("w") as output:
            clients.append(subprocess.Popen(command, stdout=output))

    def everybody_asked(times: int) -> None:
        end = time.monotonic() + 300
        while min(len(log.read_text().splitlines()) for log in logs) < times:
            assert time.monotonic() < end, room.log()
            time.sleep(0.1)

    try:
        everybody_asked(2)
        assert room.systemctl("restart", GATEWAY).returncode == 0, room.log()
        everybody_asked(1 + max(len(log.read_text().splitlines()) for log in logs))
    finally:
        stop.touch()
        for client in clients:
            client.wait(600)
    assert room.property(GATEWAY, "MainPID") != pid
    assert [json.loads(log.read_text().splitlines()[-1])[1] for log in logs] == [[], []]


def test_it_stops_within_its_drain_and_not_by_force(room):
    assert room.systemctl("stop", GATEWAY).returncode == 0
    assert room.property(GATEWAY, "Result") == "success"
    assert room.systemctl("start", GATEWAY).returncode == 0, room.log()
