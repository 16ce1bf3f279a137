"""The demo's hand-written table against a naive reading of its policies, so that neither can be wrong alone."""
import ipaddress

import yaml

from cluster.matrix import Table
from cluster.tests.test_matrix import APP

ZONES = {"node-1": "10.40.0.10", "node-2": "10.40.16.10"}
OUTSIDE = "198.51.100.10"


def documents(name):
    return [one for one in yaml.safe_load_all((APP / name).read_text()) if one]


def selects(selector, labels):
    return all(labels.get(key) == value for key, value in (selector or {}).get("matchLabels", {}).items())


def admits(rules, side, policy_namespace, namespaces, peer, port, protocol):
    """Whether a policy's rules for one direction admit a peer: (namespace, labels, address)."""
    namespace, labels, address = peer
    for rule in rules:
        wanted = rule.get("ports")
        if wanted and not any(one["protocol"] == protocol and one["port"] <= port <= one.get("endPort", one["port"]) for one in wanted):
            continue
        if not rule.get(side):
            return True
        for one in rule[side]:
            if "ipBlock" in one:
                inside = [ipaddress.ip_address(address) in ipaddress.ip_network(block)
                          for block in [one["ipBlock"]["cidr"], *one["ipBlock"].get("except", [])]]
                if inside[0] and not any(inside[1:]):
                    return True
                continue
            if namespace is None:
                continue
            same = selects(one["namespaceSelector"], namespaces[namespace]) if "namespaceSelector" in one else namespace == policy_namespace
            if same and selects(one.get("podSelector"), labels):
                return True
    return False


def test_the_hand_written_table_is_what_the_policies_say():
    objects = documents("application.yaml")
    namespaces = {one["metadata"]["name"]: one["metadata"]["labels"] for one in objects if one["kind"] == "Namespace"}
    pods = {one["metadata"]["name"]: (one["metadata"]["namespace"], one["metadata"]["labels"],
                                      ZONES[one["spec"]["nodeSelector"]["kubernetes.io/hostname"]])
            for one in objects if one["kind"] == "Pod"}
    service = next(one for one in objects if one["kind"] == "Service")
    policies = documents("policies.yaml")
    under = Table.read(APP / "under.txt")

    def allowed(direction, side, pod, peer, port, protocol):
        mine = [one for one in policies if one["metadata"]["namespace"] == pod[0]
                and selects(one["spec"]["podSelector"], pod[1]) and direction in one["spec"]["policyTypes"]]
        return not mine or any(admits(one["spec"].get(direction.lower(), []), side, pod[0], namespaces, peer, port, protocol) for one in mine)

    wrong = []
    for (source, target), reaches in under.cells.items():
        name, port, protocol = target.name, target.port, target.protocol.upper()
        if name == service["metadata"]["name"]:
            entry = next(one for one in service["spec"]["ports"] if (one["port"], one["protocol"]) == (port, protocol))
            name, port = service["spec"]["selector"]["app"], entry["targetPort"]
        peer = (None, {}, OUTSIDE) if name == "internet" else pods[name]
        said = name == source or (
            allowed("Egress", "to", pods[source], peer, port, protocol)
            and (name == "internet" or allowed("Ingress", "from", peer, pods[source], port, protocol)))
        if said != reaches:
            wrong.append(f"{source} to {target}: the table says {reaches}, the policies say {said}")
    assert not wrong, "\n".join(wrong)
