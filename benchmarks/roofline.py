# SPDX-License-Identifier: Apache-2.0
"""Least times on one card: every weight and stored key read once per pass, every product once.

The project's targets are set against these, of the whole network. The engine leaves work out that
no chunk needs (rows of the output layer that are no bins, the last layer of most of the prompt): a
floor of what it really does is 2 to 4 % lower, at 256 px by 1.0 ms of 29.0 on an H200.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from worldvla_ros.model.engine.network import Weights
from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.model.transformer import TransformerConfig
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION
from worldvla_ros.training.throughput import GPU_SIDE, matmul_peak

BYTES = 2  # of a bfloat16 value
COPIED = 2 ** 31  # [bytes] far more than any cache holds
REPEATS = 10
TF32_SPEED = 0.5  # of bfloat16 products


@dataclass(frozen=True)
class Card:
    """What a device reaches when it does nothing else, with weights of one type."""

    matmul_flops: float  # [FLOP/s] products of random data of the type
    bandwidth: float  # [bytes/s] read and written by a large copy
    weight_bytes: int = BYTES  # of a weight of the layers; the output layer stays in bfloat16


# As measured; for what runs without a card. Products of 8 bits are taken to be twice as fast.
H200: dict[Weights, Card] = {'dense': Card(790e12, 4.3e12), 'fp8': Card(2 * 790e12, 4.3e12, 1)}


def measured(device: torch.device, weights: Weights) -> Card:
    """Return what a CUDA device reaches now."""
    source = torch.empty(COPIED // 4, device=device).normal_()
    target = torch.empty_like(source)
    bandwidth = 2 * COPIED / _seconds(lambda: target.copy_(source))
    if weights == 'fp8':
        return Card(_fp8_peak(device), bandwidth, 1)
    return Card(matmul_peak(str(device), torch.bfloat16), bandwidth)


def _fp8_peak(device: torch.device) -> float:
    """Return the FLOP/s of a large square product of 8-bit floats, as `Fp8Linear` takes it."""
    values = torch.randn(GPU_SIDE, GPU_SIDE, device=device).to(torch.float8_e4m3fn)
    rows, columns = (torch.ones(shape, device=device) for shape in ((GPU_SIDE, 1), (1, GPU_SIDE)))
    return 2 * GPU_SIDE ** 3 / _seconds(lambda: torch._scaled_mm(
        values, values.t(), rows, columns, out_dtype=torch.bfloat16, use_fast_accum=True))


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
    read = card.weight_bytes * body_parameters(config) + BYTES * (head + stored)
    return 1e3 * read / card.bandwidth


def chunk_ms(card: Card, config: TransformerConfig, prompt: int, num_actions: int,
             cached: int = 0) -> float:
    """Return the time [ms] of one chunk: the rest of the prompt with its BOAs, and six steps."""
    rows = prompt - cached + num_actions
    return (prefill_ms(card, config, rows, cached)
            + (VALUES_PER_ACTION - 1) * step_ms(card, config, prompt + num_actions))


def encode_ms(card: Card, config: ImageTokenizerConfig, size_px: int) -> float:
    """Return the time [ms] of the products from the pixels of a frame to its codes, in TF32."""
    with torch.device('meta'):
        images = ImageTokenizer(config)
        pixels = torch.empty(1, size_px, size_px, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        images.encode(pixels)
    return 1e3 * counter.get_total_flops() / (TF32_SPEED * card.matmul_flops)


def decode_ms(card: Card, config: ImageTokenizerConfig, size_px: int) -> float:
    """Return the time [ms] of the products from the codes of a frame to its pixels, in TF32."""
    side = size_px // config.factor
    with torch.device('meta'):
        images = ImageTokenizer(config)
        vectors = torch.empty(1, config.embed_dim, side, side)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        images.decoder(images.post_quant_conv(vectors))
    return 1e3 * counter.get_total_flops() / (TF32_SPEED * card.matmul_flops)
