# SPDX-License-Identifier: Apache-2.0
"""Where the golden vectors of the public implementation lie (../shared/golden/README.md)."""

import os
from pathlib import Path

import pytest

_TEST = Path(__file__).parent
_FOLDERS = (_TEST / 'golden', Path(os.environ.get('WORLDVLA_GOLDEN', _TEST / 'golden')),
            _TEST.parents[1] / 'shared' / 'golden')


def golden(name: str) -> Path:
    """Return the path of a golden file; skips the test where only the small ones are there."""
    for folder in _FOLDERS:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f'{name} is not in test/golden (too large to commit) and neither '
                '$WORLDVLA_GOLDEN nor ../shared/golden has it')
