"""The shipped manifests: who waits for policy, and where; what each mode switches on."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster import agents, config, lifecycle
from cluster.config import CHECKOUT

MANIFESTS = CHECKOUT / "manifests"
STATUS = "/var/run/selvage/endpoint-status"


def load(path: str) -> list[dict]:
    return list(yaml.safe_load_all((MANIFESTS / path).read_text()))


def daemon_set(half: str) -> dict:
    [found] = load(f"{half}/base/daemonset.yaml")
    return found["spec"]["template"]["spec"]


def settings(container: dict) -> dict:
    return {one["name"]: one.get("value") for one in container["env"]}


def test_a_pod_waits_for_its_policy_where_both_halves_are_installed():
    [both] = load("both/kustomization.yaml")
    [patch] = [yaml.safe_load(one["patch"]) for one in both["patches"]]
    assert (patch["kind"], patch["metadata"]["name"]) == ("DaemonSet", "selvage-ipamd")
    [container] = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == daemon_set("cni")["containers"][0]["name"]
    assert settings(container) == {"POLICY_READY_DIR": STATUS}


def test_no_pod_waits_where_addressing_is_installed_alone():
    [container] = daemon_set("cni")["containers"]
    assert settings(container)["POLICY_READY_DIR"] == ""
    for alone in ("cni", "policy"):
        [found] = load(f"{alone}/kustomization.yaml")
        assert "patches" not in found and "components" not in found


def test_the_policy_agent_writes_where_pods_wait():
    pod = daemon_set("policy")
    [volume] = [one["name"] for one in pod["volumes"] if one.get("hostPath", {}).get("path") == STATUS]
    [container] = pod["containers"]
    assert {"name": volume, "mountPath": STATUS} in container["volumeMounts"]


def test_both_agents_start_on_a_node_with_the_startup_taint_and_one_may_remove_it():
    for half in ("cni", "policy"):
        assert {"operator": "Exists"} in daemon_set(half)["tolerations"]
    [role] = [one for one in load("policy/base/rbac.yaml") if one["kind"] == "ClusterRole"]
    [nodes] = [rule for rule in role["rules"] if "nodes" in rule["resources"]]
    assert (nodes["resources"], sorted(nodes["verbs"])) == (["nodes"], ["get", "patch"])


OVERLAYS = ("cni-only", "custom-networking", "ipv6", "policy-only", "prefix-delegation", "with-calico")


def build(folder: Path) -> list[dict]:
    """The objects that `kubectl kustomize` makes of a folder."""
    kubectl = lifecycle.components() / "kubectl"
    done = subprocess.run([str(kubectl), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def containers(objects: list[dict], name: str = "selvage-ipamd") -> list[dict]:
    [found] = [one for one in objects if one["kind"] == "DaemonSet" and one["metadata"]["name"] == name]
    pod = found["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def rules(objects: list[dict]) -> set[tuple[str, str]]:
    return {(resource, verb) for one in objects if one["kind"] in ("ClusterRole", "Role") and "ipamd" in one["metadata"]["name"]
            for rule in one["rules"] for resource in rule["resources"] for verb in rule["verbs"]}


def test_every_overlay_is_known_here():
    assert sorted(path.name for path in (MANIFESTS / "overlays").iterdir()) == sorted(OVERLAYS)


@pytest.mark.parametrize("overlay, wanted", [
    ("cni-only", {}),
    ("with-calico", {"ANNOTATE_POD_IP": "true"}),
    ("prefix-delegation", {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}),
    ("custom-networking", {"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true", "ENI_CONFIG_LABEL_DEF": "topology.kubernetes.io/zone"}),
    ("ipv6", {"ENABLE_IPv4": "false", "ENABLE_IPv6": "true", "ENABLE_PREFIX_DELEGATION": "true"}),
])
def test_an_overlay_switches_on_what_it_is_named_for_and_keeps_the_rest(overlay, wanted):
    objects = build(MANIFESTS / "overlays" / overlay)
    plain = settings(daemon_set("cni")["containers"][0])
    [*init, container] = containers(objects)
    found = settings(container)
    assert wanted.items() <= found.items()
    assert found["MY_NODE_NAME"] is None and "MY_NODE_NAME" in found, "it comes from the downward API"
    assert {name: value for name, value in found.items() if name in plain and name not in (*wanted, "POLICY_READY_DIR")} == {
        name: value for name, value in plain.items() if name not in (*wanted, "POLICY_READY_DIR")}
    assert [one.get("env", []) for one in init] == [[{"name": "ENABLE_IPv6", "value": "true"}] if overlay == "ipv6" else []]


def test_enforcement_alone_brings_nothing_of_addressing():
    objects = build(MANIFESTS / "overlays" / "policy-only")
    assert not [one for one in objects if "ipamd" in json.dumps(one)]
    assert containers(objects, "selvage-policy")


def test_pods_are_written_only_where_their_address_is_announced():
    announced = ("pods", "patch")
    assert announced not in rules(build(MANIFESTS / "cni"))
    assert announced in rules(build(MANIFESTS / "overlays" / "with-calico"))


def test_the_address_agent_may_do_what_its_modes_need_and_no_more():
    assert rules(build(MANIFESTS / "cni")) == {
        ("events", "create"), ("events", "patch"),
        ("eniconfigs", "get"), ("eniconfigs", "list"), ("eniconfigs", "watch"),
        ("nodes", "get"), ("nodes", "list"), ("nodes", "watch"),
        ("leases", "get"), ("leases", "create"), ("leases", "update"), ("leases", "patch"),
        ("daemonsets", "get"),
    }


def test_the_daemon_set_that_the_address_agent_reads_is_its_own_and_no_other():
    [found] = load("cni/base/daemonset.yaml")
    [rule] = [rule for one in load("cni/base/rbac.yaml") if one["kind"] == "Role"
              for rule in one["rules"] if rule["resources"] == ["daemonsets"]]
    assert rule["resourceNames"] == [found["metadata"]["name"]]
    source = (CHECKOUT / "ipamd/kube/src/crowd.rs").read_text()
    assert f'DAEMON_SET: &str = "{found["metadata"]["name"]}"' in source


def test_the_eniconfig_is_the_one_that_clusters_have():
    [crd] = [one for one in build(MANIFESTS / "cni") if one["kind"] == "CustomResourceDefinition"]
    assert crd["metadata"]["name"] == "eniconfigs.crd.k8s.amazonaws.com"
    assert (crd["spec"]["scope"], crd["spec"]["names"]["kind"]) == ("Cluster", "ENIConfig")
    [version] = crd["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    assert (version["name"], root["x-kubernetes-preserve-unknown-fields"]) == ("v1alpha1", True)
    assert set(root["properties"]["spec"]["properties"]) == {"subnet", "securityGroups"}


@pytest.mark.parametrize("name, needed", [
    ("iam-policy.json", {"ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DetachNetworkInterface"}),
    ("iam-policy-ipv6.json", {"ec2:AssignIpv6Addresses", "ec2:UnassignIpv6Addresses"}),
])
def test_the_iam_policies_are_policies(name, needed):
    policy = json.loads((MANIFESTS / "cni" / name).read_text())
    [everything, tags] = policy["Statement"]
    assert needed <= set(everything["Action"]) and everything["Resource"] == "*"
    assert everything["Action"] == sorted(everything["Action"], key=str.lower)
    assert (tags["Action"], tags["Resource"]) == ("ec2:CreateTags", "arn:*:ec2:*:*:network-interface/*")


@pytest.mark.parametrize("mode", config.CHOICES["MODE"])
@pytest.mark.parametrize("policy", ["selvage", "none"])
def test_the_lab_builds_on_the_shipped_manifests_in_every_mode(tmp_path, mode, policy):
    chosen = config.read({"MODE": mode, "POLICY": policy, "PEERED": "1", "SETTINGS": "MAX_ENI=2"})
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    overlays = tmp_path / "tests" / "lab" / "manifests"
    shutil.copytree(agents.OVERLAYS, overlays)
    agents._add_mode(overlays, agents.overlay(chosen), chosen)
    found = settings(containers(build(overlays / agents.overlay(chosen)))[-1])
    assert (found["MAX_ENI"], found["AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"]) == ("2", "10.40.0.0/16,100.64.0.0/16,10.41.0.0/16")
    assert (found.get("ENABLE_PREFIX_DELEGATION") == "true") == (mode in ("prefix", "custom-prefix", "ipv6"))
    assert (found.get("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG") == "true") == mode.startswith("custom")
    assert "AWS_ENDPOINT_URL_EC2" in found
