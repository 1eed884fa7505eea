# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and the folders that others are written in for it.

Folders: `training.run_folder` and `training.store`; HDF5: `worldvla_sim.demonstrations`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import csv
import os
from pathlib import Path
from typing import Any
import uuid


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


def write_whole_csv(path: Path, columns: Collection[str], rows: Iterable[Mapping[str, Any]]
                    ) -> None:
    """Write a header and rows as comma-separated values, as `write_whole` does."""
    def write(draft: Path) -> None:
        with draft.open('w', newline='') as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    write_whole(path, write)


def draft_folder(parent: Path, prefix: str) -> Path:
    """Make a folder of a new name in another, to be renamed when it is full.

    Others may read it as they may all new folders: `tempfile.mkdtemp` keeps its own to the user.
    """
    folder = parent / f'{prefix}{uuid.uuid4().hex}'
    folder.mkdir()
    return folder
