# SPDX-License-Identifier: Apache-2.0
"""Look at processes through /proc: which there are, which still run, what they have open."""

import gc
from pathlib import Path


def children_of(pid):
    """Process ids of the children of a process."""
    return [int(child) for path in Path(f'/proc/{pid}/task').glob('*/children')
            for child in path.read_text().split()]


def is_alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or while, it was read
        return False


def descriptors():
    """How many files this process has open, without those of what nobody uses any more."""
    gc.collect()
    return len(list(Path('/proc/self/fd').iterdir()))


def programs_in(domain):
    """Command lines of this project's programs in a ROS domain."""
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            variables = (path / 'environ').read_bytes().split(b'\0')
            command = (path / 'cmdline').read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if b'worldvla' in command and f'ROS_DOMAIN_ID={domain}'.encode() in variables:
            found.append(command)
    return found


def largest_mapping(pid, name):
    """Size [bytes] of the largest file with this in its name that a process has in its memory."""
    sizes = [0]
    for line in Path(f'/proc/{pid}/maps').read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        if name in path:
            start, end = (int(address, 16) for address in addresses.split('-'))
            sizes.append(end - start)
    return max(sizes)
