# SPDX-License-Identifier: Apache-2.0
"""One writer per file or folder: the second program is told who the first is."""

import contextlib
import fcntl
import os
from pathlib import Path
import socket


def hold_lock(path: Path, stack: contextlib.ExitStack) -> str:
    """Hold a lock file until the stack ends, and return ''; else return who holds it already.

    The system drops the lock when the process ends, however that was. It is a record lock, which
    the processes that this one starts do not inherit: they may outlive one that was killed.
    :raises OSError: the file cannot be written.
    """
    file = stack.enter_context(path.open('a+'))
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ
        file.seek(0)
        return file.read().strip() or 'unknown'
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    return ''
