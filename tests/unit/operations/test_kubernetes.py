"""The three overlays as rendered, checked against Kubernetes' own schemas and our house rules.

What is shipped beside the overlays is what was rendered from them: two digests in each file say so, without kustomize.
"""

import importlib.machinery
import importlib.util
import shutil
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from appliance import settings

HERE = Path(__file__).parents[3] / "bundle" / "kubernetes"
OVERLAYS = ("sidecar", "postgres-minio", "air-gapped")
VERSIONS = ("1.28", "1.31", "1.34")


@cache
def rendered(overlay: str) -> list[dict]:
    return list(yaml.safe_load_all((HERE / "rendered" / f"{overlay}.yaml").read_text()))


@pytest.fixture
def renderer(tmp_path):
    """scripts/render-kubernetes, over a copy of the sources."""
    script = str(HERE.parents[1] / "scripts" / "render-kubernetes")
    loader = importlib.machinery.SourceFileLoader("render_kubernetes", script)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    shutil.copytree(HERE, tmp_path / "kubernetes")
    module.HOME = tmp_path / "kubernetes"
    return module


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_shipped_rendered_was_rendered_from_the_sources_beside_it(renderer, overlay):
    assert renderer.stale(overlay) == ""


@pytest.mark.parametrize("source", ["base/gateway.yaml", "base/config/appliance.yaml", "overlays/sidecar/sync.yaml"])
def test_a_changed_source_makes_the_rendered_file_stale(renderer, source):
    (renderer.HOME / source).write_text((renderer.HOME / source).read_text() + "# changed\n")
    assert "older than its sources" in renderer.stale("sidecar")


def test_a_rendered_file_that_was_edited_by_hand_is_seen(renderer):
    path = renderer.HOME / "rendered" / "sidecar.yaml"
    path.write_text(path.read_text().replace("runAsNonRoot: true", "runAsNonRoot: false"))
    assert "edited by hand" in renderer.stale("sidecar")


def test_an_overlay_that_was_never_rendered_is_seen(renderer):
    (renderer.HOME / "rendered" / "sidecar.yaml").unlink()
    assert "never rendered" in renderer.stale("sidecar")


def pods(overlay: str) -> dict[str, dict]:
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["spec"]["template"]["spec"]
        for each in rendered(overlay)
        if each["kind"] in {"Deployment", "Job"}
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_fits_the_schema_of_kubernetes(overlay, version):
    for each in rendered(overlay):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_refuses_what_is_wrong():
    wrong = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replicas": "two"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_locked_down(overlay):
    for name, pod in pods(overlay).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert set(container["resources"]["limits"]) == {"cpu", "memory"}, name
            assert container["image"].startswith("registry.zone.internal/"), name
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_has_a_network_policy_and_the_default_is_nothing(overlay):
    policies = [each["spec"] for each in rendered(overlay) if each["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    selected = {tuple(policy["podSelector"].get("matchLabels", {}).items()) for policy in policies}
    for each in rendered(overlay):
        if each["kind"] in {"Deployment", "Job"}:
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert any(wanted and set(wanted) <= set(labels.items()) for wanted in selected), each["metadata"]["name"]
    # nobody may talk to any address without a selector
    for policy in policies:
        assert all(rule.get("to") and rule.get("ports") for rule in policy.get("egress", []))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_gateway_has_probes_a_pause_before_it_stops_and_time_to_drain(overlay):
    pod = pods(overlay)["Deployment/gateway"]
    gateway = next(container for container in pod["containers"] if container["name"] == "gateway")
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(gateway)
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/appliance/ready"
    pause = int(gateway["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = configuration(overlay).drain
    assert pod["terminationGracePeriodSeconds"] > pause + drain.readiness_s + drain.streams_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_volume_that_is_mounted_exists(overlay):
    claims = {each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "PersistentVolumeClaim"}
    for name, pod in pods(overlay).items():
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_inside_is_one_that_the_gateway_accepts(overlay):
    found = configuration(overlay)
    assert found.listen.tls is not None
    assert found.routing.groups["chat"].router == "default"


def test_training_runs_apart_and_without_a_network():
    pod = pods("sidecar")["Job/training"]
    assert pod["containers"][0]["args"][:2] == ["train", "fit"]
    policy = next(
        e["spec"] for e in rendered("sidecar") if e["kind"] == "NetworkPolicy" and e["metadata"]["name"] == "training"
    )
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy


def configuration(overlay: str) -> settings.Settings:
    data = next(
        each["data"]
        for each in rendered(overlay)
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("gateway-config")
    )
    return settings.parse(yaml.safe_load(data["appliance.yaml"]), base=Path("/opt/appliance/etc"))
