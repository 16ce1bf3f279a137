"""The address pool on simulated nodes, beside AWS's own algorithm on the same traces (tests/sim): the floor is AWS's figure."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from cluster.config import CACHE, CHECKOUT
from cluster.progress import step

from .row import Row

NAMES = ("sim/",)
PATIENCE_SECONDS = 900


def measure(only: str) -> list[Row]:
    """Rows whose names begin with `only`; five seeds each."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", str(CACHE / "target")))
    with step("simulator built"):
        subprocess.run(["cargo", "build", "--quiet", "--locked", "--release", "-p", "selvage-sim"], cwd=CHECKOUT,
                       env={**os.environ, "CARGO_TARGET_DIR": str(target)}, check=True)
    with step("simulated"):
        found = subprocess.run([str(target / "release" / "selvage-sim"), "rows", "--only", only], check=True, stdout=subprocess.PIPE,
                               timeout=PATIENCE_SECONDS).stdout
    return [Row(**{**one, "spread": tuple(one["spread"])}) for one in json.loads(found)]
