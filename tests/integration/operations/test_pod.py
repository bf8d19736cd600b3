"""What the manifests do before the gateway starts, done as a pod does it: the same script, the same kind of mounts."""

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from appliance import settings
from appliance.errors import ConfigError
from appliance.gateway import boot
from appliance.trust.store import TrustStore
from tests.support.gateway import certificate

RENDERED = Path(__file__).parents[3] / "bundle" / "kubernetes" / "rendered"
USER = 10001  # the image's
KEY = "sk-0123456789abcdefghijklmnopqrstuv\n"


def projected(folder: Path, files: dict[str, str]) -> Path:
    """A volume as the kubelet projects it: names are links through `..data`, files are readable by a group."""
    generation = folder / "..2026_11_23_12_00_00.1"
    generation.mkdir(parents=True)
    for name, text in files.items():
        (generation / name).write_text(text)
        (generation / name).chmod(0o440)
        (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data").symlink_to(generation.name)
    return folder


@pytest.fixture
def pod(tmp_path, authority):
    """Folders that stand for a pod's volumes; `given` are the projected ones."""
    documents = list(yaml.safe_load_all((RENDERED / "postgres-minio.yaml").read_text()))
    config = next(d["data"] for d in documents if d["kind"] == "ConfigMap" and "gateway" in d["metadata"]["name"])
    pem, key = certificate(tmp_path)
    projected(tmp_path / "given/config", config)
    projected(tmp_path / "given/secrets", {"master.key": KEY})
    projected(tmp_path / "given/tls", {"tls.crt": pem.read_text(), "tls.key": key.read_text()})
    projected(tmp_path / "given/registry", {"ca.pem": pem.read_text(), "credentials.yaml": "access_key: a\n"})
    projected(tmp_path / "given/postgres", {"ca.pem": pem.read_text(), "password": "secret\n"})
    for folder in ("opt/appliance/etc", "opt/appliance/state/trust", "opt/appliance/seed"):
        (tmp_path / folder).mkdir(parents=True)
    authority.store(tmp_path / "opt/appliance/seed/trust")
    subprocess.run(["chmod", "-R", "go=rX", tmp_path / "opt/appliance/seed"], check=True)
    if os.geteuid() == 0:
        as_the_kubelet_gives_them(tmp_path)
    return tmp_path


def as_the_kubelet_gives_them(pod: Path) -> None:
    """Volumes belong to root, and to the pod's group (`fsGroup`)."""
    for path in (pod / "given").rglob("*"):
        os.chown(path, 0, USER, follow_symlinks=False)
    for folder in ("opt/appliance/etc", "opt/appliance/state/trust"):
        os.chown(pod / folder, 0, USER)
        (pod / folder).chmod(0o2770)


def place(pod: Path, overlay: str = "postgres-minio", workload: str = "gateway") -> None:
    """Run the init container's command over those volumes."""
    documents = list(yaml.safe_load_all((RENDERED / f"{overlay}.yaml").read_text()))
    spec = next(d["spec"] for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] == workload)
    init = next(each for each in spec["template"]["spec"]["initContainers"] if each["name"] == "place")
    writable = ("opt/appliance/etc", "opt/appliance/state/trust")
    rights = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else []
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if rights else []
    above = ("/opt", "/opt/appliance", "/opt/appliance/state")
    folders = [word for folder in above for word in ("--perms", "0755", "--dir", folder)]
    mounts = [word for folder in writable for word in ("--bind", str(pod / folder), f"/{folder}")]
    done = subprocess.run(
        ["bwrap", *rights, *folders, "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin",
         "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--dev", "/dev", *mounts,
         "--ro-bind", str(pod / "given"), "/given", "--ro-bind", str(pod / "opt/appliance/seed"), "/opt/appliance/seed",
         "--", *user, *init["command"], *init["args"]],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_pod_begins_with_configuration_and_secrets_that_the_gateway_takes(pod):
    place(pod)
    etc = pod / "opt/appliance/etc"
    for path in etc.rglob("*"):
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o077 == 0
    found = settings.load(etc / "config" / "appliance.yaml")
    boot.check(found)
    assert found.live.postgres.password_file == etc / "config/../postgres/password"


def test_without_it_the_gateway_would_refuse_what_kubernetes_shows(pod):
    with pytest.raises(ConfigError) as refused:
        settings.load(pod / "given/config/appliance.yaml")
    assert refused.value.code == "CONFIG_MISSING"


def test_the_first_pod_takes_the_images_trust_over_and_no_later_one(pod, authority):
    place(pod)
    trust = pod / "opt/appliance/state/trust"
    store = TrustStore.open(trust)
    assert store.material(now=datetime.now(UTC)).trusted_root == authority.material.trusted_root
    marked = (trust / "anchor.json").stat().st_ino
    shutil.rmtree(pod / "opt/appliance/etc")
    (pod / "opt/appliance/etc").mkdir()
    if os.geteuid() == 0:
        as_the_kubelet_gives_them(pod)
    place(pod)
    assert (trust / "anchor.json").stat().st_ino == marked


def test_a_trust_state_that_was_copied_in_part_is_copied_again(pod, authority):
    place(pod)
    trust = pod / "opt/appliance/state/trust"
    (trust / "current").unlink()
    next(path for path in (trust / "generations").rglob("*.json")).unlink()
    shutil.rmtree(pod / "opt/appliance/etc")
    (pod / "opt/appliance/etc").mkdir()
    if os.geteuid() == 0:
        as_the_kubelet_gives_them(pod)
    place(pod)
    assert TrustStore.open(trust).material(now=datetime.now(UTC)).trusted_root == authority.material.trusted_root


def test_the_follower_begins_alike(pod):
    place(pod, workload="follower")
    assert (pod / "opt/appliance/etc/config/registry.yaml").is_file()
    assert (pod / "opt/appliance/etc/registry/credentials.yaml").stat().st_mode & 0o077 == 0
