# SPDX-License-Identifier: Apache-2.0
"""What a graph reads anew at each replay: ids, places in images, and where the pass begins."""

import numpy as np
import torch
from torch import Tensor

from worldvla_ros.model.image_places import NO_PLACE

_START, _END, _HEADER = 0, 1, 2


class PassInputs:
    """One tensor that stays where it is on the device, and is filled without waiting for it."""

    def __init__(self, most_rows: int, padding: int, device: torch.device) -> None:
        """Allocate for passes of up to so many rows; `padding` is the id of rows too many."""
        self._tensor = torch.zeros(_HEADER + 2 * most_rows, dtype=torch.int64, device=device)
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

    def places(self, rows: int) -> Tensor:
        """Return the places in images int64 [rows] of the ids of a pass."""
        return self._tensor[_HEADER + rows:_HEADER + 2 * rows]

    def load(self, ids: list[int], start: int, rows: int, places: Tensor | None) -> None:
        """Send ids from place `start` on to the device, padded to a pass of so many rows.

        :param places: theirs in images, on the CPU; None where the network reads none.
        """
        # By numpy: torch.tensor takes up to 0.8 ms for such a list, while the GPU waits.
        ids_end, places_start = _HEADER + len(ids), _HEADER + rows
        sent = np.full(_HEADER + rows * (1 if places is None else 2), self._padding, np.int64)
        sent[:_HEADER] = start, start + len(ids)
        sent[_HEADER:ids_end] = ids
        if places is not None:
            sent[places_start:] = NO_PLACE
            sent[places_start:places_start + len(ids)] = places.numpy()
        self._tensor[:len(sent)].copy_(torch.from_numpy(sent), non_blocking=True)
