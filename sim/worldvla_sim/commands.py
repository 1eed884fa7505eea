# SPDX-License-Identifier: Apache-2.0
"""How commands end: their exit status, and one line instead of a traceback."""

from collections.abc import Callable
import functools
import sys
from typing import ParamSpec

from worldvla_ros.errors import WorldVLAError

EXIT_OK, EXIT_ERRORS, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

Arguments = ParamSpec('Arguments')


def resumable(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Tell the errors and Ctrl-C of a command that goes on when it is run again.

    It ends with EXIT_USAGE and EXIT_INTERRUPTED then.
    """
    @functools.wraps(main)
    def told(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except WorldVLAError as error:
            print(f'error: {error}', file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt:
            print('interrupted; the same command goes on', file=sys.stderr)
            return EXIT_INTERRUPTED
    return told
