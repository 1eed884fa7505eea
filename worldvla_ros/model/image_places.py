# SPDX-License-Identifier: Apache-2.0
"""Where in its image a code is: what rotary positions do not tell.

A rotary position turns queries and keys, so a head can attend to a place; the value that it reads
there is the same wherever that is. A network that shall tell where something lies must therefore
learn to count row ends. With an embedding per place, added to that of the code, it need not. Ours:
the released checkpoints have none (`TransformerConfig.image_grid`).
"""

import torch
from torch import Tensor

from worldvla_ros.tokens.vocab import IMAGE_HEAD_LENGTH, Vocabulary

NO_PLACE = 0


def image_places(ids: Tensor, vocabulary: Vocabulary, grid: tuple[int, int],
                 within: int = 0) -> Tensor:
    """Return the place of each token of sequences int64 [..., S]: 1 + row * columns + column.

    NO_PLACE where a token is no code of an image.

    :param grid: rows and columns of codes of every image.
    :param within: tokens before the sequence, from BOI on, of an image that goes on in it.
    """
    rows, columns = grid
    position = torch.arange(ids.shape[-1], device=ids.device)
    none = -ids.shape[-1] - 1 - 2 * rows * (columns + 2)  # so far back that no image reaches here
    begin = torch.where(ids == vocabulary.boi, position, -within or none).cummax(-1).values
    row_length = columns + 1  # a row end is behind each
    index = position - begin - IMAGE_HEAD_LENGTH
    is_code = ((ids >= vocabulary.codes.start) & (ids < vocabulary.codes.stop)
               & (index >= 0) & (index < rows * row_length) & (index % row_length < columns))
    place = 1 + index // row_length * columns + index % row_length
    return torch.where(is_code, place, NO_PLACE)
