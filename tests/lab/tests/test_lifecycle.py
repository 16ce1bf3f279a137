"""Start and stop: one VPC for a prefix, and nothing left of it, whatever happened."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PREFIX

from vpc import client, layout
from vpc.client import Vpc, VpcError

OTHER = f"{PREFIX}b-"


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    client.stop(tmp_path)


def namespaces() -> set[str]:
    return {path.name for path in layout.NAMESPACES.iterdir() if path.name.startswith(OTHER)}


def test_a_second_start_with_the_same_prefix_names_the_first(vpc: Vpc, state_dir: Path) -> None:
    for directory in (state_dir, vpc.state_dir):
        with pytest.raises(VpcError, match=f"runs already: pid {vpc.info['pid']}, state"):
            client.start(directory, prefix=PREFIX, python=sys.executable)
    assert client.attach(vpc.state_dir).info == vpc.info


def test_stop_removes_all_and_may_be_called_again(state_dir: Path) -> None:
    running = client.start(state_dir, prefix=OTHER, python=sys.executable)
    running.run_instance(f"{OTHER}n1")
    assert namespaces() == {f"{OTHER}fabric", f"{OTHER}internet", f"{OTHER}n1"}
    client.stop(state_dir)
    assert namespaces() == set()
    assert not client._is_ours(running.info["pid"], state_dir)
    client.stop(state_dir)
    with pytest.raises(VpcError, match="no VPC runs"):
        client.attach(state_dir)


def test_a_start_and_a_stop_clean_what_a_crash_left(state_dir: Path) -> None:
    crash(client.start(state_dir, prefix=OTHER, python=sys.executable))
    again = client.start(state_dir, prefix=OTHER, python=sys.executable)
    assert again.state()["instances"] == []
    assert namespaces() == {f"{OTHER}fabric", f"{OTHER}internet"}
    crash(again)
    client.stop(state_dir)
    assert namespaces() == set()


def test_cleaning_after_a_crash_leaves_the_next_vpc_of_that_prefix_alone(
    vpc: Vpc, tmp_path: Path
) -> None:
    # What a crashed VPC of the same prefix left in another state directory.
    ours = vpc.info["namespaces"]["fabric"]
    (tmp_path / layout.OWNER).write_text(json.dumps({"pid": 1, "prefix": PREFIX}))
    (tmp_path / layout.MADE_NAMESPACES).write_text(f"{ours}\n")
    client.stop(tmp_path)
    assert (layout.NAMESPACES / ours).exists()
    assert not (tmp_path / layout.OWNER).exists()


def crash(running: Vpc) -> None:
    """Ends a VPC that has a node, so that it cannot clean up."""
    running.run_instance(f"{OTHER}n1")
    os.kill(running.info["pid"], signal.SIGKILL)
    os.waitpid(running.info["pid"], 0)
    assert namespaces() == {f"{OTHER}fabric", f"{OTHER}internet", f"{OTHER}n1"}


def test_a_vpc_that_cannot_start_says_why(state_dir: Path) -> None:
    with pytest.raises(VpcError, match="File name too long"):
        client.start(state_dir, prefix="x" * 300, python=sys.executable)
