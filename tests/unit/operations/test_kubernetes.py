"""The three overlays, rendered by kustomize and checked against Kubernetes' own schemas and our house rules."""

import subprocess
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
    done = subprocess.run(
        ["kubectl", "kustomize", str(HERE / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(done.stdout))


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
