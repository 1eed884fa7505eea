# SPDX-License-Identifier: Apache-2.0
"""Single files that appear whole or not at all.

Folders: `training.run_folder` and `training.store`; HDF5: `worldvla_sim.demonstrations`.
"""

from collections.abc import Callable
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside the target and rename it, so that nobody reads half of it.

    :param write: writes the path that it is given, which has the target's suffix.
    :raises OSError: as `write` and the renaming raise it; the target is as it was.
    """
    draft = path.with_name(f'.{os.getpid()}-{path.name}')
    try:
        write(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
