# SPDX-License-Identifier: Apache-2.0
"""How well training uses the machine: model FLOPs per second against measured matrix products.

    FLOPs of a step = tokens * (6 N + 12 layers * hidden * S) + labelled * 6 * hidden * vocabulary

as in PaLM (Chowdhery 2022, appendix B): a forward and a backward pass take 2 and 4 FLOPs per
weight of the N in matrix products of the layers, and attention 12 per layer, hidden value and
token of a sequence of S, masked or not. The output layer sees labelled tokens only; of the rows
before them the last layer computes keys and values alone, and in the others they attend only to
each other (`labelled_logits`). What activation checkpointing computes twice counts once.
"""

from collections.abc import Sequence
import time

import torch

from worldvla_ros.model.transformer import TransformerConfig
from worldvla_ros.training.batches import Batch

REPEATS = 5  # of the product whose best time counts
CPU_SIDE, GPU_SIDE = 1024, 8192  # of its square matrices


def training_flops(config: TransformerConfig, batches: Sequence[Batch]) -> float:
    """Return the model FLOPs of a forward and a backward pass over these batches."""
    hidden = config.hidden_size
    of_rows = 2 * hidden ** 2 + 3 * hidden * config.intermediate_size  # weights but for K and V
    weights = config.num_layers * (2 * hidden ** 2 + of_rows)
    flops = 0.0
    for batch in batches:
        sequences, length = batch.input_ids.shape
        labelled = len(batch.targets.ids)
        skipped = batch.targets.skipped
        left_out = sequences * skipped
        flops += batch.input_ids.numel() * (
            6 * weights + 12 * config.num_layers * hidden * length)
        flops -= left_out * (6 * of_rows + 12 * hidden * length)
        flops -= (config.num_layers - 1) * left_out * 12 * hidden * (length - skipped)
        flops += labelled * 6 * hidden * config.vocabulary.size
    return flops


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of some large square matrix products, now and here."""
    cuda = device.startswith('cuda')
    side = GPU_SIDE if cuda else CPU_SIDE
    # Not of one value: a GPU draws less power for it, and runs faster than it ever does.
    matrix, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    torch.mm(matrix, matrix, out=out)  # not counted: kernels are chosen, pages are touched
    times = []
    for _ in range(REPEATS):
        if cuda:
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * side ** 3 / min(times)


class Throughput:
    """Tokens and model FLOPs per second of all processes, while the clock runs."""

    def __init__(self, config: TransformerConfig, device: str, dtype: torch.dtype,
                 processes: int = 1) -> None:
        self._config, self._processes, self._dtype = config, processes, dtype
        self.peak = matmul_peak(device, dtype) * processes  # [FLOP/s]
        self._total = [0.0, 0.0, 0.0]  # [s], tokens, FLOPs
        self.start()

    def start(self) -> None:
        """Count from now on, without what was not read."""
        self._since, self._tokens, self._flops = time.perf_counter(), 0, 0.0

    def add(self, batches: Sequence[Batch]) -> None:
        """Count the batches that this process trained on; the others have as many."""
        self._tokens += sum(batch.input_ids.numel() for batch in batches) * self._processes
        self._flops += training_flops(self._config, batches) * self._processes

    def read(self) -> dict[str, float]:
        """Return tokens per second and the share of the matmul peak since `start`; go on."""
        seconds = time.perf_counter() - self._since
        self._total = [total + part for total, part in zip(
            self._total, (seconds, self._tokens, self._flops), strict=True)]
        rates = {'tokens_per_s': self._tokens / seconds,
                 'mfu': self._flops / seconds / self.peak}
        self.start()
        return rates

    def summary(self) -> str:
        """Return one line over all that was read."""
        seconds, tokens, flops = self._total
        if not tokens:
            return 'nothing was left to train'
        return (f'{tokens / seconds:.0f} tokens/s, {flops / seconds / 1e9:.1f} GFLOP/s of the '
                f'model: {flops / seconds / self.peak:.1%} of the {self.peak / 1e9:.0f} GFLOP/s '
                f'that {str(self._dtype).removeprefix("torch.")} matrix products reached at the '
                'start of this run')
