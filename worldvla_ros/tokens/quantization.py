# SPDX-License-Identifier: Apache-2.0
"""Continuous values to bins, the same way for actions and for the arm's state."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldvla_ros.errors import ConfigError

RANGE_EPSILON = 1e-8  # added to max - min by the public implementation


def checked_range(what: str, size: int, minimum: ArrayLike, maximum: ArrayLike
                  ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both ends of the ranges of `size` values; ConfigError unless minimum < maximum."""
    low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
    for name, bound in (('minimum', low), ('maximum', high)):
        if bound.shape != (size,) or not np.isfinite(bound).all():
            raise ConfigError(f'{what} {name} must be {size} finite values, got '
                              f'{bound.tolist()}')
    if not (low < high).all():
        raise ConfigError(f'every {what} minimum must be below its maximum, got {low.tolist()} '
                          f'and {high.tolist()}')
    return low, high


def normalize(values: NDArray[np.float64], minimum: NDArray[np.float64],
              maximum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map values to [-1, 1] by their ranges, saturating."""
    span = maximum - minimum + RANGE_EPSILON
    return np.clip(2 * (values - minimum) / span - 1, -1.0, 1.0)


def quantize(values: NDArray[np.float64], minimum: NDArray[np.float64],
             maximum: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """Return the bins of values, counted from 0; values out of range saturate."""
    edges = np.linspace(-1.0, 1.0, num_bins)
    bins = np.digitize(normalize(values, minimum, maximum), edges) - 1
    return np.asarray(bins, np.int64)
