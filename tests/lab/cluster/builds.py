"""Building what the lab runs: scripts that print where the result is, and may take minutes."""
from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path


class BuildError(Exception):
    """A build script ended with an error, which it has printed itself."""


def run(program: Path) -> str:
    """What the script prints, without the last line's end. Its progress goes to standard error."""
    # A session of its own, so that an interrupt ends its compilers too.
    child = subprocess.Popen([str(program)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        printed, _ = child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()
        raise
    if child.returncode != 0:
        raise BuildError(f"{program} ended with status {child.returncode}")
    return printed.strip()
