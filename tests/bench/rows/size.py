"""The plugin's size: it is read from disk once for each pod."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cluster.config import CACHE, CHECKOUT

from .row import Row

PLUGIN = Path("x86_64-unknown-linux-musl/plugin/aws-cni")
BAR_MEGABYTES = 2.5


def measure() -> list[Row]:
    """Builds the release plugin as images/build.sh does, and looks at the file."""
    subprocess.run([str(CHECKOUT / "images" / "build.sh"), "stage"], check=True, stdout=subprocess.DEVNULL)
    size = os.path.getsize(CACHE / "target" / PLUGIN)
    return [Row("cni/plugin-size", round(size / 1e6, 2), "MB", bar=BAR_MEGABYTES)]
