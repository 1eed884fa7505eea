# SPDX-License-Identifier: Apache-2.0
"""Numbers of the public WorldVLA code, run on a CPU: where they lie, and what is here of them.

test/golden holds the small ones: action tokens, attention masks, sizes of images, one training
batch. Weights, logits and images are too large to commit. Tests that need them are skipped, also
in CI, unless $WORLDVLA_GOLDEN or ../shared/golden, beside this repository, holds them: without
them nothing compares the transformer and the image tokenizer with the public code, and
test_transformer.py compares the transformer with the Chameleon of the library transformers.
"""

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
