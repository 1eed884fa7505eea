# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the model measure with: set-up, times, quantiles, kernels, flips."""

import argparse
from collections.abc import Callable, Sequence
from functools import cached_property
import gc
import math
import shutil
import subprocess
import time
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from report import Row, row
from roofline import H200, Card, measured
import torch
from torch._C._autograd import DeviceType  # of the profiler's events; it has no public home
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

LEAST_RUNS = 3  # of what is slow
ENOUGH_FOR_P99 = 100  # runs

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
        self.image_config = TINY_IMAGES if self.small else ImageTokenizerConfig()
        self.dtype = torch.float32 if self.small else torch.bfloat16
        self.chunks = 3 if self.small else arguments.chunks
        self.slow_runs = 2 if self.small else arguments.slow_runs
        self.slow_seconds = arguments.slow_seconds
        self.ceilings: dict[Weights, Card] = {}  # what the floors so far are of
        self._engine: tuple[tuple[int, int, Weights, bool], StaticChunkDecoder] | None = None

    def card(self, weights: Weights = 'dense') -> Card:
        """Return what the device reaches with weights of a type, measured once."""
        if weights not in self.ceilings:
            self.ceilings[weights] = (H200[weights] if self.small
                                      else measured(self.device, weights))
        return self.ceilings[weights]

    @cached_property
    def model(self) -> Transformer:
        """Random weights."""
        return random_model(self.config, self.dtype, str(self.device))

    @cached_property
    def images(self) -> ImageTokenizer:
        """A VQ-GAN of random weights."""
        torch.manual_seed(0)
        return ImageTokenizer(self.image_config).eval().to(self.device)

    def engine(self, size_px: int, num_actions: int, weights: Weights = 'dense',
               drafts: bool = False) -> StaticChunkDecoder:
        """Return an engine for two frames of a size; the last one again, which is compiled."""
        asked = size_px, num_actions, weights, drafts
        if self._engine is None or self._engine[0] != asked:
            self._engine = None
            gc.collect()  # the one before holds gigabytes
            full, newest = len(self.prompts(size_px, 1)[0]), image_length(size_px) + 1
            self._engine = asked, StaticChunkDecoder(
                self.model, num_actions, prompt_buckets=[full - newest, full],
                newest_rows=newest, weights=weights, drafts=drafts)
        return self._engine[1]

    def free_engine(self) -> None:
        """Make room for an engine that a part makes itself."""
        self._engine = None
        gc.collect()

    def prompts(self, size_px: int, count: int) -> list[list[int]]:
        """Return prompts of two frames that share no beginning beyond BOS."""
        return [prompt_of(self.config.vocabulary, size_px, 2, seed) for seed in range(count)]

    def times(self, run: Callable[[int], object], repeats: int) -> NDArray[np.float64]:
        """Return the times [ms] of run(i); i < 0 only warms up."""
        return self.stage_times([run], repeats)[0]

    def slow_times(self, run: Callable[[int], object], repeats: int) -> NDArray[np.float64]:
        """Return the times [ms] of run(i), as many as there is time for, three at least."""
        return self.stage_times([run], repeats, warm_ups=1, seconds=self.slow_seconds)[0]

    def stage_times(self, stages: Sequence[Callable[[int], object]], repeats: int,
                    warm_ups: int = 3, seconds: float = math.inf) -> NDArray[np.float64]:
        """Return the times [ms] [stages, repeats] of stages that follow each other in a run.

        :param seconds: after which no run is begun but the first three.
        """
        times: list[list[float]] = []
        deadline = time.monotonic() + seconds
        for i in range(-warm_ups, repeats):
            if len(times) >= warm_ups + LEAST_RUNS and time.monotonic() > deadline:
                break
            times.append([self._time(stage, i) for stage in stages])
        return np.array(times[warm_ups:]).T

    def waits_and_growth(self, run: Callable[[int], object], repeats: int = 10
                         ) -> tuple[int, int]:
        """Return in how many of run(i) the host waited for the GPU, and the bytes that they keep.

        Both are 0 on a CPU, which neither says.
        """
        if self.device.type != 'cuda':
            return 0, 0
        run(0)
        waited, before = 0, torch.cuda.memory_allocated()
        for i in range(repeats):
            torch.cuda.set_sync_debug_mode('error')
            try:
                run(i)
            except RuntimeError as error:
                if 'synchroniz' not in str(error):
                    raise
                waited += 1
            finally:
                torch.cuda.set_sync_debug_mode('default')
        return waited, torch.cuda.memory_allocated() - before

    def _time(self, run: Callable[[int], object], i: int) -> float:
        """Return the time [ms] of run(i)."""
        if self.device.type != 'cuda':
            started = time.perf_counter()
            run(i)
            return 1e3 * (time.perf_counter() - started)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run(i)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def image_length(size_px: int) -> int:
    """Return the tokens of one image block."""
    side = size_px // 16
    return len(image_block(np.zeros((side, side)), Vocabulary()))


def quantiles(name: str, times: NDArray[np.float64], floor: float | None = None,
              K: int | None = None, target_ms: float | None = None,
              of_floor: str | None = '<= 1.3') -> list[Row]:
    """Return p50 [ms], p99 of enough runs, and p50 over its floor [ms], with its own target."""
    wanted = None if target_ms is None else f'<= {target_ms:g}'
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    rows = [row(f'{name}, p50', p50, 'ms', K, wanted, runs=len(times))]
    if len(times) >= ENOUGH_FOR_P99:
        rows.append(row(f'{name}, p99', p99, 'ms', K, runs=len(times)))
    if floor is not None:
        rows.append(row(f'{name}, p50 / floor {floor:.3g} ms', p50 / floor, 'x', K, of_floor))
    return rows


def kernels(run: Callable[[], object], device: torch.device, repeats: int, unit: str, most: int,
            K: int | None = None) -> tuple[list[Row], float]:
    """Return the kernels (on a CPU, the operations) that run() spends most on, and their share.

    :param repeats: that run() does; the rows [ms] are of one of them.
    :returns: with it the sum of all of them over the time that run() took.
    """
    cuda = device.type == 'cuda'
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
            activities=[activity.CPU, *([activity.CUDA] if cuda else [])]) as profiler:
        started = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    where = 'self_device_time_total' if cuda else 'self_cpu_time_total'  # [us]
    # An operation on a GPU has the time of the kernels that it launched, too: those are counted.
    events = sorted((event for event in profiler.key_averages() if not cuda or (
        event.device_type == DeviceType.CUDA and not event.is_user_annotation)),
                    key=lambda event: -getattr(event, where))
    total = sum(getattr(event, where) for event in events)
    rows = [row(event.key[:42], getattr(event, where) / 1e3 / repeats, f'ms/{unit}', K,
                f'{100 * getattr(event, where) / total:.0f} %, {event.count // repeats} calls',
                kernel=event.key) for event in events[:most]]
    return rows, 1e-6 * total / seconds


def flips(name: str, exact: Sequence[DecodedChunk], other: Sequence[DecodedChunk],
          bound: float | None) -> list[Row]:
    """Count the actions in which a token differs.

    After a flip an action continues from another token, so only its first one counts.
    """
    margins, distances, actions = [], [], 0
    for chunk, differing in zip(exact, other, strict=True):
        for action, tokens in enumerate(chunk.token_ids.cpu()):
            actions += 1
            distance = (tokens - differing.token_ids[action].cpu()).abs()
            places = distance.nonzero()
            if len(places):
                margins.append(float(chunk.margin[action, places[0, 0]]))
                distances.append(int(distance[places[0, 0]]))
    wanted = None if bound is None else f'<= {bound}'
    return [row(f'actions with a flip, {name}', len(margins) / actions, 'of all', runs=actions),
            row(f'largest margin at a flip, {name}', max(margins, default=0.0), 'logit',
                target=wanted),
            row(f'mean distance at a flip, {name}',
                float(np.mean(distances)) if distances else 0.0, 'bins')]


class Clocks:
    """What nvidia-smi says about a GPU each second of a block in which it was at work."""

    _asked = ('utilization.gpu', 'clocks.sm', 'clocks.mem', 'power.draw')
    _at_work = 50  # [%] of a second in which a kernel ran

    def __init__(self, device: torch.device) -> None:
        self._can_ask = device.type == 'cuda' and shutil.which('nvidia-smi') is not None
        self._process: subprocess.Popen[str] | None = None
        self._said = ''

    def __enter__(self) -> 'Clocks':
        """Begin to ask."""
        if self._can_ask:
            self._process = subprocess.Popen(
                ['nvidia-smi', f'--query-gpu={",".join(self._asked)}',
                 '--format=csv,noheader,nounits', '--loop=1'],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Stop asking."""
        if self._process is not None:
            self._process.terminate()
            self._said, _ = self._process.communicate()

    def summary(self) -> dict[str, float]:
        """Return medians [MHz], [W] and the lowest clock; empty where it was never at work."""
        samples = self.under_load(self._said)
        if not len(samples):
            return {}
        _, sm, memory, power = np.median(samples, axis=0)
        return {'sm_mhz': float(sm), 'lowest_sm_mhz': float(samples[:, 1].min()),
                'memory_mhz': float(memory), 'power_w': float(power), 'seconds': len(samples)}

    @classmethod
    def under_load(cls, said: str) -> NDArray[np.float64]:
        """Return what was said [seconds, 4] while the GPU was at work; a cut line is left out."""
        rows = [line.split(', ') for line in said.splitlines()]
        whole = [[float(value) for value in one] for one in rows if len(one) == len(cls._asked)
                 and all(value.replace('.', '', 1).isdigit() for value in one)]
        return np.array([one for one in whole if one[0] >= cls._at_work])
