# SPDX-License-Identifier: Apache-2.0
"""One training per run folder: a second would delete what the first is writing."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import torch.distributed as dist

from worldvla_ros.file_lock import hold_lock
from worldvla_ros.training.failures import TrainingError, explain_os_error

LOCK_FILE = '.lock'


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other programs that write a run out of its folder, which is made.

    Of several processes that train together the first holds the lock; all must call it.
    :raises TrainingError: another program has it, in all processes that train together.
    """
    together = dist.is_initialized()
    with contextlib.ExitStack() as stack:
        problem = (_locked(folder, stack) if not together or dist.get_rank() == 0 else None)
        if together:
            said = [problem]
            dist.broadcast_object_list(said)
            problem = said[0]
        if problem is not None:
            raise TrainingError(problem)
        yield


def _locked(folder: Path, stack: contextlib.ExitStack) -> str | None:
    """Take the lock until the stack ends; return why not, None with success."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if owner := hold_lock(folder / LOCK_FILE, stack):
            return (f'{folder} is in use by another training ({owner}); wait for it or stop it, '
                    'or give another output')
    except OSError as error:
        return f'cannot write {folder}: {explain_os_error(error)}'
    return None
