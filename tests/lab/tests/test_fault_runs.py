"""What a fault run takes for its own fault, and what it does not forgive."""

from __future__ import annotations

import pytest
from fault_run import Excuse
from heartbeat import INSIDE, OUTSIDE, Loss


@pytest.mark.parametrize(
    ("loss", "excused"),
    [
        (Loss("f0g1/a", "10.40.0.6", INSIDE, 10.0), True),
        (Loss("f0g1/a", "10.40.0.6", INSIDE, 9.7), True),
        (Loss("f0g1/a", "10.40.0.6", INSIDE, 13.0), False),
        (Loss("f0g1/a", "10.40.0.6", OUTSIDE, 11.0), False),
        (Loss("f0g1/b", "10.40.0.7", INSIDE, 11.0), False),
        (Loss("f0g1/b", "10.40.0.8", INSIDE, 11.0), True),
        (Loss("f1g1/b", "10.40.0.8", INSIDE, 11.0), False),
    ],
)
def test_only_a_faults_own_pods_are_excused_and_only_while_it_lasts(
    loss: Loss, excused: bool
) -> None:
    pods, addresses = frozenset({"f0g1/a"}), frozenset({"10.40.0.8"})
    excuse = Excuse("f0g1", pods, addresses, (INSIDE,), since=10.0, until=11.5)
    assert excuse.covers(loss) is excused


def test_a_fault_of_a_whole_node_excuses_pods_that_come_while_it_lasts_and_no_others() -> None:
    excuse = Excuse("f0g1", None, frozenset(), (OUTSIDE,), since=10.0, until=11.5)
    assert excuse.covers(Loss("f0g1/new", "10.40.0.9", OUTSIDE, 11.0))
    assert not excuse.covers(Loss("f0g1/new", "10.40.0.9", INSIDE, 11.0))
    assert not excuse.covers(Loss("f0g2/new", "10.40.0.9", OUTSIDE, 11.0))
