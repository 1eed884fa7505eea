# SPDX-License-Identifier: Apache-2.0
"""Errors of training: each says what came, what was expected and what to do."""

import errno
import re

from worldvla_ros.errors import WorldVLAError


class DatasetError(WorldVLAError):
    """Demonstrations or a token store are missing, damaged, empty or made with other tokens."""


class TrainingError(WorldVLAError):
    """Training cannot go on: the loss is not finite, the disk is full, a run does not fit."""


def not_finite(step: int, loss: float, norm: float, rate: float, saved: bool) -> TrainingError:
    """Return the error of a step whose loss or gradient is not finite.

    :param rate: learning rate of the step.
    :param saved: whether there is a checkpoint of the run.
    """
    start = ('The last checkpoint is good: resume' if saved
             else 'No checkpoint was saved yet: begin again')
    where = ', in a new run that starts from it (model.init_from)' if saved else ''
    return TrainingError(
        f'step {step}: the loss is {loss} and the gradient norm {norm}, so nothing was changed or '
        f'saved. {start} with a learning rate below {rate:.2g}, a smaller clip_norm or dtype '
        f'float32{where}')


def explain_os_error(error: OSError) -> str:
    """Return the reason of a failed write in words; a full disk gets advice.

    NumPy says of one only how much of an array it could write.
    """
    if error.errno == errno.ENOSPC or re.fullmatch(r'\d+ requested and \d+ written', str(error)):
        return 'the disk is full; free some space and run the same command again'
    return str(error)
