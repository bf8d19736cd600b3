"""Each runbook, run as a script against the real command."""

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import yaml

from appliance.bundle.inputs import Payload
from appliance.bundle.stage0 import assemble
from tests.support import artifacts
from tests.support.bundle import small_payload, small_release
from tests.support.gateway import deployment, serve, write_config
from tests.support.ports import free_port
from tests.support.runbooks import COMMAND, SCRIPTS, Desk, breakable_runbooks, runbooks
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


def test_what_the_doctor_calls_drift_the_same_media_put_right(desk, releases, tmp_path):
    def drift() -> list[str]:
        command = [COMMAND, "doctor", "--deep", "--json", "--prefix", desk.prefix]
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
        found = next(finding for finding in report["findings"] if finding["check"] == "drift")
        return [path for paths in found["evidence"].values() if isinstance(paths, list) for path in paths]

    site = next((desk.prefix / "current").resolve().glob("env/lib/python*/site-packages"))
    (site / "litellm_init.pth").write_text("import os")
    (site / "yaml" / "loader.py").unlink()
    assert sorted(drift()) == ["env/litellm_init.pth", "env/yaml/loader.py"]
    said = desk.done("install-from-media", releases[0].media, "--apply")
    assert "was not as signed: env/litellm_init.pth" in said
    assert drift() == []
    assert "already installed" in desk.done("install-from-media", releases[0].media, "--apply")


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
        ("rotate-tls", "--authority", zone.path, "--san", "x.internal"),
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
        settings = server.settings(tmp_path, bucket="moved")
        bucket.write_text(yaml.safe_dump({"registry": {**settings, "ca_file": Path(settings["ca_file"]).name}}))
        refused = desk("move-registry", registry, bucket, "--apply")  # its relative path leads nowhere from etc
        assert refused.returncode == 1
        assert "the old one stays" in refused.stderr
        assert not (desk.prefix / "etc" / "registry.yaml").exists()
        bucket.write_text(yaml.safe_dump({"registry": settings}))
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


def begun_restore(desk, archive):
    """As a kill leaves it after `etc` was taken away and before the new one came."""
    unpacked = desk.prefix / ".restoring"
    (unpacked / "old").mkdir(parents=True)
    subprocess.run(["tar", "-xf", archive, "-C", unpacked, "etc", "state"], check=True)
    (unpacked / "complete").write_text(hashlib.sha256(archive.read_bytes()).hexdigest())
    (desk.prefix / "etc").rename(unpacked / "old" / "etc")


def test_a_restore_that_was_killed_is_finished_by_the_next_one(desk, tmp_path):
    desk.done("back-up", tmp_path / "backup.tar", "--apply")
    wanted = tree(desk.prefix / "etc")
    (desk.prefix / "etc" / "appliance.yaml").write_text("spoilt")
    begun_restore(desk, tmp_path / "backup.tar")
    desk.done("restore", tmp_path / "backup.tar", "--apply")
    assert tree(desk.prefix / "etc") == wanted
    assert not (desk.prefix / ".restoring").exists()
    (kept,) = desk.prefix.glob("before-restore.*")
    assert (kept / "etc" / "appliance.yaml").read_text() == "spoilt"


def test_a_killed_restore_is_not_finished_in_the_name_of_another_archive_and_nothing_that_stood_is_lost(desk, tmp_path):
    desk.done("back-up", tmp_path / "first.tar", "--apply")
    (desk.prefix / "etc" / "appliance.yaml").write_text("second")
    desk.done("back-up", tmp_path / "second.tar", "--apply")
    (desk.prefix / "etc" / "appliance.yaml").write_text("third")
    begun_restore(desk, tmp_path / "first.tar")
    for _ in range(2):
        desk.done("restore", tmp_path / "second.tar", "--apply")
        assert (desk.prefix / "etc" / "appliance.yaml").read_text() == "second"
    kept = [path.read_text() for path in desk.prefix.glob("before-restore.*/etc*/appliance.yaml")]
    assert "third" in kept


def test_a_backup_that_is_killed_leaves_the_one_before_whole(desk, tmp_path):
    """Archive and sum are two files: between their two renames the sum names both."""
    archive = tmp_path / "backup.tar"
    desk.done("back-up", archive, "--apply")
    before = archive.read_bytes()
    (desk.prefix / "etc" / "appliance.yaml").write_text("changed")
    killer = tmp_path / "bin"
    killer.mkdir()
    for after in range(1, 4):
        count = tmp_path / "renames"
        count.write_text("0")
        mover = f"""#!/bin/bash
n=$(($(cat {count}) + 1)); echo $n >{count}
[ $n -lt {after} ] || kill -9 $PPID
exec /bin/mv "$@"
"""
        (killer / "mv").write_text(mover)
        (killer / "mv").chmod(0o755)
        # the runbook's own PATH comes first: a copy of it that looks for `mv` here
        scripts = tmp_path / f"scripts-{after}"
        shutil.copytree(SCRIPTS, scripts)
        library = scripts / "lib" / "runbook.sh"
        library.write_text(library.read_text().replace("PATH=/usr", f"PATH={killer}:/usr"))
        killed = replace(desk, scripts=scripts)("back-up", archive, "--apply")
        assert killed.returncode == -signal.SIGKILL
        desk.done("restore", archive)
        assert after > 1 or archive.read_bytes() == before
    desk.done("back-up", archive, "--apply")
    assert len(archive.with_suffix(".tar.sha256").read_text().splitlines()) == 1


def test_a_restore_that_does_not_fit_on_the_disk_stops_no_service_and_leaves_what_stands(desk, tmp_path):
    desk.done("back-up", tmp_path / "backup.tar", "--apply")
    (desk.prefix / "etc" / "mine.yaml").write_text("mine: 1\n")
    before = tree(desk.prefix)
    limited = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, limited)
    with (limited / "lib" / "runbook.sh").open("a") as library:
        library.write("ulimit -f 4 # as a full disk: no file becomes longer\n")
    asked = len(desk.asked)
    run = replace(desk, scripts=limited)("restore", tmp_path / "backup.tar", "--apply")
    assert run.returncode == 1
    assert "nothing was replaced" in run.stderr
    assert len(desk.asked) == asked
    unpacked = desk.prefix / ".restoring"
    assert {path: data for path, data in tree(desk.prefix).items() if not path.startswith(unpacked.name)} == before
    desk.done("restore", tmp_path / "backup.tar", "--apply")
    assert not (desk.prefix / "etc" / "mine.yaml").exists()


def test_a_prefix_that_has_become_read_only_is_backed_up(desk, tmp_path):
    """A failing disk is remounted so, and that is when a backup is wanted most."""
    (desk.prefix / "state" / "trust" / "note").write_text("x")
    for folder in (desk.prefix, desk.prefix / "state", desk.prefix / "etc"):
        folder.chmod(0o555)
    locked_out = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid", "0", "--clear-groups"]
    before = sorted(str(path) for path in desk.prefix.rglob("*"))
    subprocess.run(
        [*locked_out, SCRIPTS / "back-up", tmp_path / "backup.tar", "--prefix", desk.prefix, "--apply"], check=True
    )
    assert sorted(str(path) for path in desk.prefix.rglob("*")) == before
    assert (tmp_path / "backup.tar.sha256").exists()


def test_a_backup_beside_a_service_that_writes_holds_whole_files(desk, tmp_path):
    busy = desk.prefix / "state" / "gateway" / "busy"
    busy.mkdir(parents=True)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for number in range(50):
                (busy / "new").write_bytes(b"x" * 100_000)
                (busy / "new").replace(busy / f"file-{number}")
            for path in busy.glob("file-*"):
                path.unlink()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            desk.done("back-up", tmp_path / "backup.tar", "--apply")
    finally:
        stop.set()
        writer.join()
    desk.done("restore", tmp_path / "backup.tar")


def test_an_evacuation_that_was_killed_on_its_way_is_finished_by_the_next_one(desk, zone, tmp_path):
    """What it signed is published already, and whom it revoked stands in no role any more: neither is done twice."""
    registry = tmp_path / "registry"
    registry.mkdir()
    mine = tmp_path / "authority"
    shutil.copytree(zone.path, mine)
    honest = artifacts.write(artifacts.router_files(version="2.0.0"), tmp_path / "honest")
    bad, good = "import-officer@appliance.internal", "import-officer-2@appliance.internal"
    call = ("evacuate-signer", bad, "--by", good, "--honest", honest, "--registry", registry, "--authority", mine)
    for _ in range(2):
        desk.done(*call, "--apply")
        assert served(registry, desk)["version"] == "2.0.0"
    nobody = ("nobody@appliance.internal", "--by", good, "--registry", registry, "--authority", mine)
    wrong = desk("evacuate-signer", *nobody, "--apply")
    assert "TRUST_REVOCATION" in wrong.stderr


@pytest.fixture
def reachable():
    """A folder that every account can come to; pytest closes its own to all but the user."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_root_does_can_be_read_and_carried_on_by_the_account_of_the_services(installed, zone, reachable):
    """Runbooks are typed by root; the gateway and the sidecar are not root."""
    shutil.copytree(installed.prefix, reachable / "prefix", symlinks=True)
    desk = Desk(reachable, reachable / "prefix")
    account = 12_345
    for path in (desk.prefix / "state", *(desk.prefix / "state").rglob("*")):
        os.chown(path, account, account, follow_symlinks=False)
    registry = reachable / "registry"
    registry.mkdir()
    signed = artifacts.signed(artifacts.router_files(version="1.0.0"), zone.signer("import-officer"))
    router = artifacts.write(signed, reachable / "router")
    desk.done("promote-model", router, "1.0.0", "--registry", registry, "--authority", zone.path, "--apply")
    desk.done("move-registry", registry, reachable / "moved", "--apply")  # and syncs
    desk.done("refresh-trust", zone.repository, "--apply")
    desk.done("rotate-tls", "--authority", zone.path, "--san", "127.0.0.1", "--apply")
    places = [*(desk.prefix / "state").rglob("*"), *(desk.prefix / "etc" / "tls.d").rglob("*")]
    assert [path for path in places if path.lstat().st_uid != account] == []


def test_whose_everything_is_once_the_units_are_in_place_however_often_they_are_put_there(tmp_path):
    """In an /etc of its own: what was closed stays closed and is the services' own, what decides is root's."""
    prefix, accounts = tmp_path / "prefix", tmp_path / "accounts"
    for folder in ("etc/secrets", "etc/registry", "state/trust"):
        (prefix / folder).mkdir(parents=True)
    closed = ("appliance.yaml", "litellm.yaml", "registry.yaml", "secrets/master.key", "secrets/token")
    for name in (*closed, "registry/credentials.yaml"):
        (prefix / "etc" / name).write_text(name)
        (prefix / "etc" / name).chmod(0o600)
    (prefix / "etc" / "registry" / "ca.pem").write_text("everybody may read it")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    (prefix / "etc" / "link").symlink_to(elsewhere)
    accounts.mkdir()
    for name, line in (("passwd", "appliance:x:990:990::/:/usr/sbin/nologin"), ("group", "appliance:x:990:")):
        known = [each for each in Path("/etc", name).read_text().splitlines() if not each.startswith("appliance:")]
        (accounts / name).write_text("\n".join([*known, line, ""]))
    own = [word for name in ("passwd", "group") for word in ("--ro-bind", str(accounts / name), f"/etc/{name}")]
    own += [word for each in ("/etc/systemd", "/usr/lib/sysusers.d", "/usr/local/share") for word in ("--tmpfs", each)]
    script = [str(SCRIPTS / "install-units"), "--prefix", str(prefix), "--apply"]
    for _ in range(2):
        done = subprocess.run(
            ["bwrap", "--dev-bind", "/", "/", *own, *script],
            capture_output=True, text=True, check=False,
            env={**os.environ, "APPLIANCE": str(COMMAND), "SYSTEMCTL": "true"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    found = {
        str(path.relative_to(prefix)): (path.lstat().st_mode & 0o777, path.lstat().st_uid, path.lstat().st_gid)
        for path in prefix.rglob("*")
        if not path.is_symlink()
    }
    secrets = {name for name, (mode, _, _) in found.items() if name.startswith("etc/") and mode == 0o600}
    assert secrets == {"etc/secrets/master.key", "etc/secrets/token", "etc/registry/credentials.yaml"}
    assert all(found[name][1:] == (990, 990) for name in secrets)
    decides = {"etc", "etc/appliance.yaml", "etc/litellm.yaml", "etc/registry.yaml", "etc/registry/ca.pem"}
    assert {found[name][1:] for name in decides} == {(0, 990)}
    assert {found[name][0] for name in decides} == {0o750, 0o640}
    assert found["state/trust"][1:] == (990, 990)
    assert elsewhere.stat().st_uid == os.getuid(), "no link is followed"


def test_a_host_without_the_units_is_restored_and_says_what_is_left_to_do(desk, tmp_path):
    bare = replace(desk, units=False)
    bare.done("back-up", tmp_path / "backup.tar", "--apply")
    said = bare.done("restore", tmp_path / "backup.tar", "--apply")
    assert "no appliance-gateway.service on this host; next, by hand: start" in said
    assert "no appliance-gateway.service" in bare.done("new-admin-key", "--apply")


def test_the_key_is_written_where_the_configuration_looks_for_it(desk):
    file = desk.prefix / "etc" / "master.key"
    old = file.read_text()
    assert str(file) in desk.done("new-admin-key", "--apply")
    assert file.read_text() != old


def test_a_certificate_that_was_issued_elsewhere_needs_no_authority_on_the_host(desk, zone, tmp_path):
    command = [COMMAND, "ca", "issue", "tls-server", "gate", "--san", "gateway.zone.internal"]
    subprocess.run([*command, "--out", tmp_path / "issued", "--authority", zone.path], check=True, capture_output=True)
    desk.done("rotate-tls", "--issued", tmp_path / "issued", "--name", "gate", "--apply")
    pair = [desk.prefix / "etc" / "tls" / f"gateway.{end}" for end in ("pem", "key")]
    assert [path.read_bytes() for path in pair] == [
        (tmp_path / "issued" / f"gate.{end}").read_bytes() for end in ("pem", "key")
    ]
    subprocess.run([*command, "--out", tmp_path / "other", "--authority", zone.path], check=True, capture_output=True)
    shutil.copy(tmp_path / "other" / "gate.key", tmp_path / "issued" / "gate.key")
    run = desk("rotate-tls", "--issued", tmp_path / "issued", "--name", "gate", "--apply")
    assert run.returncode == 1
    assert "do not belong together" in run.stderr


def test_a_hostile_environment_and_odd_paths_change_nothing(installed, zone, tmp_path):
    """Another PATH, CDPATH, BASH_ENV, functions and options for tar; blanks, quotes and a line's end in every path."""
    home = tmp_path / "a b's\n$(c)"
    shutil.copytree(installed.prefix, home / "pre fix", symlinks=True)
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("tar", "rm", "mv", "openssl", "date", "stat", "flock", "sha256sum", "install", "xargs", "realpath"):
        (evil / name).write_text("#!/bin/sh\nexit 66\n")
        (evil / name).chmod(0o755)
    (evil / "environment").write_text("exit 67\n")
    (tmp_path / "elsewhere" / "backups").mkdir(parents=True)
    hostile = {
        "PATH": f".:{evil}:{os.environ['PATH']}", "IFS": "/ae", "CDPATH": str(tmp_path / "elsewhere"),
        "BASH_ENV": str(evil / "environment"), "TAR_OPTIONS": "--exclude=*", "LC_ALL": "tr_TR.UTF-8",
        "BASH_FUNC_rm%%": "() { exit 68; }", "BASH_FUNC_tar%%": "() { exit 68; }",
    }  # fmt: skip
    desk = Desk(home, home / "pre fix")
    (home / "backups").mkdir()
    mask = os.umask(0)
    try:
        for number in range(5):
            desk.done("rotate-tls", "--authority", zone.path, "--san", "x.internal", "--apply", **hostile)
            desk.done("new-admin-key", "--apply", **hostile)
            desk.done("back-up", f"backups/{number} .tar", "--apply", **hostile)
            desk.done("restore", f"backups/{number} .tar", "--apply", **hostile)
    finally:
        os.umask(mask)
    assert sorted(path.name for path in (home / "backups").iterdir())[::2] == [f"{n} .tar" for n in range(5)]
    assert len(list((desk.prefix / "etc" / "tls.d").iterdir())) == 3
    written = [*(home / "backups").iterdir(), *(desk.prefix / "etc" / "tls.d").rglob("*.key")]
    assert [path for path in written if path.stat().st_mode & 0o077] == []


def test_an_empty_host_is_brought_back_with_media_anchor_and_backup_alone(zone, tmp_path):
    """Nothing of the appliance is left on it: no command, no runbook. Each way is killed once and repeated."""
    carried = [
        Payload(f"scripts/{path.relative_to(SCRIPTS)}", path.read_bytes(), executable=path.parent == SCRIPTS)
        for path in (*runbooks(), SCRIPTS / "lib" / "runbook.sh")
    ]
    stage0 = Payload("stage0.py", assemble.assemble().encode(), executable=True)
    release = small_release(tmp_path / "media", zone, payload=small_payload(extra=[*carried, stage0], whole=True))
    anchor, prefix = tmp_path / "anchor.json", tmp_path / "prefix"
    anchor.write_bytes(release.anchor)
    desk = Desk(tmp_path, prefix, units=False, appliance="")
    run = desk("install-from-media", release.media, "--apply")
    assert run.returncode == 1
    assert "stage0.py as it reached you by the second channel" in run.stderr
    (tmp_path / "stage0.py").write_bytes(stage0.content)
    call = ("install-from-media", release.media, "--anchor", anchor, "--stage0", tmp_path / "stage0.py")
    desk.done(*call)
    assert not prefix.exists()
    desk.done(*call, "--apply")
    (prefix / "etc" / "mine.yaml").write_text("mine: 1\n")
    desk.done("back-up", tmp_path / "backup.tar", "--apply")
    kept = tree(prefix / "etc")
    shutil.rmtree(prefix)
    subprocess.run(["tar", "-xf", "backup.tar", "scripts", "stage0.py"], check=True, cwd=tmp_path)
    rescue = replace(desk, scripts=tmp_path / "scripts")
    again = ("replace-disk", release.media, tmp_path / "backup.tar", "--anchor", anchor, "--apply")
    killed = subprocess.Popen(
        [str(rescue.scripts / again[0]), *map(str, again[1:]), "--prefix", str(prefix)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "SYSTEMCTL": "false"},
    )  # fmt: skip
    while not (prefix / "releases").exists() and killed.poll() is None:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    said = rescue.done(*again)
    assert "install-units --apply" in said
    assert tree(prefix / "etc") == kept


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


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("  master_key_file: 'two words/master.key'  # theirs", "two words/master.key"),
        ('  master_key_file: "secrets/other.key"', "secrets/other.key"),
        ("  {master_key_file: secrets/flow.key, config: litellm.yaml}", "secrets/flow.key"),
    ],
)
def test_a_key_file_is_found_however_yaml_writes_its_name(tmp_path, line, file):
    etc = tmp_path / "prefix" / "etc"
    etc.mkdir(parents=True)
    (tmp_path / "prefix" / "state").mkdir()
    (etc / "appliance.yaml").write_text(f"litellm:\n{line}\n")
    Desk(tmp_path, tmp_path / "prefix").done("new-admin-key", "--apply")
    assert (etc / file).read_text().startswith("sk-")


BEFORE_THE_PAIR_STANDS = (
    "rm -rf",
    "install -m",
    'mv -T "$making/$NAME.$end"',
    "sync --file-system",
    'mv -T "$making" "$fresh"',
)
AS_IT_CHANGES = ("ln -sfn", "change_places", 'mv -T "$new" "$before"', 'mv -T "$new" "$ETC/tls"', '"$manager" cat')
AFTER_IT = ("shown=", "find ")
KEY_STEPS = ("rm -f", "printf 'sk-", "chmod 600", "sync", 'mv -T "$file.new"', '"$manager" cat', 'say "read it')


def test_a_gateway_serves_on_wherever_a_new_certificate_or_a_new_key_is_killed(tmp_path):
    """SIGKILL at each step of both, while it answers: with the old or the new, and the next attempt ends well."""
    mine = make_authority(tmp_path / "ca")
    etc, port = tmp_path / "prefix" / "etc", free_port()
    (tmp_path / "prefix" / "state").mkdir(parents=True)
    desk = Desk(tmp_path, tmp_path / "prefix", scripts=breakable_runbooks(tmp_path / "scripts"))
    issue = [COMMAND, "ca", "issue", "tls-server", "gate", "--san", "127.0.0.1", "--authority", mine.path, "--out"]
    subprocess.run([*issue, tmp_path / "issued"], check=True, capture_output=True)
    (etc / "tls").mkdir(parents=True)  # as somebody placed them by hand: a folder, no link
    for end in ("pem", "key"):
        shutil.copy(tmp_path / "issued" / f"gate.{end}", etc / "tls" / f"gateway.{end}")
    issued = ("--issued", tmp_path / "issued", "--name", "gate")
    rotate = ("rotate-tls", *issued, "--connect", f"127.0.0.1:{port}", "--apply")

    def whole() -> bool:
        """What stands on the disk is a pair that a gateway could boot with."""
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            etc / "tls" / "gateway.pem", etc / "tls" / "gateway.key"
        )
        return True

    with upstream("small") as small:
        config, old = write_config(
            etc, [deployment("chat", small)], port=port, tls=False,
            listen={"tls": {"certificate": "tls/gateway.pem", "key": "tls/gateway.key"}},
        )  # fmt: skip
        shutil.copy(tmp_path / "issued" / "ca.pem", etc / "tls.crt")
        with serve(config, old) as running:
            desk.act = f"[ $1 = restart ] || kill -HUP {running.process.pid}"

            def answers() -> bool:
                with running.new_client() as fresh:
                    message = {"role": "user", "content": "hello"}
                    asked = fresh.post("/v1/chat/completions", json={"model": "chat", "messages": [message]})
                    return asked.status_code == 200

            for step in (*BEFORE_THE_PAIR_STANDS, *AS_IT_CHANGES[:3]):
                desk.killed(step, *rotate)
                running.process.send_signal(signal.SIGHUP)
                assert whole(), step
                assert answers(), step
            desk.done(*rotate)
            for step in (*AS_IT_CHANGES[3:], *AFTER_IT):
                desk.killed(step, *rotate)
                assert whole(), step
                assert answers(), step
            desk.done(*rotate)
            assert len(list((etc / "tls.d").iterdir())) <= 3
            for step in KEY_STEPS:
                desk.killed(step, "new-admin-key", "--apply")
                standing = etc / "master.key"
                assert standing.read_text().startswith("sk-"), step
                assert standing.stat().st_mode & 0o777 == 0o600, step
                assert answers(), "with the key it booted with"
            desk.done("new-admin-key", "--apply")
            assert desk.asked[-1] == "restart appliance-gateway.service"
        new = (etc / "master.key").read_text().strip()
        assert new != old
        with serve(config, new) as running:
            assert running.chat("hello").status_code == 200
            assert running.client.get("/v1/models", headers={"authorization": f"Bearer {old}"}).status_code == 401


def test_only_one_runbook_works_at_a_time(desk):
    with subprocess.Popen(["flock", desk.prefix, "sleep", "600"]) as holder:
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
