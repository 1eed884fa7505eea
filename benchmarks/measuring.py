# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the model measure with: set-up, clock, quantiles, kernels, flips."""

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
import gc
import subprocess
import time

import numpy as np
from numpy.typing import NDArray
from report import Row, row
from roofline import H200, measured
import torch
from workloads import prompt_of, random_model

from worldvla_ros.model.decoded import DecodedChunk
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.network import Weights
from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.tokens.sequence import image_block
from worldvla_ros.tokens.vocab import Vocabulary

# Stated bound of bfloat16: a token may differ from float32 only where float32's best two logits
# are closer than this.
FLIP_MARGIN = 0.15

TINY = TransformerConfig(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
                         vocabulary=Vocabulary.compact(512, 64))
TINY_IMAGES = ImageTokenizerConfig(embed_dim=4, n_embed=64, z_channels=4, ch=4,
                                   ch_mult=(1, 1, 2, 2, 2), num_res_blocks=1, norm_groups=4)


class Bench:
    """What to measure, on what, and how often."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.small = arguments.small
        self.device = torch.device('cpu' if self.small else 'cuda')
        self.config = TINY if self.small else TransformerConfig()
        self.dtype = torch.float32 if self.small else torch.bfloat16
        self.sizes = (64,) if self.small else arguments.sizes
        self.horizons = (5,) if self.small else arguments.horizons
        self.chunks = 3 if self.small else arguments.chunks
        self.slow_runs = 1 if self.small else arguments.slow_runs
        self.card = H200 if self.small else measured(self.device)  # what the floors are of

    @cached_property
    def model(self) -> Transformer:
        """Random weights."""
        return random_model(self.config, self.dtype, str(self.device))

    @cached_property
    def images(self) -> ImageTokenizer:
        """A VQ-GAN of random weights."""
        torch.manual_seed(0)
        config = TINY_IMAGES if self.small else ImageTokenizerConfig()
        return ImageTokenizer(config).eval().to(self.device)

    def engine(self, size_px: int, num_actions: int, weights: Weights = 'dense'
               ) -> StaticChunkDecoder:
        """Return an engine for two frames of a size."""
        gc.collect()  # the one before holds gigabytes
        prompt = prompt_of(self.config.vocabulary, size_px, 2)
        return StaticChunkDecoder(self.model, num_actions, prompt_buckets=[len(prompt)],
                                  newest_rows=image_length(size_px) + 1, weights=weights)

    def prompts(self, size_px: int, count: int) -> list[list[int]]:
        """Return prompts of two frames that share no beginning beyond BOS."""
        return [prompt_of(self.config.vocabulary, size_px, 2, seed) for seed in range(count)]

    def times(self, run: Callable[[int], object], repeats: int,
              before: Callable[[int], object] = lambda i: None, warm_ups: int = 3
              ) -> NDArray[np.float64]:
        """Return the times [ms] of run(i), each after before(i); i < 0 only warms up."""
        times = []
        for i in range(-warm_ups, repeats):
            before(i)
            if self.device.type == 'cuda':
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                run(i)
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                started = time.perf_counter()
                run(i)
                times.append(1e3 * (time.perf_counter() - started))
        return np.array(times[warm_ups:])


def image_length(size_px: int) -> int:
    """Return the tokens of one image block."""
    side = size_px // 16
    return len(image_block(np.zeros((side, side)), Vocabulary()))


def quantiles(name: str, times: NDArray[np.float64], floor: float | None = None,
              K: int | None = None, target_ms: float | None = None) -> list[Row]:
    """Return p50 and p99 [ms], and p50 over its floor."""
    wanted = None if target_ms is None else f'<= {target_ms:g}'
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    rows = [row(f'{name}, p50', p50, 'ms', K, wanted, runs=len(times)),
            row(f'{name}, p99', p99, 'ms', K, runs=len(times))]
    if floor is not None:
        rows.append(row(f'{name}, p50 / floor {floor:.3g} ms', p50 / floor, 'x', K, '<= 1.3'))
    return rows


def kernels(run: Callable[[], object], device: torch.device, repeats: int, unit: str, most: int,
            K: int | None = None) -> tuple[list[Row], float]:
    """Return the kernels (on a CPU, the operations) that run() spends most on, and all of it.

    :param repeats: that run() does; the rows [ms] and the sum [s] are of one of them.
    """
    cuda = device.type == 'cuda'
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
            activities=[activity.CPU, *([activity.CUDA] if cuda else [])]) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    where = 'self_device_time_total' if cuda else 'self_cpu_time_total'  # [us]
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, where))
    total = sum(getattr(event, where) for event in events)
    rows = [row(event.key[:42], getattr(event, where) / 1e3 / repeats, f'ms/{unit}', K,
                f'{100 * getattr(event, where) / total:.0f} %, {event.count // repeats} calls',
                kernel=event.key) for event in events[:most]]
    return rows, 1e-6 * total / repeats


def flips(name: str, exact: Sequence[DecodedChunk], other: Sequence[DecodedChunk],
          bound: float | None) -> list[Row]:
    """Count the actions in which a token differs.

    After a flip an action continues from another token, so only its first one counts.
    """
    margins, actions = [], 0
    for chunk, differing in zip(exact, other, strict=True):
        for action, tokens in enumerate(chunk.token_ids.cpu()):
            actions += 1
            places = (tokens != differing.token_ids[action].cpu()).nonzero()
            if len(places):
                margins.append(float(chunk.margin[action, places[0, 0]]))
    wanted = None if bound is None else f'<= {bound}'
    return [row(f'actions with a flip, {name}', len(margins) / actions, 'of all', runs=actions),
            row(f'largest margin at a flip, {name}', max(margins, default=0.0), 'logit',
                target=wanted)]


def clocks() -> str:
    """Return what nvidia-smi says about the GPU's clocks now, '' where there is none."""
    try:
        return subprocess.run(
            ['nvidia-smi', '--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw',
             '--format=csv,noheader'], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''
