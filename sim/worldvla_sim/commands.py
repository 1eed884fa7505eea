# SPDX-License-Identifier: Apache-2.0
"""What commands share: how they read lists, and how they end, in one line and with a status."""

import argparse
from collections.abc import Callable
import functools
import re
import signal
import sys
from typing import ParamSpec

from worldvla_ros.errors import WorldVLAError

EXIT_OK, EXIT_ERRORS, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
MAX_SEED = 2 ** 32 - 1  # of NumPy

Arguments = ParamSpec('Arguments')


def parse_indices(text: str) -> list[int]:
    """Turn '0,3-5' into [0, 3, 4, 5].

    :raises argparse.ArgumentTypeError: anything else.
    """
    indices: list[int] = []
    for part in text.split(','):
        match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
        if match is None:
            raise argparse.ArgumentTypeError(
                f'{text!r} is not a list of indices and ranges such as 0,3-5')
        first, last = match.groups()
        if not (numbers := range(int(first), int(last or first) + 1)):
            raise argparse.ArgumentTypeError(
                f'{part.strip()!r} in {text!r} names no index (ranges go upwards)')
        indices.extend(numbers)
    return sorted(set(indices))


def seed(text: str) -> int:
    """Return a seed that NumPy takes: a whole number from 0 to 2**32 - 1.

    :raises argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(
            f'expected a whole number from 0 to {MAX_SEED}, got {text!r}')
    return int(text)


def end_as_on_ctrl_c() -> None:
    """Let SIGTERM end the command as Ctrl-C does: it stops its processes and saves what it has."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def resumable(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Do what `telling` does, for a command that goes on when it is run again."""
    return telling(main, 'interrupted; the same command goes on')


def telling(main: Callable[Arguments, int], interrupted: str = 'interrupted'
            ) -> Callable[Arguments, int]:
    """Tell the errors and Ctrl-C of a command, which ends with EXIT_USAGE or EXIT_INTERRUPTED."""
    @functools.wraps(main)
    def told(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except WorldVLAError as error:
            print(f'error: {error}', file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr)
            return EXIT_INTERRUPTED
    return told
