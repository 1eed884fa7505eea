# SPDX-License-Identifier: Apache-2.0
"""Capture of fixed-shape work as CUDA graphs, once per shape."""

from collections.abc import Callable, Hashable
import logging
from typing import Any

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

_WARM_UP_RUNS = 3  # compilers and libraries choose their kernels in the first ones
_MOST_SHAPES = 256  # of one function, over all engines; torch.compile's own 8 is for surprises


class Graphs:
    """Runs functions of fixed shapes; on a CUDA device as graphs, captured at their first run.

    A function reads and writes tensors that stay where they are, and waits for nothing on the
    host. Elsewhere it runs eagerly each time, and only the counting is the same.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the device that the tensors are on."""
        self._device, self._on_gpu = device, device.type == 'cuda'
        if self._on_gpu:
            with torch.cuda.device(device):
                self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Hashable, Any] = {}
        self._outputs: dict[Hashable, tuple[Tensor, ...]] = {}

    @property
    def captures(self) -> int:
        """Shapes seen so far; it stays the same once every shape has been run."""
        return len(self._captured)

    def run(self, key: Hashable, function: Callable[[], tuple[Tensor, ...]]
            ) -> tuple[Tensor, ...]:
        """Run a function, or replay it where its key was run before; return what it returns.

        On a GPU the next run of the same key overwrites what is returned.
        """
        if not self._on_gpu:
            self._captured[key] = None
            return function()
        with torch.cuda.device(self._device):  # streams and graphs belong to the current one
            if key not in self._captured:
                self._captured[key], self._outputs[key] = self._capture(function)
                _logger.info('captured the graph %s', key)
            self._captured[key].replay()
        return self._outputs[key]

    def _capture(self, function: Callable[[], tuple[Tensor, ...]]
                 ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with (torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES),
              torch.cuda.stream(stream)):
            for _ in range(_WARM_UP_RUNS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = function()
        return graph, outputs
