# SPDX-License-Identifier: Apache-2.0
"""A guess of a whole chunk, so that one pass computes all of its values at once.

Jacobi decoding (Santilli et al. 2023, arXiv 2305.10427): the rows of a guess go through the
network as if it had been decoded, and what the network chooses after them is the next guess, until
both are the same. Then every value is the network's choice after those before it, which is what a
pass per value gives, whatever the first guess was. The first pass makes the first value of each
action final and every other pass at least the next, so seven passes are always enough. The last
chunk is a guess of which many values come true.
"""

import torch
from torch import Tensor

from worldvla_ros.tokens.vocab import VALUES_PER_ACTION, Vocabulary


class ChunkDraft:
    """The values that others are computed after, six per action; the tensor stays in place."""

    def __init__(self, num_actions: int, vocabulary: Vocabulary, device: torch.device) -> None:
        """Guess no motion."""
        self._vocabulary = vocabulary
        self._bins = torch.zeros((VALUES_PER_ACTION - 1, num_actions), dtype=torch.int64,
                                 device=device)
        self.forget()

    def forget(self) -> None:
        """Guess no motion, whatever was decoded: the middle bins."""
        self._bins.fill_(self._vocabulary.num_bins // 2)

    def tokens(self) -> Tensor:
        """Return the tokens int64 [7, K] that the values are computed after, BOA first."""
        boa = torch.full_like(self._bins[:1], self._vocabulary.boa)
        return torch.cat((boa, self._bins + self._vocabulary.bin_start))

    def improve(self, bins: Tensor) -> Tensor:
        """Guess what the network chose, int64 [7, K]; return bool []: that was the guess."""
        right = (bins[:-1] == self._bins).all()
        self._bins.copy_(bins[:-1])
        return right
