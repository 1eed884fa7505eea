# SPDX-License-Identifier: Apache-2.0
import platform
import subprocess
import sys

import pytest

# Whether 20 MiB are a map of their own, and how many MiB the C library keeps of them once free.
TAKE_AND_FREE = """
import ctypes
import sys
from worldvla_ros.training.freed_memory import keep_freed_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks',
        'fordblks', 'keepcost')]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == 'kept':
    keep_freed_memory()
before = libc.mallinfo2()
taken = libc.malloc(20 * 2**20)
during = libc.mallinfo2()
libc.free(taken)
after = libc.mallinfo2()
print(during.hblks - before.hblks, (after.fordblks - before.fordblks) // 2**20)
"""


def maps_and_megabytes_left(how):
    done = subprocess.run([sys.executable, '-c', TAKE_AND_FREE, how], capture_output=True,
                          text=True, check=True)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='nothing to set elsewhere')
def test_what_is_freed_stays_for_the_next_tensors():
    assert maps_and_megabytes_left('given back') == (1, 0)
    maps, left = maps_and_megabytes_left('kept')
    assert maps == 0
    assert left >= 19
