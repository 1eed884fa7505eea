# SPDX-License-Identifier: Apache-2.0
"""Preallocated keys and values of one packed sequence, and the token ids they belong to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worldvla_ros.errors import InferenceError


class KVCache:
    """Keys and values of every layer, written row after row and rewound to a prefix.

    The cache knows the token ids of its prefix. Keys and values are a function of these ids
    alone, up to the rounding of the pass that made them, so comparing ids is the test of what may
    be reused: the text while the instruction stays, the older frame when it was prefilled ahead,
    nothing after a reset.
    """

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, capacity: int,
                 dtype: torch.dtype = torch.float32, device: torch.device | str = 'cpu') -> None:
        """Allocate for `capacity` rows."""
        shape = (num_layers, 1, num_heads, capacity, head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0
        self._token_ids: list[int] = []

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return self._keys.shape[3]

    @property
    def length(self) -> int:
        """Rows in use, of the prefix and of rows decoded after it."""
        return self._length

    @property
    def bytes_per_row(self) -> int:
        """Memory of one row in all layers, keys and values [bytes]."""
        return 2 * self._keys[:, 0, :, 0].numel() * self._keys.element_size()

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows [1, heads, n, head_dim] of one layer after the rows in use.

        Returns all keys and values of that layer up to and including the new rows. The new rows
        count as in use only after `advance`, which follows the last layer.
        """
        end = self._length + keys.shape[2]
        if end > self.capacity:
            raise InferenceError(f'the sequence needs {end} rows, the KV cache has '
                                 f'{self.capacity}; use a shorter instruction or build the '
                                 f'cache larger')
        self._keys[layer, :, :, self._length:end] = keys
        self._values[layer, :, :, self._length:end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, rows: int) -> None:
        """Count the rows that every layer has just written as in use."""
        self._length += rows

    def truncate(self, length: int) -> None:
        """Drop the rows from `length` on, which were decoded after the prefix."""
        if not len(self._token_ids) <= length <= self._length:
            raise InferenceError(f'expected to keep {len(self._token_ids)} to {self._length} rows '
                                 f'of the KV cache, got {length}')
        self._length = length

    def keep_prefix(self, token_ids: Sequence[int]) -> None:
        """Rewind to a prefix that has just been computed and remember which tokens it holds."""
        self._length = len(token_ids)
        self._token_ids = list(token_ids)

    def rewind_to_common_prefix(self, token_ids: Sequence[int]) -> int:
        """Drop all rows that do not belong to these tokens; return how many are left."""
        common = common_prefix_length(self._token_ids, token_ids)
        self._length = common
        self._token_ids = self._token_ids[:common]
        return common


def common_prefix_length(cached: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many tokens two sequences share from the start."""
    common = 0
    for one, other in zip(cached, wanted, strict=False):
        if one != other:
            break
        common += 1
    return common
