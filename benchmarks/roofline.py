# SPDX-License-Identifier: Apache-2.0
"""Least times on one card: every weight and stored key read once per pass, every product once."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from worldvla_ros.model.transformer import TransformerConfig
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION
from worldvla_ros.training.throughput import matmul_peak

BYTES = 2  # of a bfloat16 value
COPIED = 2 ** 31  # [bytes] far more than any cache holds
REPEATS = 10


@dataclass(frozen=True)
class Card:
    """What a device reaches when it does nothing else."""

    matmul_flops: float  # [FLOP/s] bfloat16 products of random data
    bandwidth: float  # [bytes/s] read and written by a large copy


H200 = Card(790e12, 4.3e12)  # as measured; for what runs without a card


def measured(device: torch.device) -> Card:
    """Return what a CUDA device reaches now."""
    source = torch.empty(COPIED // 4, device=device).normal_()
    target = torch.empty_like(source)
    return Card(matmul_peak(str(device), torch.bfloat16),
                2 * COPIED / _seconds(lambda: target.copy_(source)))


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    return median(times)


def body_parameters(config: TransformerConfig) -> int:
    """Return the weights of all layers, which every row is multiplied with."""
    return config.num_layers * (4 * config.hidden_size ** 2
                                + 3 * config.hidden_size * config.intermediate_size)


def prefill_ms(card: Card, config: TransformerConfig, rows: int, cached: int = 0) -> float:
    """Return the time [ms] of the products of some rows after cached ones."""
    attended = rows * cached + rows ** 2 / 2
    flops = (2 * body_parameters(config) * rows
             + 4 * config.num_layers * config.hidden_size * attended)
    return 1e3 * flops / card.matmul_flops


def step_ms(card: Card, config: TransformerConfig, context: int) -> float:
    """Return the time [ms] of reading all weights and the keys and values of the context."""
    head = config.vocabulary.size * config.hidden_size
    stored = 2 * config.num_layers * config.hidden_size * context
    return 1e3 * BYTES * (body_parameters(config) + head + stored) / card.bandwidth


def chunk_ms(card: Card, config: TransformerConfig, prompt: int, num_actions: int,
             cached: int = 0) -> float:
    """Return the time [ms] of one chunk: the rest of the prompt with its BOAs, and six steps."""
    rows = prompt - cached + num_actions
    return (prefill_ms(card, config, rows, cached)
            + (VALUES_PER_ACTION - 1) * step_ms(card, config, prompt + num_actions))
