"""Each runbook, run as a script against the real command."""

import json
import shutil
import ssl
import subprocess
import tarfile
import threading

import httpx
import pytest
import yaml

from tests.support import artifacts
from tests.support.bundle import small_release
from tests.support.gateway import deployment, serve, write_config
from tests.support.ports import free_port
from tests.support.runbooks import COMMAND, Desk, runbooks
from tests.support.s3 import swift_server
from tests.support.trust import make_authority
from tests.support.upstream import Upstream, upstream

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.fixture(scope="module")
def zone(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("zone") / "ca")


@pytest.fixture(scope="module")
def releases(zone, tmp_path_factory):
    return [small_release(tmp_path_factory.mktemp("release"), zone, f"1.{n}.0", epoch=n + 1) for n in range(2)]


@pytest.fixture(scope="module")
def installed(zone, releases, tmp_path_factory):
    """A host on which `install-from-media` has installed the first release."""
    home = tmp_path_factory.mktemp("host")
    (home / "anchor.json").write_bytes(releases[0].anchor)
    desk = Desk(home, home / "prefix")
    desk.done("install-from-media", releases[0].media, "--anchor", home / "anchor.json", "--apply")
    write_config(home / "prefix" / "etc", [deployment("chat", Upstream("x", port=9))], tls=False)
    return desk


@pytest.fixture
def desk(installed, tmp_path):
    """A copy of the host, so that every test has its own."""
    shutil.copytree(installed.prefix, tmp_path / "prefix", symlinks=True)
    return Desk(tmp_path, tmp_path / "prefix")


@pytest.fixture
def registry(zone, desk, tmp_path):
    """A directory registry that serves version 1.0.0 and has 1.1.0 beside it, followed by the host."""
    home = tmp_path / "registry"
    home.mkdir()
    for version in ("1.0.0", "1.1.0"):
        folder = artifacts.write(
            artifacts.signed(artifacts.router_files(version=version), zone.signer("import-officer")), tmp_path / version
        )
        desk.done("promote-model", folder, version, "--registry", home, "--authority", zone.path, "--apply")
    desk.done("promote-model", "default", "1.0.0", "--registry", home, "--authority", zone.path, "--apply")
    desk.done("sync-now", "--registry", home)
    return home


def served(registry, desk) -> dict:
    command = [COMMAND, "artifact", "show", "default", "--json", "--registry", registry]
    run = subprocess.run(
        [*command, "--trust", desk.prefix / "state" / "trust"], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)["target"]


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "install" not in path.parts and path.suffix != ".lock" and path.name != "lock"
    }


def test_media_that_are_not_there_are_refused_with_the_next_step(desk):
    run = desk("install-from-media", "/media/nothing", "--apply")
    assert run.returncode == 1
    assert "next: mount the media" in run.stderr


def test_without_apply_a_runbook_says_what_it_would_do_and_changes_nothing(desk, zone, releases, tmp_path):
    desk.done("back-up", tmp_path / "backup.tar", "--apply")
    (tmp_path / "registry" / "routers").mkdir(parents=True)
    router = artifacts.write(
        artifacts.signed(artifacts.router_files(version="1.0.0"), zone.signer("import-officer")), tmp_path / "router"
    )
    place = ("--registry", tmp_path / "registry", "--authority", zone.path)
    calls = (
        ("install-from-media", releases[1].media),
        ("roll-back",),
        ("install-units", "--root", tmp_path),
        ("promote-model", router, "1.0.0", *place),
        ("withdraw-model", "default", "1.0.0", *place),
        ("rotate-tls", "--authority", zone.path),
        ("rotate-signing-roots", "signing", "--authority", zone.path),
        ("renew-trust", "--authority", zone.path),
        ("refresh-trust", zone.repository),
        ("back-up", tmp_path / "another.tar"),
        ("restore", tmp_path / "backup.tar"),
        ("replace-disk", releases[0].media, tmp_path / "backup.tar"),
        ("new-admin-key",),
        ("move-registry", tmp_path / "registry", tmp_path / "moved"),
        ("evacuate-signer", "import-officer@appliance.internal", "--by", "import-officer-2@appliance.internal",
         "--honest", router, *place),
    )  # fmt: skip
    # three change nothing of an installation's; train-router has a zone and a test of its own
    others = {"drill", "sync-now", "collect-support", "train-router"}
    assert {call[0] for call in calls} == {path.name for path in runbooks()} - others
    asked = len(desk.asked)
    before = {folder: tree(folder) for folder in (desk.prefix, zone.path, tmp_path / "registry", router)}
    for name, *arguments in calls:
        said = desk.done(name, *arguments)
        assert "nothing was changed" in said, name
    for folder, files in before.items():
        assert tree(folder) == files
    assert len(desk.asked) == asked
    assert not (tmp_path / "another.tar").exists()
    assert not (tmp_path / "moved").exists()
    assert not (tmp_path / "etc").exists()


def test_move_the_registry_to_a_bucket(desk, registry, zone, tmp_path):
    with swift_server(zone.tls_server("127.0.0.1")) as server:
        server.make_bucket(tmp_path, "moved")
        bucket = tmp_path / "bucket.yaml"
        bucket.write_text(yaml.safe_dump({"registry": server.settings(tmp_path, bucket="moved")}))
        desk.done("move-registry", registry, bucket)
        assert not (desk.prefix / "etc" / "registry.yaml").exists()
        desk.done("move-registry", registry, bucket, "--apply")
        said = desk.done("move-registry", registry, bucket, "--apply")  # again
        assert "0 written" in said
        shutil.rmtree(registry)
        desk.done("sync-now")  # follows etc/registry.yaml, which names the bucket
        assert served(bucket, desk)["version"] == "1.0.0"


def test_a_damaged_or_strange_backup_is_not_restored(desk, tmp_path):
    desk.done("back-up", tmp_path / "backup.tar", "--apply")
    with (tmp_path / "backup.tar").open("r+b") as stream:
        stream.seek(600)
        stream.write(b"x")
    run = desk("restore", tmp_path / "backup.tar", "--apply")
    assert run.returncode == 1
    assert "not the one that was written" in run.stderr
    with tarfile.open(tmp_path / "strange.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    subprocess.run("sha256sum strange.tar > strange.tar.sha256", shell=True, cwd=tmp_path, check=True)
    run = desk("restore", tmp_path / "strange.tar", "--apply")
    assert run.returncode == 1
    assert "other files" in run.stderr


def test_a_restore_that_was_killed_is_finished_by_the_next_one(desk, tmp_path):
    desk.done("back-up", tmp_path / "backup.tar", "--apply")
    wanted = tree(desk.prefix / "etc")
    # as a kill leaves it after `etc` was moved away and before the new one came
    unpacked = desk.prefix / ".restoring"
    unpacked.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "backup.tar", "-C", unpacked], check=True)
    (unpacked / "complete").touch()
    (desk.prefix / "etc").rename(desk.prefix / "etc.before-restore")
    desk.done("restore", tmp_path / "backup.tar", "--apply")
    assert tree(desk.prefix / "etc") == wanted
    assert not unpacked.exists()


def test_a_lost_admin_key_is_replaced(desk):
    file = desk.prefix / "etc" / "master.key"
    old = file.read_text()
    desk.done("new-admin-key", "--file", file)
    assert file.read_text() == old
    desk.done("new-admin-key", "--file", file, "--apply")
    assert file.read_text() != old
    assert file.stat().st_mode & 0o777 == 0o600
    assert desk.asked[-1] == "restart appliance-gateway.service"
    check = subprocess.run(
        [COMMAND, "serve", "--check", "--config", desk.prefix / "etc" / "appliance.yaml"], check=False
    )
    assert check.returncode == 0


def test_only_one_runbook_works_at_a_time(desk):
    (desk.prefix / "state").mkdir(exist_ok=True)
    with subprocess.Popen(["flock", desk.prefix / "state" / ".runbook.lock", "sleep", "600"]) as holder:
        try:
            for _ in range(50):
                run = desk("new-admin-key", "--apply")
                if run.returncode:
                    break
            assert run.returncode == 1
            assert "another runbook" in run.stderr
        finally:
            subprocess.run(["pkill", "-P", str(holder.pid)], check=False)
            holder.kill()


def test_certificates_and_their_ca_are_rotated_under_load_without_a_failed_request(tmp_path):
    """Overlap: clients trust both CAs; then issue, switch, reload, retire."""
    mine = make_authority(tmp_path / "ca")
    etc = tmp_path / "prefix" / "etc"
    (tmp_path / "prefix" / "state").mkdir(parents=True)
    desk = Desk(tmp_path, tmp_path / "prefix")
    port = free_port()
    rotate = ("rotate-tls", "--authority", mine.path, "--san", "127.0.0.1", "--apply")
    desk.done(*rotate)
    with upstream("small") as small:
        config, key = write_config(
            etc, [deployment("chat", small)], port=port, tls=False,
            listen={"tls": {"certificate": "tls/gateway.pem", "key": "tls/gateway.key"}},
        )  # fmt: skip
        shutil.copy(etc / "tls" / "ca.pem", etc / "tls.crt")
        trusted = tmp_path / "clients-trust.pem"
        trusted.write_bytes((etc / "tls" / "ca.pem").read_bytes())
        with serve(config, key) as running:
            desk.act = f"kill -HUP {running.process.pid}"
            stop, failures, serials, count = threading.Event(), [], set(), [0]

            def load() -> None:
                while not stop.is_set():
                    context = ssl.create_default_context(cadata=trusted.read_text())
                    try:
                        with httpx.Client(
                            verify=context, trust_env=False, timeout=200
                        ) as client:  # a connection of its own
                            answer = client.post(
                                f"https://127.0.0.1:{port}/v1/chat/completions",
                                headers={"authorization": f"Bearer {key}"},
                                json={"model": "chat", "messages": [{"role": "user", "content": "hello"}]},
                            )
                        count[0] += 1
                        if answer.status_code != 200:
                            failures.append(answer.text)
                    except httpx.HTTPError as error:
                        failures.append(repr(error))

            threads = [threading.Thread(target=load) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                for step in range(3):
                    if step == 1:  # the CA itself: the new one is trusted before anything is issued by it
                        desk.done("rotate-signing-roots", "tls", "--authority", mine.path, "--apply")
                        issue = [COMMAND, "ca", "issue", "tls-server", "probe", "--san", "127.0.0.1"]
                        where = ["--out", tmp_path / "probe", "--authority", mine.path]
                        subprocess.run([*issue, *where], check=True, capture_output=True)
                        both = trusted.read_bytes() + (tmp_path / "probe" / "ca.pem").read_bytes()
                        trusted.with_suffix(".new").write_bytes(both)
                        trusted.with_suffix(".new").rename(trusted)
                    desk.done(*rotate, "--connect", f"127.0.0.1:{port}")
                    serials.add(ssl.get_server_certificate(("127.0.0.1", port)))
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
    assert not failures
    assert len(serials) == 3
    assert count[0] > 20
    assert len(list((etc / "tls.d").iterdir())) <= 3
