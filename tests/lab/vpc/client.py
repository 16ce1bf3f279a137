"""Start, drive and end the VPC from any Python 3.11: standard library alone, no venv.

    from vpc import client
    vpc = client.start(Path("target/vpc"))
    node = vpc.run_instance("node-1", "c5.large")
    more = vpc.assign_addresses(node.eni, 3)
    client.stop(Path("target/vpc"))

`start` returns once EC2, IMDS, fabric and internet answer; the process behind them is
detached and lives until `stop`. Calls from here go over loopback in the machine's own
namespace; the nodes reach the same server at `Vpc.ec2_endpoint`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vpc import layout

START_DEADLINE = 30.0  # seconds; a warm start takes about two
STOP_DEADLINE = 10.0  # seconds before SIGKILL
CALL_DEADLINE = 60.0  # seconds for one call, longer than any injected delay we use


class VpcError(Exception):
    """The VPC did not start, or did not answer."""


class Ec2Error(VpcError):
    """EC2 refused a call. `code` is EC2's error code, `status` the HTTP status."""

    def __init__(self, action: str, status: int, code: str, message: str):
        super().__init__(f"{action}: {code} (HTTP {status}): {message}")
        self.action, self.status, self.code, self.message = action, status, code, message


@dataclass(frozen=True)
class Instance:
    """An instance as `Vpc.run_instance` made it. `address` is its primary address, `ipv6` the
    IPv6 address it was launched with, if any."""

    instance_id: str
    instance_type: str
    netns: str
    eni: str
    mac: str
    address: str
    subnet: str
    zone: str
    gateway: str
    ipv6: str = ""


@dataclass(frozen=True)
class Subnet:
    """A subnet. `gateway` is base + 1 and answers ping; `security_group` its VPC's default."""

    id: str
    zone: str
    cidr: str
    ipv6_cidr: str
    gateway: str
    vpc: str
    security_group: str


class Vpc:
    """A running VPC. Everything in `info` is also in `DIR/vpc.json`."""

    def __init__(self, state_dir: Path, info: dict[str, Any]):
        self.state_dir = state_dir
        self.info = info
        self.ec2_endpoint: str = info["ec2_endpoint"]  # from nodes and control plane
        self.ec2_loopback: str = info["ec2_loopback"]  # from the machine's own namespace
        self.region: str = info["region"]
        self.vpc_id: str = info["vpc_id"]
        self.security_group: str = info["security_group"]
        self.internet: str = info["internet_address"]
        self.subnets = [Subnet(**subnet) for subnet in info["subnets"]]
        self.pod_subnets = [Subnet(**subnet) for subnet in info["pod_subnets"]]  # VPC's second block
        self.pod_security_group: str = info["pod_security_group"]
        self.peer_subnets = [Subnet(**subnet) for subnet in info["peer_subnets"]]  # of the peered VPC

    # Instances and addresses

    def run_instance(
        self,
        netns: str | None,
        instance_type: str = "c5.large",
        subnet: str | None = None,
        *,
        hop_limit: int = 2,
        ipv6: bool = False,
        tags: dict[str, str] | None = None,
    ) -> Instance:
        """Runs an instance whose interfaces appear in /run/netns/NETNS as ens5, ens6 …

        The namespace is made if it is missing (and then removed by `stop`). On return
        ens5 is up with its address and the default route. `netns` None makes an instance
        without any interface. `subnet` is an id; the first subnet by default. With `ipv6` it
        has an IPv6 address too, and the default route for it.
        """
        subnet_id = subnet or self.subnets[0].id
        known = [*self.subnets, *self.pod_subnets, *self.peer_subnets]
        subnet_info = next((one for one in known if one.id == subnet_id), None)
        params = {
            "ImageId": "ami-12c6146b",
            "InstanceType": instance_type,
            "MinCount": "1",
            "MaxCount": "1",
            "SubnetId": subnet_id,
            "SecurityGroupId.1": subnet_info.security_group if subnet_info else self.security_group,
            "MetadataOptions.HttpTokens": "required",
            "MetadataOptions.HttpPutResponseHopLimit": str(hop_limit),
        }
        if ipv6:
            params["Ipv6AddressCount"] = "1"
        wanted = dict(tags or {})
        if netns is not None:
            wanted[layout.NETNS_TAG] = netns
        if wanted:
            params["TagSpecification.1.ResourceType"] = "instance"
        for at, (key, value) in enumerate(wanted.items(), 1):
            params[f"TagSpecification.1.Tag.{at}.Key"] = key
            params[f"TagSpecification.1.Tag.{at}.Value"] = value
        item = self.ec2("RunInstances", **params).find("instancesSet/item")
        assert item is not None, "RunInstances answers the instance it ran"
        interface = item.find("networkInterfaceSet/item")
        assert interface is not None, "an instance has a primary interface"
        return Instance(
            instance_id=_text(item, "instanceId"),
            instance_type=instance_type,
            netns=netns or "",
            eni=_text(interface, "networkInterfaceId"),
            mac=_text(interface, "macAddress"),
            address=_text(item, "privateIpAddress"),
            subnet=subnet_id,
            zone=_text(item, "placement/availabilityZone"),
            gateway=subnet_info.gateway if subnet_info else "",
            ipv6=interface.findtext("ipv6AddressesSet/item/ipv6Address") or "",
        )

    def terminate(self, instance_id: str) -> None:
        """Terminates an instance: interfaces go, ENIs by their DeleteOnTermination."""
        self.ec2("TerminateInstances", **{"InstanceId.1": instance_id})

    def assign_addresses(self, eni: str, count: int) -> list[str]:
        """Assigns `count` more secondary addresses and returns them; the fabric delivers
        to them when this returns."""
        answer = self.ec2(
            "AssignPrivateIpAddresses",
            NetworkInterfaceId=eni,
            SecondaryPrivateIpAddressCount=str(count),
        )
        found = answer.iterfind("assignedPrivateIpAddressesSet/item/privateIpAddress")
        return [item.text or "" for item in found]

    def assign_prefixes(self, eni: str, count: int) -> list[str]:
        """Assigns `count` more prefixes (/28) and returns them."""
        answer = self.ec2(
            "AssignPrivateIpAddresses", NetworkInterfaceId=eni, Ipv4PrefixCount=str(count)
        )
        found = answer.iterfind("assignedIpv4PrefixSet/item/ipv4Prefix")
        return [item.text or "" for item in found]

    def fill_subnet(self, subnet: str, leave: int = 0) -> str:
        """Holds all but `leave` free addresses of a subnet by an ENI of nobody's; its id."""
        answer = self.ec2("DescribeSubnets", **{"SubnetId.1": subnet})
        free = int(answer.findtext("subnetSet/item/availableIpAddressCount") or 0)
        made = self.ec2(
            "CreateNetworkInterface",
            SubnetId=subnet,
            SecondaryPrivateIpAddressCount=str(free - leave - 1),
            Description="whoever else lives in the subnet",
        )
        return _text(made, "networkInterface/networkInterfaceId")

    def unassign_addresses(self, eni: str, addresses: list[str]) -> None:
        """Takes secondary addresses away from an ENI."""
        listed = {f"PrivateIpAddress.{i}": a for i, a in enumerate(addresses, 1)}
        self.ec2("UnassignPrivateIpAddresses", NetworkInterfaceId=eni, **listed)

    def ec2(self, action: str, **params: str) -> ElementTree.Element:
        """Calls EC2 with its query parameters; the answer as XML without namespaces.

        Raises Ec2Error when EC2 refuses."""
        form = {"Action": action, "Version": layout.EC2_VERSION, **params}
        request = urllib.request.Request(
            self.ec2_loopback + "/",
            data=urllib.parse.urlencode(form).encode(),
            headers={"Authorization": self._authorization()},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_DEADLINE) as answer:
                return _parse(answer.read())
        except urllib.error.HTTPError as error:
            body = error.read()
            try:
                parsed = _parse(body)
                code = parsed.findtext("Errors/Error/Code") or ""
                message = parsed.findtext("Errors/Error/Message") or ""
            except ElementTree.ParseError:
                code, message = "", body[:200].decode(errors="replace")
            raise Ec2Error(action, error.code, code, message) from None
        except OSError as error:
            raise VpcError(f"{action}: {error}") from error

    # What is, and what was asked

    def state(self) -> dict[str, Any]:
        """The truth, without lag: {"instances": [...], "enis": [...], "addresses":
        {address: {"eni", "instance", "netns", "primary"}}, "prefixes": {prefix: {"eni",
        "instance", "netns"}}, "violations": [what a node did to a trunk or EFA interface]}."""
        return self._lab("GET", "state")

    def owner(self, address: str) -> str | None:
        """The ENI that holds an address now, by itself or in a prefix."""
        held = holder(self.state(), address)
        return held["eni"] if held else None

    def calls(self) -> dict[str, int]:
        """How many calls of each EC2 action came since the start, failed ones included."""
        return self._lab("GET", "calls")

    def internet_seen(self) -> list[dict[str, Any]]:
        """What the internet host saw: {"time", "protocol", "source", "port", "what"}."""
        log = Path(self.info["internet_log"])
        return [json.loads(line) for line in log.read_text().splitlines()]

    # Faults

    def fault(self, action: str, kind: str, *, count: int | None = None, **details: Any) -> str:
        """Makes calls of an action misbehave; returns the fault's id.

        action: an EC2 action name, "*" for every one, or "imds".
        kind: "error" (code=, status=, message=), "throttle", "bucket" (throttles what comes
              faster than rate= a second beyond burst=), "garbage", "delay" (seconds=),
              "lose-reply" (acts, then closes the connection); for imds: "silent",
              "error" (status=), "stale" (the interface tree freezes), "delay".
        count: how many calls; None until cleared.
        details: for imds also instance="i-…" to hit one instance only.
        """
        wanted = {"action": action, "kind": kind, "count": count, **details}
        return self._lab("POST", "faults", wanted)["id"]

    def faults(self) -> list[dict[str, Any]]:
        """The faults in force."""
        return self._lab("GET", "faults")

    def clear_faults(self, fault: str | None = None) -> None:
        """Ends one fault, or all of them."""
        self._lab("DELETE", f"faults/{fault}" if fault else "faults")

    def set_lag(self, **seconds: float) -> dict[str, float]:
        """Changes how far reads lag: create= (a new ENI is NotFound), write= (any other
        change to an ENI shows late), settle= (attaching and detaching take that long)."""
        return self._lab("POST", "lag", seconds)

    def set_credential_lifetime(self, seconds: float) -> None:
        """How long role credentials last that IMDS hands out from now on."""
        self._lab("POST", "credentials", {"seconds": seconds})

    def _lab(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"{self.ec2_loopback}/lab/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=CALL_DEADLINE) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise VpcError(f"{method} /lab/{path}: HTTP {error.code}: {text}") from None
        except OSError as error:
            raise VpcError(f"{method} /lab/{path}: {error}") from error

    def _authorization(self) -> str:
        day = time.strftime("%Y%m%d", time.gmtime())
        scope = f"{self.info['access_key_id']}/{day}/{self.region}/ec2/aws4_request"
        return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=unsigned"


def start(
    state_dir: Path | str,
    *,
    prefix: str = layout.DEFAULT_PREFIX,
    python: str | None = None,
    lag: float = layout.DEFAULT_LAG,
) -> Vpc:
    """Starts a VPC, detached, and returns when it answers.

    `prefix` begins the names of its namespaces (PREFIX + "fabric", PREFIX + "internet").
    A second start with the same prefix refuses and names the first; leftovers of a crash
    are cleaned. Raises VpcError with the end of the log when it does not come up.
    """
    state_dir = Path(state_dir).resolve()
    state_dir.mkdir(parents=True, exist_ok=True)
    lab = Path(__file__).resolve().parent.parent
    if python is None:
        venv = subprocess.run([lab / "venv.sh"], check=True, stdout=subprocess.PIPE, text=True)
        python = f"{venv.stdout.strip()}/bin/python"
    log = state_dir / layout.LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", "vpc", "--state", state_dir, "--prefix", prefix, "--lag", str(lag)],
            cwd=lab,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_DEADLINE
    while not _is_ready(state_dir, process.pid):
        if process.poll() is not None:
            raise VpcError(f"VPC ended at start ({process.returncode}): {_tail(log)}")
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise VpcError(f"VPC not ready within {START_DEADLINE} s: {_tail(log)}")
        time.sleep(0.02)
    return attach(state_dir)


def attach(state_dir: Path | str) -> Vpc:
    """The VPC that `start` left running. Raises VpcError where there is none."""
    state_dir = Path(state_dir).resolve()
    try:
        info = json.loads((state_dir / layout.INFO).read_text())
    except FileNotFoundError:
        raise VpcError(f"no VPC runs from {state_dir}") from None
    return Vpc(state_dir, info)


def stop(state_dir: Path | str) -> None:
    """Ends the VPC and removes its namespaces; also after a crash, also twice."""
    state_dir = Path(state_dir).resolve()
    try:
        owner = json.loads((state_dir / layout.OWNER).read_text())
    except FileNotFoundError:
        return
    _end_process(owner["pid"], state_dir)
    held, holder = layout.lock(owner["prefix"], f"pid {os.getpid()}, cleaning {state_dir}")
    # Another VPC has taken the prefix since ours crashed: its start cleaned up after ours,
    # and the namespaces of these names are its own.
    if holder is None:
        made = state_dir / layout.MADE_NAMESPACES
        for name in made.read_text().split() if made.exists() else []:
            layout.remove_namespace(name)
        layout.lock_path(owner["prefix"]).unlink()
    held.close()
    for path in (layout.INFO, layout.MADE_NAMESPACES, layout.OWNER):
        (state_dir / path).unlink(missing_ok=True)


def _is_ready(state_dir: Path, pid: int) -> bool:
    """Its own word: a file may be there from a VPC that crashed, or that runs."""
    try:
        return json.loads((state_dir / layout.INFO).read_text())["pid"] == pid
    except FileNotFoundError:
        return False


def _end_process(pid: int, state_dir: Path) -> None:
    if not _is_ours(pid, state_dir):
        return
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_DEADLINE
    while _is_ours(pid, state_dir):
        if time.monotonic() > deadline:
            _signal(pid, signal.SIGKILL)
            deadline = time.monotonic() + STOP_DEADLINE
        time.sleep(0.02)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it ended between the look and the signal


def _is_ours(pid: int, state_dir: Path) -> bool:
    """A pid may have been given to another process since: its command line decides."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        zombie = ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not zombie and "vpc" in arguments and str(state_dir) in arguments


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def holder(state: dict[str, Any], address: str) -> dict[str, Any] | None:
    """Who holds an address in a state: its entry, or that of the prefix it lies in."""
    if address in state["addresses"]:
        return state["addresses"][address]
    parsed = ipaddress.ip_address(address)
    length = 28 if parsed.version == 4 else 80
    return state["prefixes"].get(str(ipaddress.ip_network(f"{address}/{length}", strict=False)))


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    assert found, f"EC2's answer holds {path}"
    return found


def _parse(body: bytes) -> ElementTree.Element:
    tree = ElementTree.fromstring(body)
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    return tree
