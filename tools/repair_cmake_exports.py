# SPDX-License-Identifier: Apache-2.0
"""Point the CMake exports of the ROS wheels at this machine's Python and NumPy headers.

The wheels were built elsewhere and their exported targets name that machine's folders; CMake stops
with "includes non-existent path" until they name ours. Running it twice changes nothing.
"""

from pathlib import Path
import re
import sys
import sysconfig

import numpy

BUILD_PREFIX = r'/opt/python/cp3\d+-cp3\d+'
BUILD_PYTHON = re.compile(BUILD_PREFIX + r'/include/python3\.\d+')
BUILD_NUMPY = re.compile(BUILD_PREFIX + r'/lib/python3\.\d+/site-packages/numpy/_core/include')


def repair(share: Path) -> int:
    """Rewrite every ``*.cmake`` below `share` and return how many files changed."""
    changed = 0
    for path in share.rglob('*.cmake'):
        text = path.read_text(errors='surrogateescape')
        repaired = BUILD_NUMPY.sub(numpy.get_include(), text)
        repaired = BUILD_PYTHON.sub(sysconfig.get_path('include'), repaired)
        if repaired != text:
            path.write_text(repaired, errors='surrogateescape')
            changed += 1
    return changed


if __name__ == '__main__':
    print(f'[setup] repaired {repair(Path(sys.argv[1]))} CMake exports of the ROS wheels')
