# SPDX-License-Identifier: Apache-2.0
"""Types of command-line arguments that commands of training and of the simulator share."""

import argparse


def positive_int(text: str) -> int:
    """Return a whole number from 1.

    :raises argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number from 1, got {text!r}')
    return int(text)
