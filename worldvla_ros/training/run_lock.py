# SPDX-License-Identifier: Apache-2.0
"""One training per run folder: a second would delete what the first is writing."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import socket

import torch.distributed as dist

from worldvla_ros.training.failures import TrainingError, explain_os_error

LOCK_FILE = '.lock'


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other programs that write a run out of its folder, which is made.

    Of several processes that train together the first holds the lock; all must call it. The
    system drops it when the process ends, however that was. It is a record lock, which the
    processes that load batches do not inherit: they may outlive a trainer that was killed.
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
        file = stack.enter_context((folder / LOCK_FILE).open('a+'))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # systems differ
            file.seek(0)
            return (f'{folder} is in use by another training ({file.read().strip()}); wait for '
                    'it or stop it, or give another output')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
    except OSError as error:
        return f'cannot write {folder}: {explain_os_error(error)}'
    return None
