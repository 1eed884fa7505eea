# SPDX-License-Identifier: Apache-2.0
"""ROS domains for graphs on one machine that must not hear each other: of workers and of tests."""

from collections.abc import Iterator
import contextlib
import fcntl
import itertools
import os
from pathlib import Path

from worldvla_ros.errors import WorldVLAError

_DOMAINS = range(1, 101)  # above 101, Fast DDS needs ports that Linux gives to other programs
# Each claim begins elsewhere: the nodes of a worker that died may still be ending in its domain.
_first_attempt = itertools.count(os.getpid() * 7919)


@contextlib.contextmanager
def claimed_domain() -> Iterator[int]:
    """Yield a ROS domain that no other process of this user has claimed in this way.

    :raises WorldVLAError: all are taken.
    """
    first = next(_first_attempt)
    for attempt in range(len(_DOMAINS)):
        domain = _DOMAINS[(first + attempt) % len(_DOMAINS)]
        # In /tmp and not in $TMPDIR, which each worker has its own of.
        with Path(f'/tmp/worldvla_ros_domain_{domain}_{os.getuid()}.lock').open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise WorldVLAError(f'all {len(_DOMAINS)} ROS domains are taken on this machine')
