# SPDX-License-Identifier: Apache-2.0
"""What commands of the robot, of training and of the simulator are given: types and checks."""

import argparse


def positive_int(text: str) -> int:
    """Return a whole number from 1.

    :raises argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number from 1, got {text!r}')
    return int(text)


def is_text(text: str) -> bool:
    """Return whether a string has no bytes in it that were not UTF-8."""
    return not any('\ud800' <= character <= '\udfff' for character in text)
