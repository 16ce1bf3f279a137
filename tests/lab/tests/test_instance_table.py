"""ipamd's table of instance types says what the lab's EC2 says of them."""

import importlib.util
from pathlib import Path

from vpc import limits

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "ipamd/src/instances.txt"


def test_the_table_is_what_the_script_makes_of_the_catalogue():
    spec = importlib.util.spec_from_file_location("instance_types", ROOT / "scripts/instance-types.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert TABLE.read_text() == script.table(), "run scripts/instance-types.py (it says how)"


def test_a_node_of_a_known_type_is_told_the_limits_that_are_enforced():
    rows = (line for line in TABLE.read_text().splitlines() if not line.startswith("#"))
    known = {
        name: tuple(map(int, head.split()[:2]))
        for head, names in (row.split(": ") for row in rows)
        for name in names.split()
    }
    for name in ("c5.large", "c5.xlarge", "m5.16xlarge", "t3.small"):
        enforced = limits.of(name)
        assert known[name] == (enforced.interfaces_by_card[0], enforced.addresses_per_interface)
