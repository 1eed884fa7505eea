# SPDX-License-Identifier: Apache-2.0
"""Robot actions to token ids and back: normalize, quantize, de-quantize, unnormalize.

Formulas and edge cases are those of the public implementation:

    normalized = clip(2 (a - min) / (max - min + 1e-8) - 1, -1, 1)
    token      = bin_start - 1 + digitize(normalized, linspace(-1, 1, 256))

There are 256 bins but only 255 intervals between the edges, so the last bin holds only values
above the maximum and shares the centre of the one before it. Quantizing runs in float64, as the
public training data did; de-quantizing in float32, as the public evaluation does.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldvla_ros.errors import TokenError
from worldvla_ros.tokens.quantization import (
    RANGE_EPSILON,
    checked_range,
    normalize,
    quantize,
)
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION, Vocabulary

LIBERO_MINIMUM = (-0.9375, -0.9375, -0.9375, -0.32571429, -0.375, -0.375, -1.0)
"""Smallest action of the LIBERO demonstrations, the same for all suites (public code)."""
LIBERO_MAXIMUM = (0.9375, 0.9375, 0.9375, 0.375, 0.375, 0.375, 1.0)
"""Largest action of the LIBERO demonstrations."""

BIN_CHOICES = ('greedy', 'mean')
"""How a value follows from the probabilities of its bins: see `model.decoded.choose_bins`."""


class ActionTokenizer:
    """Quantizes actions [..., 7] in controller input to token ids [..., 7], and back."""

    def __init__(self, minimum: ArrayLike, maximum: ArrayLike,
                 vocabulary: Vocabulary | None = None) -> None:
        """Take the statistics of the training actions, seven values each, minimum < maximum."""
        self.minimum, self.maximum = checked_range('action', VALUES_PER_ACTION, minimum, maximum)
        self.vocabulary = vocabulary or Vocabulary()
        self._centres = _bin_centres(self.vocabulary.num_bins)

    @property
    def bin_width(self) -> NDArray[np.float64]:
        """Width of one bin per axis, in controller input, (7,)."""
        return (self.maximum - self.minimum) / (self.vocabulary.num_bins - 1)

    def encode(self, actions: ArrayLike) -> NDArray[np.int64]:
        """Return the token ids of actions [..., 7]; values out of range saturate.

        Raises TokenError for another last axis and for NaN, which has no bin.
        """
        values = np.asarray(actions, dtype=np.float64)
        self._check_last_axis(values)
        if np.isnan(values).any():
            raise TokenError('cannot quantize an action with NaN; expected numbers')
        bins = quantize(values, self.minimum, self.maximum, self.vocabulary.num_bins)
        return bins + self.vocabulary.bin_start

    def decode(self, token_ids: ArrayLike) -> NDArray[np.float64]:
        """Return the actions (bin centres) of token ids [..., 7].

        Raises TokenError for an id that is no action bin; the public code clamps it silently.
        """
        ids = np.asarray(token_ids)
        self._check_last_axis(ids)
        bins = self.vocabulary.bins
        foreign = ids[(ids < bins.start) | (ids >= bins.stop)]
        if foreign.size:
            raise TokenError(f'token {int(foreign[0])} is no action bin; expected ids in '
                             f'[{bins.start}, {bins.stop})')
        return self.unnormalize(self.dequantize(ids))

    def normalize(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map controller input to [-1, 1] by the statistics, saturating."""
        return normalize(actions, self.minimum, self.maximum)

    def unnormalize(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map [-1, 1] back to controller input; inverse of `normalize` inside the range."""
        span = self.maximum - self.minimum + RANGE_EPSILON
        return np.asarray((values + 1) / 2 * span + self.minimum, dtype=np.float64)

    def dequantize(self, token_ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the bin centres in [-1, 1]; a foreign id is clamped, as in the public code."""
        index = np.clip(token_ids - self.vocabulary.bin_start, 0, len(self._centres) - 1)
        centres: NDArray[np.float32] = self._centres[index]
        return centres

    @staticmethod
    def _check_last_axis(values: NDArray[np.generic]) -> None:
        if values.ndim == 0 or values.shape[-1] != VALUES_PER_ACTION:
            raise TokenError(f'an action has {VALUES_PER_ACTION} values on its last axis, '
                             f'got an array of shape {values.shape}')


def _bin_centres(num_bins: int) -> NDArray[np.float32]:
    """Return the centres between neighbouring edges, to the last bit as the public code has them.

    Its edges are `torch.linspace` in float32, which counts the upper half down from 1 and rounds
    once after multiplying and adding; float64 holds the exact product.
    """
    step = np.float64(np.float32(2) / np.float32(num_bins - 1))
    lower, upper = (np.arange(count) * step for count in (num_bins // 2, (num_bins + 1) // 2))
    edges = np.concatenate((lower - 1, 1 - upper[::-1])).astype(np.float32)
    return ((edges[:-1] + edges[1:]) / np.float32(2)).astype(np.float32)
