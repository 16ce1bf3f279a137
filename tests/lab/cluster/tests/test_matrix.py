"""Tables: reading, comparing, showing; and the demo's own two against each other."""
import pytest

from cluster.config import CHECKOUT
from cluster.matrix import Table, TableError, Target

APP = CHECKOUT / "tests" / "lab" / "app"
SMALL = "# words\nfrom web:80 dns:53/udp\nann + .\nbob . +\n"


def test_a_table_is_read_cell_by_cell():
    table = Table.parse(SMALL, "small")
    assert table.sources == ["ann", "bob"]
    assert table.targets == [Target("web", 80, "tcp"), Target("dns", 53, "udp")]
    assert table.cells["ann", Target("web", 80, "tcp")] and not table.cells["ann", Target("dns", 53, "udp")]


@pytest.mark.parametrize("text, says", [
    ("ann + .\n", "first row"),
    ("from web:80\nann + +\n", "row ann"),
    ("from web:80\nann x\n", "row ann"),
    ("from web:80 web:80\nann + +\n", "twice"),
    ("from web:80\nann +\nann +\n", "twice"),
    ("from web\nann +\n", "NAME:PORT"),
    ("from web:80/sctp\nann +\n", "NAME:PORT"),
    ("", "first row"),
])
def test_a_table_that_can_not_be_read_says_where(text, says):
    with pytest.raises(TableError, match=says):
        Table.parse(text, "broken")


def test_every_cell_that_differs_is_wrong_and_in_brackets():
    expected, measured = Table.parse(SMALL, "small"), Table.parse(SMALL, "small")
    cell = ("bob", Target("web", 80, "tcp"))
    measured.cells[cell] = True
    assert measured.wrong(expected) == [cell]
    lines = measured.render(expected).splitlines()
    assert "[" not in lines[1] and "[+]" in lines[2]


def test_a_cell_that_was_not_measured_is_wrong():
    expected, measured = Table.parse(SMALL, "small"), Table.parse(SMALL, "small")
    del measured.cells["ann", Target("dns", 53, "udp")]
    assert measured.wrong(expected) == [("ann", Target("dns", 53, "udp"))]


def test_the_two_tables_of_the_demo_have_the_same_rows_and_columns():
    opened, under = Table.read(APP / "open.txt"), Table.read(APP / "under.txt")
    assert (opened.sources, opened.targets) == (under.sources, under.targets)
    assert all(opened.cells.values())
