# SPDX-License-Identifier: Apache-2.0
"""Errors of training: each says what came, what was expected and what to do."""

import errno
import re

from worldvla_ros.errors import WorldVLAError


class DatasetError(WorldVLAError):
    """Demonstrations or a token store are missing, damaged, empty or made with other tokens."""


class TrainingError(WorldVLAError):
    """Training cannot go on: the loss is not finite, the disk is full, a run does not fit."""


def explain_os_error(error: OSError) -> str:
    """Return the reason of a failed write in words; a full disk gets advice.

    NumPy says of one only how much of an array it could write.
    """
    if error.errno == errno.ENOSPC or re.fullmatch(r'\d+ requested and \d+ written', str(error)):
        return 'the disk is full; free some space and run the same command again'
    return str(error)
