# SPDX-License-Identifier: Apache-2.0
"""What the Makefile must not do."""

from pathlib import Path
import re

MAKEFILE = Path(__file__).parent.parent / 'Makefile'


def test_clean_removes_what_setup_makes_again_and_no_checkpoint():
    """Pins a bug: it removed out/, where a training writes its checkpoints."""
    recipe = re.search(r'^clean:.*\n\trm -rf (.*)$', MAKEFILE.read_text(), re.MULTILINE)
    assert recipe.group(1).split() == ['build', 'install', 'log']
