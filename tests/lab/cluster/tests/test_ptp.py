"""The lab's own address plugin, in a network namespace of its own."""
import hashlib
import json
import subprocess
import sys

import pytest

from cluster.ptp import PLUGIN

VETH = "eni" + hashlib.sha1(b"default.nginx").hexdigest()[:11]


class Box:
    """A node's namespaces with the plugin in them."""

    def __init__(self, state, addresses):
        self.holder = subprocess.Popen(
            ["unshare", "-nm", "--propagation", "private", "sh", "-c",
             "mount -t tmpfs none /run && mkdir /run/netns && mount -t sysfs none /sys && ip link set lo up && echo up && exec sleep 300"],
            stdout=subprocess.PIPE)
        assert self.holder.stdout.readline() == b"up\n"
        self.config = {"cniVersion": "1.1.0", "name": "x", "type": "x", "addresses": addresses, "state": str(state / "state.json")}

    def run(self, *words, **options):
        command = ["nsenter", "-t", str(self.holder.pid), "-n", "-m", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, **options)

    def cni(self, command, container="c1", netns="pod1", pod="nginx", text=None):
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0",
                       "CNI_NETNS": f"/run/netns/{netns}" if netns else "",
                       "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME={pod};K8S_POD_NAMESPACE=default"}
        text = json.dumps(self.config) if text is None else text
        return self.run(sys.executable, "-IS", str(PLUGIN), env=environment, input=text)

    def close(self):
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path, ["10.40.0.6", "10.40.0.7"])
    for name in ("pod1", "pod2", "pod3"):
        made.run("ip", "netns", "add", name)
    yield made
    made.close()


def test_add_wires_a_pod_as_the_vpc_does(box):
    done = box.cni("ADD")
    assert done.returncode == 0, done.stdout
    answer = json.loads(done.stdout)
    assert answer["ips"] == [{"address": "10.40.0.6/32", "interface": 1}]
    assert answer["interfaces"][0]["name"] == VETH == "enic440f455693"
    assert f"dev {VETH} scope link" in box.run("ip", "route", "show", "10.40.0.6").stdout
    assert "default via 169.254.1.1 dev eth0" in box.run("ip", "-n", "pod1", "route").stdout
    mac = answer["interfaces"][0]["mac"]
    assert f"169.254.1.1 dev eth0 lladdr {mac} PERMANENT" in box.run("ip", "-n", "pod1", "neighbour").stdout
    assert box.cni("CHECK").returncode == 0


def test_two_pods_never_have_one_address_and_a_third_is_told_why(box):
    for number, address in ((1, "10.40.0.6"), (2, "10.40.0.7")):
        done = box.cni("ADD", container=f"c{number}", netns=f"pod{number}", pod=f"p{number}")
        assert json.loads(done.stdout)["ips"][0]["address"] == f"{address}/32"
    refused = box.cni("ADD", container="c3", netns="pod3", pod="p3")
    assert refused.returncode == 1 and json.loads(refused.stdout)["code"] == 11
    assert "in use" in json.loads(refused.stdout)["details"]


def test_delete_frees_everything_twice_and_without_a_namespace(box):
    box.cni("ADD")
    for _ in range(2):
        assert box.cni("DEL", netns="").returncode == 0
    assert VETH not in box.run("ip", "link").stdout
    assert box.run("ip", "route", "show", "10.40.0.6").stdout == ""
    assert box.cni("CHECK").returncode == 1
    assert json.loads(box.cni("ADD", container="c2").stdout)["ips"][0]["address"] == "10.40.0.6/32"


def test_an_add_that_fails_leaves_nothing_behind(box):
    failed = box.cni("ADD", netns="missing")
    assert failed.returncode == 1 and json.loads(failed.stdout)["code"] == 100
    assert VETH not in box.run("ip", "link").stdout
    assert json.loads((box.run("cat", box.config["state"])).stdout) == {}


def test_the_end_of_an_older_sandbox_leaves_the_newer_one_of_the_same_pod_alone(box):
    box.cni("ADD", container="old", netns="pod1")
    box.cni("ADD", container="new", netns="pod2")
    assert box.cni("DEL", container="old", netns="").returncode == 0
    assert VETH in box.run("ip", "link").stdout
    assert "10.40.0.7" in box.run("ip", "route").stdout


@pytest.mark.parametrize("command, text, code", [
    ("ADD", "not json", 7), ("ADD", "{}", 7), ("ADD", '{"cniVersion": "9.0.0"}', 1), ("GC", None, 4),
    ("STATUS", '{"cniVersion": "1.1.0"}', 50),
])
def test_what_it_can_not_do_has_the_specifications_code(box, command, text, code):
    done = box.cni(command, text=text)
    assert done.returncode == 1 and json.loads(done.stdout)["code"] == code


def test_it_says_its_versions_and_that_it_is_ready(box):
    assert "1.1.0" in json.loads(box.cni("VERSION").stdout)["supportedVersions"]
    assert box.cni("STATUS").returncode == 0
