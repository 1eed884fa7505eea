# SPDX-License-Identifier: Apache-2.0
"""Which source a figure is of."""

import os
from pathlib import Path
import subprocess

ROOT = Path(__file__).parents[1]


def commit_of(root: Path = ROOT) -> str | None:
    """Return $COMMIT, which a lent machine is told as it may have no .git; else what git says."""
    if 'COMMIT' in os.environ:
        return os.environ['COMMIT']
    try:
        return subprocess.run(['git', 'describe', '--always', '--dirty', '--exclude=*'], cwd=root,
                              capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
