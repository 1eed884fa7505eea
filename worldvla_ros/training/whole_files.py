# SPDX-License-Identifier: Apache-2.0
"""Single files that appear whole or not at all; for folders see `run_folder` and `store`."""

from collections.abc import Callable
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside the target and rename it, so that nobody reads half of it."""
    draft = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        write(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
