# SPDX-License-Identifier: Apache-2.0
"""What a graph reads anew at each replay: the ids of a pass and their place in the sequence."""

import torch
from torch import Tensor

_START, _END, _HEADER = 0, 1, 2


class PassInputs:
    """One tensor that stays where it is on the device, and is filled without waiting for it."""

    def __init__(self, most_rows: int, padding: int, device: torch.device) -> None:
        """Allocate for passes of up to so many rows; `padding` is the id of rows too many."""
        self._tensor = torch.zeros(_HEADER + most_rows, dtype=torch.int64, device=device)
        self._padding = padding

    @property
    def start(self) -> Tensor:
        """Place of the first id in the sequence, int64 []."""
        return self._tensor[_START]

    @property
    def end(self) -> Tensor:
        """Place behind the last id that is not padding, int64 []."""
        return self._tensor[_END]

    def ids(self, rows: int) -> Tensor:
        """Return the ids int64 [rows] of a pass."""
        return self._tensor[_HEADER:_HEADER + rows]

    def load(self, ids: list[int], start: int, rows: int) -> None:
        """Send ids from place `start` on to the device, padded to a pass of so many rows."""
        sent = torch.tensor([start, start + len(ids), *ids,
                             *[self._padding] * (rows - len(ids))])
        self._tensor[:len(sent)].copy_(sent, non_blocking=True)
