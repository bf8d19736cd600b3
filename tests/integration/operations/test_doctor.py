"""The doctor on a genuine installation: what is gathered is what is there."""

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.bundle.install import install
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from appliance.cli.main import app
from appliance.errors import ApplianceError
from appliance.operations.doctor.checks import examine
from appliance.operations.doctor.facts import host, release, trust
from appliance.operations.doctor.gather import Places, gather
from appliance.registry import sidecar
from appliance.registry.cache import Cache
from appliance.registry.directory import DirectoryStore
from appliance.settings import load
from tests.support.bundle import small_release
from tests.support.gateway import certificate, deployment, write_config
from tests.support.servers import service_directory
from tests.support.upstream import Upstream

pytestmark = pytest.mark.slow


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def installed(tmp_path_factory, authority) -> Path:
    made = small_release(tmp_path_factory.mktemp("release"), authority)
    prefix = tmp_path_factory.mktemp("host") / "prefix"
    conduct = Conduct(python=sys._base_executable)
    install([made.media], prefix, made.anchor, now=now(), conduct=conduct)
    return prefix


@pytest.fixture
def prefix(installed, tmp_path) -> Path:
    shutil.copytree(installed, tmp_path / "prefix", symlinks=True)
    return tmp_path / "prefix"


def drift(prefix: Path, *, deep: bool = False):
    return release.drift(prefix, now=now(), deep=deep)


def current(prefix: Path) -> Path:
    return prefix / "current"


@pytest.mark.parametrize("deep", [False, True], ids=["quick", "deep"])
def test_a_fresh_installation_is_as_it_was_signed(prefix, deep):
    found = drift(prefix, deep=deep)
    assert found.compared > 100
    assert not found.changed + found.missing + found.foreign
    assert found.signature_problem is None
    assert found.signer == "release-signer@appliance.internal"


def test_one_changed_byte_is_found(prefix):
    victim = current(prefix) / "payload" / "evidence" / "note.txt"
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"X")
    assert drift(prefix).changed == ("payload/evidence/note.txt",)


def test_a_changed_byte_of_a_large_file_is_found_by_the_deep_look(prefix):
    victim = max((current(prefix) / "payload" / "wheels").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    assert f"payload/wheels/{victim.name}" in drift(prefix, deep=True).changed


def test_a_missing_file_a_link_and_a_stranger_are_found(prefix):
    site = next(current(prefix).glob("env/lib/python*/site-packages"))
    (current(prefix) / "payload" / "evidence" / "note.txt").unlink()
    module = site / "yaml" / "loader.py"
    module.unlink()
    module.symlink_to("/etc/hostname")
    (site / "litellm_init.pth").write_text("import os")
    found = drift(prefix)
    assert "payload/evidence/note.txt" in found.missing
    assert "env/yaml/loader.py" in found.missing
    assert "env/litellm_init.pth" in found.foreign


def test_a_changed_module_of_the_environment_is_found(prefix):
    site = next(current(prefix).glob("env/lib/python*/site-packages"))
    module = site / "yaml" / "loader.py"
    text = module.read_bytes()
    module.unlink()  # it may be linked to another copy
    module.write_bytes(text + b"\nimport os\n")
    assert "env/yaml/loader.py" in drift(prefix).changed


def test_a_manifest_that_was_rewritten_does_not_verify(prefix):
    manifest = current(prefix) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b'"epoch":1', b'"epoch":2'))
    found = drift(prefix)
    problem = found if isinstance(found, ApplianceError) else found.signature_problem
    assert problem is not None


def test_without_an_installation_there_is_nothing_to_compare(tmp_path):
    assert drift(tmp_path) is None


def test_a_release_that_lost_its_marker_is_no_release(prefix):
    (current(prefix) / "release.json").unlink()
    found = drift(prefix)
    assert isinstance(found, ApplianceError)
    assert found.code == "OPERATION_DRIFT"


def test_trust_facts_are_those_of_the_state(prefix):
    found = trust.trust(prefix / "state" / "trust")
    assert set(found.expires) == {"root", "timestamp", "snapshot", "targets"}
    assert all(end > now() for end in found.expires.values())
    assert found.floor <= now() + timedelta(minutes=1)
    lost = trust.trust(prefix / "state" / "nothing")
    assert isinstance(lost, ApplianceError)
    assert lost.code == "TRUST_STATE_MISSING"


def test_certificates_are_judged_with_their_key_and_their_issuer(tmp_path, authority):
    config, _ = write_config(tmp_path, [deployment("chat", Upstream("x", port=9))])
    (good,) = trust.certificates(load(config))
    assert not good.problem
    other = tmp_path / "other"
    other.mkdir()
    _, strange_key = certificate(other)
    shutil.copy(strange_key, tmp_path / "tls.key")
    (mismatched,) = trust.certificates(load(config))
    assert "is not its key" in mismatched.problem
    issued = authority.tls_server("gateway")
    (tmp_path / "tls.crt").write_bytes(issued.certificate_pem)
    (tmp_path / "tls.key").write_bytes(issued.key_pem)
    (tmp_path / "ca.pem").write_bytes(issued.ca_pem)
    (chained,) = trust.certificates(load(config))
    assert not chained.problem
    (tmp_path / "ca.pem").write_bytes((other / "tls.crt").read_bytes())
    (foreign,) = trust.certificates(load(config))
    assert "did not issue it" in foreign.problem
    (tmp_path / "tls.crt").write_text("no certificate")
    (broken,) = trust.certificates(load(config))
    assert "cannot be read" in broken.problem


def test_every_certificate_that_the_configuration_names_is_judged_and_its_key_is_a_secret(tmp_path):
    def issued(name: str) -> dict[str, str]:
        (tmp_path / name).mkdir()
        own, key = certificate(tmp_path / name)
        return {"ca_file": str(own), "client_certificate": f"{name}.crt", "client_key": str(key)}

    registry = {"home": "s3", "endpoint": "minio:9000", "bucket": "registry", "credentials_file": "c", **issued("s3")}
    routing = {"encoders": ["encoder"], "routers": {"default": {"registry": registry, "channel": "default"}}}
    config, _ = write_config(
        tmp_path,
        [deployment("chat", Upstream("x", port=9))],
        telemetry={"otlp_endpoint": "https://collector:4318", **issued("traces")},
        routing=routing,
        trust={"store": "trust"},
    )
    for name in ("s3", "traces"):
        shutil.copy(tmp_path / name / "tls.crt", tmp_path / f"{name}.crt")
    (tmp_path / "traces" / "tls.key").write_bytes((tmp_path / "s3" / "tls.key").read_bytes())
    (tmp_path / "s3" / "tls.key").chmod(0o644)
    found = {each.use: each.problem for each in trust.certificates(load(config))}
    assert set(found) == {
        "gateway", "telemetry client", "telemetry CA",
        "routing routers default registry client", "routing routers default registry CA",
    }  # fmt: skip
    assert [use for use, problem in found.items() if "is not its key" in problem] == ["telemetry client"]
    (open_key,) = [
        each
        for each in gather(Places(tmp_path, config), now=now()).modes
        if each.kind == "secret" and each.mode & 0o077
    ]
    assert open_key.path == tmp_path / "s3" / "tls.key"


def test_what_the_sidecars_own_settings_name_is_judged_like_the_gateways(tmp_path):
    config, _ = write_config(tmp_path / "etc", [deployment("chat", Upstream("x", port=9))])
    own, _ = certificate(tmp_path / "etc")
    (own.with_name("host.pem")).write_bytes(own.read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    certificate(other)
    (tmp_path / "etc" / "credentials.yaml").write_text("access_key: a\nsecret_key: b\n")
    (tmp_path / "etc" / "credentials.yaml").chmod(0o640)
    (tmp_path / "etc" / "registry.yaml").write_text(
        "registry: {home: s3, endpoint: 'minio:9000', bucket: routers, ca_file: ../other/tls.crt, "
        "credentials_file: credentials.yaml, client_certificate: host.pem, client_key: ../other/tls.key}"
    )
    seen = gather(Places(tmp_path, config), now=now())
    problems = {each.use: each.problem for each in seen.certificates}
    assert set(problems) == {"gateway", "sidecar client", "sidecar CA"}
    assert "is not its key" in problems["sidecar client"]
    (open_file,) = [each for each in seen.modes if each.kind == "secret" and each.mode & 0o077]
    assert open_file.path.name == "credentials.yaml"
    ended = [
        f for f in examine(gather(Places(tmp_path, config), now=now() + timedelta(days=3))) if f.check == "certificates"
    ]
    assert any("systemctl restart appliance-sync" in f.remedy for f in ended if f.text.startswith("sidecar CA"))


def test_a_sidecar_that_has_reached_no_registry_yet_is_heard_all_the_same(tmp_path):
    cache, volume = tmp_path / "sync", tmp_path / "volume"
    assert trust.channels(cache, volume, now()) == (), "no sidecar"
    volume.mkdir()
    Cache(cache)
    sidecar.leave(DirectoryStore(volume), {})
    assert trust.channels(cache, volume, now()) == (), "a registry without channels"
    sidecar.leave(DirectoryStore(volume), {}, "REGISTRY_UNREACHABLE")
    (found,) = trust.channels(cache, volume, now())
    assert (found.name, found.contact) == ("all channels", None)


def test_a_listening_socket_is_seen_with_address_port_and_command():
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        for listener, address in ((four, "127.0.0.1"), (six, "::1")):
            listener.bind((address, 0))
            listener.listen()
        found = {(each.address, each.port): each for each in host.listeners()}
        assert found["127.0.0.1", four.getsockname()[1]].loopback
        assert found["::1", six.getsockname()[1]].loopback
        assert found["127.0.0.1", four.getsockname()[1]].command


def test_an_attempt_tells_what_answered_from_what_did_not():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        open_port = listener.getsockname()[1]
        (reached,) = host.attempts([f"127.0.0.1:{open_port}"])
    (refused,) = host.attempts([f"127.0.0.1:{open_port}"])
    assert (reached.outcome, reached.escaped) == ("connected", True)
    assert (refused.outcome, refused.escaped) == ("ECONNREFUSED", True)


def test_the_kernel_is_asked_and_not_guessed():
    found = host.kernel()
    assert found.release == os.uname().release
    assert found.seccomp
    assert found.landlock_abi >= 0


def test_gathering_changes_nothing(prefix):
    def tree() -> dict:
        return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in prefix.rglob("*") if "clock" not in p.name}

    before = tree()
    gather(Places.below(prefix), now=now(), deep=True)
    assert tree() == before


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_the_command_speaks_json_text_and_nagios_with_their_exit_status(prefix, tmp_path):
    answer = run("--prefix", str(prefix), "--json", "--textfile", str(tmp_path / "doctor.prom"))
    assert answer.exit_code == 1  # no gateway runs
    report = json.loads(answer.stdout)
    found = {finding["check"]: finding for finding in report["findings"]}
    assert report["severity"] == "critical"
    assert found["gateway"]["code"] == "OPERATION_GATEWAY_DOWN"
    assert found["drift"]["severity"] == "ok"
    assert 'appliance_doctor_severity{check="gateway"} 2' in (tmp_path / "doctor.prom").read_text()
    text = run("--prefix", str(prefix))
    assert "next: " in text.stdout
    nagios = run("--prefix", str(prefix), "--nagios")
    assert nagios.exit_code == 2
    assert nagios.stdout.startswith("APPLIANCE CRITICAL - OPERATION_GATEWAY_DOWN")


def test_nagios_gets_its_line_and_unknown_where_the_doctor_itself_cannot_look(prefix, tmp_path):
    nothing = run("--prefix", str(tmp_path / "nothing"), "--nagios")
    assert nothing.exit_code == 3
    assert nothing.stdout.startswith("APPLIANCE UNKNOWN - OPERATION_NOT_INSTALLED: ")
    unwritten = run("--prefix", str(prefix), "--nagios", "--textfile", str(tmp_path / "no" / "folder.prom"))
    assert unwritten.stdout.startswith("APPLIANCE CRITICAL - OPERATION_GATEWAY_DOWN"), "what was found is told"
    assert "FILE_MISSING" in unwritten.stdout


def test_on_a_host_where_everything_is_wrong_at_once_every_finding_is_named(prefix):
    """A clock of 1970 must neither hide a changed file nor call the release's own signature into question."""
    (prefix / "current" / "payload" / "foreign.sh").write_text("echo hi\n")
    with socket.create_server(("0.0.0.0", 0)) as stranger:
        port = stranger.getsockname()[1]
        found = examine(gather(Places.below(prefix), now=datetime(1970, 1, 2, tzinfo=UTC)))
    ill = {finding.code: finding for finding in found if finding.code}
    assert {"OPERATION_CLOCK", "OPERATION_DRIFT", "OPERATION_LISTENING", "OPERATION_GATEWAY_DOWN"} <= set(ill)
    assert ill["OPERATION_DRIFT"].evidence == {"foreign": ["payload/foreign.sh"]}
    ports = [finding.evidence["port"] for finding in found if finding.code == "OPERATION_LISTENING"]
    assert port in ports
    assert {finding.check for finding in found if finding.check.startswith("trust")} == {"trust-metadata", "trust-keys"}
    assert all(finding.remedy for finding in ill.values())


def test_nothing_installed_is_a_refusal_and_a_strange_probe_wrong_usage(tmp_path):
    answer = run("--prefix", str(tmp_path / "nowhere"), "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["error"]["code"] == "OPERATION_NOT_INSTALLED"
    assert run("--probe", "not-a-port").exit_code == 2


def test_an_unfinished_installation_is_told(prefix):
    home = Prefix(prefix)
    assert release.unfinished(prefix) is None
    for name in home.journal.iterdir():
        assert name.is_file()


@pytest.mark.parametrize("name", ["appliance.yaml", "litellm.yaml"])
def test_a_configuration_that_others_can_write_is_told(tmp_path, name):
    places = Places.below(tmp_path)
    places.config.parent.mkdir(0o755)
    write_config(places.config.parent, [], tls=False)
    written = places.config.parent / name
    written.chmod(0o644)

    def told():
        found = examine(gather(places, now=now()))
        return [each.evidence["path"] for each in found if each.code == "OPERATION_PERMISSIONS"]

    assert written not in told()
    written.chmod(0o646)
    assert written in told()


@pytest.fixture
def others_prefix():
    """A prefix whose state and configuration only its owner may read, in a place that everybody reaches."""
    with service_directory() as place:
        prefix = place / "prefix"
        for folder in (prefix / "state", prefix / "etc"):
            folder.mkdir(parents=True, mode=0o700)
        prefix.chmod(0o755)
        yield prefix


def test_what_this_user_may_not_read_is_unknown_and_the_rest_is_told(others_prefix):
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    asked = "import os, sys; os.setgid(65534); os.setuid(65534); from appliance.cli.main import main; main()"
    whole = "import appliance.operations.doctor.gather, appliance.operations.doctor.checks, appliance.cli.doctor;"
    done = subprocess.run(
        [sys.executable, "-c", f"{whole} from appliance.errors import catalogue; catalogue(); {asked}",
         "doctor", "--prefix", str(others_prefix), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout, done.stderr
    found = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["trust-metadata"]["code"] == "OPERATION_UNREADABLE"
    assert found["trust-metadata"]["severity"] == "unknown"
    assert found["kernel"]["severity"] in {"ok", "warning"}
