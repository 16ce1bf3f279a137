"""What the lab's assertions accept and refuse in a demo's result."""
import pytest

from cluster import demo, e2e
from cluster.matrix import Table

OPEN, UNDER = Table.read(demo.APP / "open.txt"), Table.read(demo.APP / "under.txt")


def cells(expected, measured):
    return [{"from": source, "to": str(target), "expected": reaches, "measured": measured.cells[source, target]}
            for (source, target), reaches in expected.cells.items()]


@pytest.fixture
def result():
    return {
        "pods": [{"pod": "web", "address": "10.40.0.6", "expected": True}],
        "internet": [{"pod": "web", "seen": "10.40.0.5", "expected": "10.40.0.5"}],
        "matrices": {"before": cells(OPEN, OPEN), "under": cells(UNDER, UNDER), "after": cells(OPEN, OPEN)},
    }


def test_a_demo_with_every_cell_right_passes_and_is_no_twin(result):
    assert e2e.complaints(result, enforced=True) == []
    assert len(e2e.complaints(result, enforced=False)) == len(e2e.forbidden(OPEN, UNDER)) > 50


def test_a_twin_must_make_every_forbidden_connection_and_differ_nowhere_else(result):
    result["matrices"]["under"] = cells(UNDER, OPEN)
    assert e2e.complaints(result, enforced=False) == []
    result["matrices"]["after"][0]["measured"] = False
    assert e2e.complaints(result, enforced=False) == ["after: web to web:80 is ."]


@pytest.mark.parametrize("spoil, says", [
    (lambda result: result["pods"][0].update(expected=False), "web has 10.40.0.6, which EC2 did not assign"),
    (lambda result: result["internet"][0].update(seen=""), "web is seen outside as nobody"),
    (lambda result: result["matrices"].pop("after"), "only these matrices were measured: before, under"),
    (lambda result: result["matrices"]["before"][3].update(measured=False), "before: web to api:8080 is ."),
])
def test_one_thing_that_is_not_as_it_must_be_is_named(result, spoil, says):
    spoil(result)
    assert len(found := e2e.complaints(result, enforced=True)) == 1 and says in found[0]
