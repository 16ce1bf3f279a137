"""The shipped manifests: who waits for policy, and where."""
import yaml

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
    [both] = load("kustomization.yaml")
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
