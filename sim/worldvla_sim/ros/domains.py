# SPDX-License-Identifier: Apache-2.0
"""ROS domains for graphs on one machine that must not hear each other: of workers and of tests."""

from collections.abc import Iterator
import contextlib
import fcntl
import itertools
import os

from worldvla_ros.errors import WorldVLAError

# In /tmp and not in $TMPDIR, which each worker has its own of.
_LOCKS = '/tmp/worldvla_ros_domain'
_DOMAINS = range(1, 101)  # above 101, Fast DDS needs ports that Linux gives to other programs
# Each claim begins behind the last: nodes of a worker that died may still be ending in its domain.
_attempts = itertools.count(os.getpid() * 7919)


@contextlib.contextmanager
def claimed_domain() -> Iterator[int]:
    """Yield a ROS domain that no other process of this machine has claimed in this way.

    That of ROS_DOMAIN_ID is left out: a robot may be in it.

    :raises WorldVLAError: all are taken.
    """
    refusal: OSError | None = None
    for _ in _DOMAINS:
        domain = _DOMAINS[next(_attempts) % len(_DOMAINS)]
        if str(domain) == os.environ.get('ROS_DOMAIN_ID', '').strip():
            continue
        try:
            lock = _locked(f'{_LOCKS}_{domain}.lock')
        except OSError as error:
            refusal = error
            continue
        try:
            yield domain
        finally:
            os.close(lock)
        return
    raise WorldVLAError(f'all {len(_DOMAINS)} ROS domains are taken on this machine ({refusal}); '
                        f'end other evaluations, or look at {_LOCKS}_*.lock')


def _locked(path: str) -> int:
    """Return the open file, locked, that stands for a domain; OSError when it is not free."""
    lock = _opened(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _opened(path: str) -> int:
    """Open a file that all users of the machine may lock; make it where there is none.

    One that is there is opened without O_CREAT: in /tmp, Linux refuses that for another's file.
    """
    if not os.path.lexists(path):
        with contextlib.suppress(FileExistsError):
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL)
            os.fchmod(lock, 0o666)  # whatever the umask is
            return lock
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
