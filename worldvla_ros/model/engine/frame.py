# SPDX-License-Identifier: Apache-2.0
"""Frames of one size to image codes, as one graph: some 300 small kernels without the host."""

import numpy as np
from numpy.typing import NDArray
import torch

from worldvla_ros.model.engine.graphs import Graphs
from worldvla_ros.model.image_tokenizer import ImageTokenizer


class StaticFrameEncoder:
    """Encodes one frame at a time; on a CUDA device it is one graph replay."""

    def __init__(self, tokenizer: ImageTokenizer, side: int) -> None:
        """Take the side of the square frames [px].

        Whether convolutions are TensorFloat-32 is settled by the first frame, see
        `image_tokenizer`.
        """
        device = tokenizer.quant_conv.weight.device
        self._tokenizer, self._graphs = tokenizer, Graphs(device)
        self._pixels = torch.zeros((1, side, side, 3), dtype=torch.uint8, device=device)

    def encode(self, frame: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the code indices [side / 16, side / 16] of an RGB frame [side, side, 3]."""
        self._pixels.copy_(torch.tensor(np.ascontiguousarray(frame))[None])
        codes, = self._graphs.run('encode', lambda: (self._tokenizer.encode(self._pixels),))
        found: NDArray[np.int64] = codes[0].cpu().numpy()
        return found
