"""Programs that tests run as processes of their own."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys


def run_program(*arguments: str | Path, timeout: float) -> str:
    """Run Python with one thread for each process, and check that it ends well.

    Args:
        *arguments: Its options, the script and the script's arguments.
        timeout: Seconds that it may take.

    Returns:
        What it printed.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        # What dies in native code says where its threads were.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
