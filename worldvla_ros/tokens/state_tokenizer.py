# SPDX-License-Identifier: Apache-2.0
"""The arm's state to token ids, by the bins of the action tokenizer (as RynnVLA-002 does)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldvla_ros.datatypes import STATE_DIM
from worldvla_ros.errors import StateError
from worldvla_ros.tokens.quantization import checked_range, quantize
from worldvla_ros.tokens.vocab import Vocabulary


class StateTokenizer:
    """Quantizes states [..., 7] of `arm_state` to token ids [..., 7]."""

    def __init__(self, minimum: ArrayLike, maximum: ArrayLike, vocabulary: Vocabulary) -> None:
        """Take the ranges of the training states, seven values each, minimum < maximum."""
        self.minimum, self.maximum = checked_range('state', STATE_DIM, minimum, maximum)
        self._bins = vocabulary.state_bins

    def encode(self, states: ArrayLike) -> NDArray[np.int64]:
        """Return the token ids; values out of range saturate. Raises StateError for NaN."""
        values = np.asarray(states, dtype=np.float64)
        if values.shape[-1:] != (STATE_DIM,) or np.isnan(values).any():
            raise StateError(f'a state has {STATE_DIM} numbers on its last axis, got shape '
                             f'{values.shape}{", with NaN" if np.isnan(values).any() else ""}')
        return quantize(values, self.minimum, self.maximum, len(self._bins)) + self._bins.start
