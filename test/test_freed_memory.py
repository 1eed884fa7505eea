# SPDX-License-Identifier: Apache-2.0
import platform
import subprocess
import sys

import pytest

# How many MiB more the process has after 256 MiB of tensors came and went.
COME_AND_GO = """
import sys
import torch
from worldvla_ros.freed_memory import keep_freed_memory
def pages():
    return int(open('/proc/self/statm').read().split()[1])
if sys.argv[1] == 'kept':
    keep_freed_memory()
torch.ones(2**22).sum()
before = pages()
tensors = [torch.ones(2**22) for _ in range(16)]
tensors.clear()
print((pages() - before) // 256)
"""


def megabytes_left(how):
    done = subprocess.run([sys.executable, '-c', COME_AND_GO, how], capture_output=True, text=True,
                          check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='nothing to set elsewhere')
def test_memory_of_tensors_stays_for_the_next_ones():
    assert megabytes_left('kept') > 200
    assert megabytes_left('given back') < 100
