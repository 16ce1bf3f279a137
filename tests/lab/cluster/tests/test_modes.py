"""What the runs of e2e-modes combine, and what they take for right."""
import pytest

from cluster import modes, sources
from cluster.sources import Call, Host
from cluster.traffic import Pod, _one_of_each


def test_at_most_eight_runs_hold_every_pair_of_choices():
    assert len(modes.RUNS) <= 8 and len({run.name for run in modes.RUNS}) == len(modes.RUNS)
    assert modes.missing_pairs(modes.RUNS) == []
    assert ("secondary", "nftables") in modes.missing_pairs(modes.RUNS[2:])


def test_the_runs_of_ci_have_each_proxy_mode_and_each_backend():
    assert len(modes.IN_CI) == 2
    assert {run.proxy for run in modes.IN_CI} == {"iptables", "nftables"}
    assert {run.iptables for run in modes.IN_CI} == {"nft", "legacy"}


def test_the_table_has_a_word_for_each_row_and_mode():
    table = sources.expected()
    assert {column for _, column in table} == {run.mode.partition("-")[0] for run in modes.RUNS}
    assert table["pod to the internet", "secondary"] == "node"
    assert table["pod to the internet", "ipv6"] == "pod"


@pytest.mark.parametrize("line", ["a row  pod", "a row  pod  somebody", "  pod  pod", "same  pod  pod\nsame  pod  pod"])
def test_a_table_that_cannot_be_read_is_refused(line):
    with pytest.raises(sources.SourcesError):
        sources.read(f"what  secondary  ipv6\n{line}\n")


@pytest.mark.parametrize("answer, address", [
    ("10.40.0.6:40312", "10.40.0.6"), ("[2001:db8:40::7]:80", "2001:db8:40::7"), ("10.40.0.4\n", "10.40.0.4"),
    ("2001:db8:f::1\n", "2001:db8:f::1"), ("[::ffff:10.40.0.6]:1", "10.40.0.6"), ("", "nobody"), ("wget: timed out", "nobody"),
])
def test_the_address_that_a_server_names_is_read(answer, address):
    assert sources.address_of(answer) == address


def test_a_call_is_right_only_with_the_address_that_the_word_means():
    call = Call("pod to the internet", Host("pod-1a", True), "198.51.100.10", 80, {"pod": ("10.40.0.6",), "node": ("10.40.0.4",), "uplink": ("10.40.0.4", "10.40.0.9")})
    call.seen = "10.40.0.4"
    assert call.is_as("node") and call.is_as("uplink") and not call.is_as("pod") and not call.is_as("nobody") and not call.is_as("client")
    assert "seen as 10.40.0.4 (node), must be pod 10.40.0.6" in call.describe("pod")
    call.seen = sources.NOBODY
    assert call.is_as("nobody") and not call.is_as("node")


def test_one_pod_of_each_interface_of_each_node_stands_for_the_others():
    pods = [Pod("b", "node-1", "2", 1, "primary"), Pod("a", "node-1", "1", 1, "primary"),
            Pod("c", "node-1", "3", 1, "other"), Pod("d", "node-2", "4", 1, "other")]
    assert [pod.name for pod in _one_of_each(pods)] == ["c", "a", "d"]
