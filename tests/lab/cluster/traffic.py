"""Traffic in every direction on a cluster that is up, and whom each far end saw."""
from __future__ import annotations

import itertools
import json
import subprocess
import time
from dataclasses import dataclass

from vpc.client import holder

from . import cgroups, namespaces
from .kube import condition
from .processes import Registry
from .progress import say, step, wait_until
from .sources import PATIENT, Asker, Call, Host, expected

NAMESPACE = "modes"
PODS_PER_NODE = 5  # a t3.small's primary interface has three addresses for pods
PORT, HOST_PORT, NODE_PORT = 8080, 9000, 30000
HOST_SERVER = 8099  # a server in each node's own network
RESOLVER = {4: "169.254.20.10", 6: "fd00:169:254:20::10"}
PEER = "selvage-peer-host"  # an instance of the peered VPC that is no node
INTERNET = "selvage-internet"
# Seconds in which what kube-proxy and the agents write must be in force.
SETTLE = 20.0
AFFINITY_CALLS = 8


@dataclass(frozen=True)
class Pod:
    """A pod that serves and calls. `interface` is its address's: primary or other."""

    name: str
    node: str
    address: str
    host_port: int
    interface: str


class Traffic:
    """One measurement: pods, Services, a host in the peered VPC, and calls between all of them."""

    def __init__(self, lab):
        self.lab, self.kubectl, self.api, self.vpc = lab, lab.kubectl, lab.api, lab.vpc
        self.family = lab.config.family
        self.complaints: list[str] = []

    def run(self) -> list[str]:
        """What was not as the table says; empty if all was."""
        with step("pods, and a host in the peered VPC"):
            self._start_pods()
            self._start_peer()
        with step("Services"):
            self._start_services()
        calls = self._calls()
        self._measure(calls)
        self._check_affinity()
        self._check_probes()
        return self.complaints

    # What there is

    def _start_pods(self) -> None:
        items: list[dict] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}]
        for number, node in enumerate(self.lab.config.node_names):
            self._give_resolver(node)
            items.append(_pod(f"host-{number + 1}", node, HOST_SERVER, hostNetwork=True))
            for letter in range(PODS_PER_NODE):
                name = f"pod-{number + 1}{'abcdefgh'[letter]}"
                items.append(_pod(name, node, PORT, host_port=HOST_PORT + letter))
        self.kubectl.run("apply", "-f", "-", text=_list(items))
        wait_until("pods Ready", 120, self._pods_ready, 0.3)

    def _give_resolver(self, node: str) -> None:
        # So that nobody takes it for an address to speak from, as if it were on an interface of its own.
        how = ("/32", "scope", "host") if self.family == 4 else ("/128", "preferred_lft", "0")
        subprocess.run([*namespaces.enter(node), "ip", "address", "replace", f"{RESOLVER[self.family]}{how[0]}", "dev", "lo", *how[1:]],
                       check=True)

    def _pods_ready(self) -> bool:
        found = self.api.items(f"/api/v1/namespaces/{NAMESPACE}/pods")
        wanted = self.lab.config.nodes * (PODS_PER_NODE + 1)
        if len(found) != wanted or not all(condition(pod, "Ready") and pod["status"].get("podIP") for pod in found):
            return False
        state = self.vpc.state()
        self.node_address = {one["name"]: _internal(one) for one in map(_node, self.api.items("/api/v1/nodes"))}
        enis = {eni["id"]: eni for eni in state["enis"]}
        self.uplinks = {node: tuple(address for eni in state["enis"] if eni["netns"] == node
                                    for address in [eni["primary"], *eni["ipv6_addresses"]]) for node in self.node_address}
        self.pods: list[Pod] = []
        for pod in found:
            name, node, address = pod["metadata"]["name"], pod["spec"]["nodeName"], pod["status"]["podIP"]
            if pod["spec"].get("hostNetwork"):
                continue
            held = holder(state, address)
            if held is None or held["netns"] != node:
                self.complaints.append(f"{name} on {node} has {address}, which EC2 assigned to {held['netns'] if held else 'nobody'}")
            primary = held is not None and enis[held["eni"]]["device_index"] == 0
            host_port = pod["spec"]["containers"][0]["ports"][0]["hostPort"]
            self.pods.append(Pod(name, node, address, host_port, "primary" if primary else "other"))
        return True

    def _start_peer(self) -> None:
        subnet = self.vpc.peer_subnets[0]
        self.peer = self.vpc.run_instance(PEER, "c5.large", subnet.id, ipv6=self.family == 6)
        self.peer_address = self.peer.ipv6 if self.family == 6 else self.peer.address
        Registry(self.lab.state).start(
            PEER, [*namespaces.enter(PEER), str(self.lab.components / "agnhost"), "netexec", f"--http-port={PORT}", "--udp-port=-1"],
            cgroup=cgroups.make(PEER))

    def _start_services(self) -> None:
        self.roles = _one_of_each(self.pods)
        services = []
        for number, pod in enumerate(self.roles):
            for kind, policy, base in (("any", "Cluster", NODE_PORT + 100), ("local", "Local", NODE_PORT + 200)):
                services.append(_service(f"{kind}-{pod.name}", {"name": pod.name}, type="NodePort", externalTrafficPolicy=policy,
                                         ports=[{"port": PORT, "targetPort": PORT, "nodePort": base + number}]))
        services.append(_service("sticky", {"app": "pod"}, sessionAffinity="ClientIP", ports=[{"port": PORT, "targetPort": PORT}]))
        self.kubectl.run("apply", "-f", "-", text=_list(services))
        found = self.api.items(f"/api/v1/namespaces/{NAMESPACE}/services")
        self.cluster_ip = {one["metadata"]["name"]: one["spec"]["clusterIP"] for one in found}

    # The calls

    def _calls(self) -> list[Call]:
        calls: list[Call] = []
        for source, target in itertools.product(self.roles, self.roles):
            calls += self._between(source, target)
        for pod in self.roles:
            calls += self._alone(pod)
        return calls

    def _between(self, source: Pod, target: Pod) -> list[Call]:
        """A pod calls another pod of a role, or itself, in every way there is."""
        means = self._means(source)
        host, number = Host(source.name, True), self.roles.index(target)
        beside = source.node == target.node
        service = self.cluster_ip[f"any-{target.name}"]
        if source == target:
            return [Call("pod to itself by its Service", host, service, PORT, means, f"Service of {target.name}")]
        calls = [
            Call("pod to a pod beside it" if beside else "pod to a pod on the other node", host, target.address, PORT, means, target.name),
            Call(f"pod to a Service, served {'beside it' if beside else 'on the other node'}", host, service, PORT, means, f"Service of {target.name}"),
            Call(f"pod to a hostPort of {'its' if beside else 'the other'} node", host, self.node_address[target.node], target.host_port, means, target.name),
        ]
        for node, address in self.node_address.items():
            row = f"pod to a NodePort of {'its' if node == source.node else 'the other'} node"
            calls.append(Call(row, host, address, NODE_PORT + 100 + number,
                              {**means, "node": (address,), "uplink": self.uplinks[node]}, f"{target.name} by {node}"))
        return calls

    def _alone(self, pod: Pod) -> list[Call]:
        """A pod calls what is no pod, and is called by what is none."""
        host, means = Host(pod.name, True), self._means(pod)
        number = self.roles.index(pod)
        outside = self.vpc.info["internet_ipv6_address"] if self.family == 6 else self.vpc.internet
        translated = self.family == 4 and not self.lab.config.peered
        calls = [
            Call("pod to the node-local resolver", host, RESOLVER[self.family], HOST_SERVER, means),
            Call("pod to the internet", host, outside, 80, means),
            Call("pod to the peered VPC" if translated else "pod to the peered VPC, not translated", host, self.peer_address, PORT, means, PEER),
            Call("peered VPC to a pod", Host(PEER, False), pod.address, PORT, {"client": (self.peer_address,)}, pod.name),
        ]
        for node, address in self.node_address.items():
            own = node == pod.node
            calls.append(Call(f"pod to {'its' if own else 'the other'} node", host, address, HOST_SERVER, means, node))
            calls.append(Call(f"node to {'its pod' if own else 'a pod of the other node'}", Host(node, False), pod.address, PORT,
                              {"node": (address,)}, pod.name))
            for name, netns, client in (("peered VPC", PEER, self.peer_address), ("internet", INTERNET, outside)):
                served = "there" if own else "elsewhere"
                seen = {"node": (address,), "client": (client,)}
                calls.append(Call(f"{name} to a NodePort, served {served}", Host(netns, False), address, NODE_PORT + 100 + number, seen, f"{pod.name} by {node}"))
                if own or name == "peered VPC":
                    calls.append(Call(f"{name} to a local NodePort, served {served}", Host(netns, False), address, NODE_PORT + 200 + number, seen, f"{pod.name} by {node}"))
                if own:
                    calls.append(Call(f"{name} to a hostPort", Host(netns, False), address, pod.host_port, seen, f"{pod.name} by {node}"))
        return calls

    def _means(self, pod: Pod) -> dict[str, tuple[str, ...]]:
        return {"pod": (pod.address,), "node": (self.node_address[pod.node],)}

    # The measurement

    def _measure(self, calls: list[Call]) -> None:
        table, column = expected(), self.lab.config.mode.partition("-")[0]
        words = {id(call): table[call.row, column] for call in calls}
        calls = [call for call in calls if words[id(call)] != "-"]
        asker, began = Asker(self.kubectl, NAMESPACE), time.monotonic()
        asker.ask(calls)
        wrong = [call for call in calls if not call.is_as(words[id(call)])]
        while wrong and time.monotonic() < began + SETTLE:
            time.sleep(1)
            asker.ask(wrong, PATIENT)
            wrong = [call for call in wrong if not call.is_as(words[id(call)])]
        say(f"{len(calls) - len(wrong)} of {len(calls)} calls as expected ({time.monotonic() - began:.1f} s)")
        self._show(calls, words)
        self.complaints += [call.describe(words[id(call)]) for call in wrong]

    def _show(self, calls: list[Call], words: dict[int, str]) -> None:
        """A line for each row: what must be seen, and how many calls saw it."""
        rows: dict[str, list[Call]] = {}
        for call in calls:
            rows.setdefault(call.row, []).append(call)
        width = max(len(row) for row in rows)
        print(f"\nWhom the far end saw ({self.lab.config.describe()})")
        for row, some in rows.items():
            right = sum(1 for call in some if call.is_as(words[id(call)]))
            mark = "" if right == len(some) else "   WRONG"
            print(f"  {row.ljust(width)}  {words[id(some[0])].ljust(6)}  {right} of {len(some)}{mark}")
        print(flush=True)

    def _check_affinity(self) -> None:
        """A caller of a Service with session affinity meets one server, however often it calls."""
        host = f"[{self.cluster_ip['sticky']}]" if self.family == 6 else self.cluster_ip["sticky"]
        for pod in self.roles:
            done = self.kubectl.run("-n", NAMESPACE, "exec", pod.name, "--", "sh", "-c",
                                    'n=0; while [ $n -lt "$1" ]; do timeout 3 wget -q -O - "$2"; echo; n=$((n + 1)); done',
                                    "sh", str(AFFINITY_CALLS), f"http://{host}:{PORT}/hostname")
            servers = [line for line in done.splitlines() if line]
            if len(servers) != AFFINITY_CALLS or len(set(servers)) != 1:
                self.complaints.append(f"session affinity: {pod.name} met {', '.join(servers) or 'nobody'}")

    def _check_probes(self) -> None:
        """Every pod has an HTTP and a TCP probe, which come from its node: none may have failed."""
        for pod in self.api.items(f"/api/v1/namespaces/{NAMESPACE}/pods"):
            name = pod["metadata"]["name"]
            restarts = pod["status"]["containerStatuses"][0]["restartCount"]
            if restarts or not condition(pod, "Ready"):
                self.complaints.append(f"probes: {name} was restarted {restarts} times, and is {'' if condition(pod, 'Ready') else 'not '}Ready")


def _one_of_each(pods: list[Pod]) -> list[Pod]:
    """One pod for each node and kind of interface, in order."""
    found: dict[tuple[str, str], Pod] = {}
    for pod in sorted(pods, key=lambda one: one.name):
        found.setdefault((pod.node, pod.interface), pod)
    return sorted(found.values(), key=lambda one: (one.node, one.interface))


def _node(item: dict) -> dict:
    return {"name": item["metadata"]["name"], "addresses": item["status"]["addresses"]}


def _internal(node: dict) -> str:
    return next(one["address"] for one in node["addresses"] if one["type"] == "InternalIP")


def _list(items: list[dict]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _pod(name: str, node: str, port: int, host_port: int | None = None, **spec) -> dict:
    ports = [{"containerPort": port, **({"hostPort": host_port} if host_port else {})}]
    probe = {"periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 5}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE,
                     "labels": {"name": name, "app": "host" if spec.get("hostNetwork") else "pod"}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
            "enableServiceLinks": False, **spec,
            "containers": [{
                "name": "server", "image": "localhost/agnhost:dev", "imagePullPolicy": "Never",
                "args": ["netexec", f"--http-port={port}", "--udp-port=-1"], "ports": ports,
                "readinessProbe": {"httpGet": {"path": "/hostname", "port": port}, **probe},
                "livenessProbe": {"tcpSocket": {"port": port}, **probe},
            }],
        },
    }


def _service(name: str, selector: dict, **spec) -> dict:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": selector, **spec}}
