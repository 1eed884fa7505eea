# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and the folders that others are written in for it.

Content is on the disk before its name is, so that a power cut leaves no empty file under it.
Folders: `training.run_folder` and `training.store`; HDF5: `recording.demonstration_file`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
import contextlib
import csv
import os
from pathlib import Path
import tempfile
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
        flush(draft)
        draft.replace(path)
        _flush_names(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def try_writing(folder: Path) -> None:
    """Make a folder, if it is not there, and write in it; OSError where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all in it, is on the disk.

    :raises OSError: as the disk reports it, such as one that turns out to be full.
    """
    if path.is_dir():
        for entry in path.iterdir():
            flush(entry)
        _flush_names(path)
        return
    with path.open('rb') as file:
        os.fsync(file.fileno())


def rename_whole(draft: Path, target: Path) -> None:
    """Rename a folder that is full, when it is on the disk; OSError as `flush` and `rename`."""
    flush(draft)
    draft.rename(target)
    _flush_names(target.parent)


def _flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
