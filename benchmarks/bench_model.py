# SPDX-License-Identifier: Apache-2.0
"""Passes, rows and speed of the model core; prints a table, saves it as text and JSON.

Counters are exact and the same on every machine. Alternatives run in turn in one process: a time
is the shortest of all rounds, a ratio the median over the rounds, so that a busy neighbour slows
both sides of it. bench_gpu.py times the 7B model.

    python benchmarks/bench_model.py [--json PATH] [--threads N] [--repeats N] [--chunks N]
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
import time

from measuring import FLIP_MARGIN, flips
import numpy as np
from numpy.typing import NDArray
from report import Row, row, save, table_of
import torch
from workloads import prompt_of, random_model

from worldvla_ros.datatypes import STATE_DIM, Frame, Observation
from worldvla_ros.model.checkpoint import pick_dtype
from worldvla_ros.model.generate import (
    chunk_capacity,
    decode_chunk,
    generate_chunk,
    generate_free,
    prefill,
)
from worldvla_ros.model.kv_cache import KVCache
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH, Vocabulary

SMALL = TransformerConfig(hidden_size=512, intermediate_size=1376, num_layers=6, num_heads=8,
                          vocabulary=Vocabulary.compact(512, 1024))  # 21 M parameters


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--json', type=Path, default=Path('out/bench_model.json'))
    parser.add_argument('--threads', type=int, default=0, help='default: all cores')
    parser.add_argument('--repeats', type=int, default=15, help='of each timed alternative')
    parser.add_argument('--chunks', type=int, default=200, help='of the latency distribution')
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for part in (counters, rounding, partial(ratios, arguments.repeats),
                 partial(policy_latency, arguments.chunks)):
        rows += (new := part())
        print('\n'.join(table_of(new)), flush=True)
    save(arguments.json, rows)
    print(f'saved as {arguments.json}, and the table beside it')


class CountingCache(KVCache):
    """A KV cache that counts the passes and the bytes that attention reads from it."""

    passes = 0
    bytes_read = 0

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor
               ) -> tuple[torch.Tensor, torch.Tensor]:
        """Count one layer's read of all keys and values."""
        self.passes += layer == 0
        keys, values = super().append(layer, keys, values)
        self.bytes_read += keys.nbytes + values.nbytes
        return keys, values


def counters() -> list[Row]:
    """Count passes, rows and bytes of one chunk at 256 px, two frames."""
    rows = []
    model = random_model(SMALL, torch.float32)
    prompt = prompt_of(SMALL.vocabulary, 256, 2)
    prefix = prompt[:-1 - 276]
    for num_actions in (5, 10):
        cache = CountingCache(SMALL.num_layers, SMALL.num_heads, SMALL.head_dim,
                              chunk_capacity(len(prompt), num_actions))
        one_shot = decode_chunk(model, prompt, num_actions, cache=cache)
        passes, read = cache.passes, cache.bytes_read
        cache.keep_prefix([])
        prefill(model, prefix, cache)
        newest = decode_chunk(model, prompt, num_actions, cache=cache)
        # Row i of a pass lies behind those before it: every stored row is read once per pass.
        once = cache.bytes_per_row * sum(len(prompt) + num_actions * (step + 1)
                                         for step in range(7))
        rows += [
            row('forward passes per chunk', passes, 'passes', K=num_actions, target='= 7'),
            row('rows per chunk, one shot', one_shot.rows, 'rows', K=num_actions,
                target=f'= {len(prompt) + 7 * num_actions}'),
            row('prompt rows after the newest frame', newest.rows - 6 * num_actions, 'rows',
                K=num_actions, target=f'= {276 + 1 + num_actions}'),
            row('KV bytes read / bytes stored, per pass', read / once, '', K=num_actions,
                target='= 1')]
    return rows


def rounding(prompts: int = 20, num_actions: int = 10) -> list[Row]:
    """Compare the tokens of bfloat16 with those of float32 on the same random weights.

    Random weights are the worst case: their best two logits lie closest together.
    """
    exact, coarse = (random_model(SMALL, dtype) for dtype in (torch.float32, torch.bfloat16))
    ids = [prompt_of(SMALL.vocabulary, 256, 2, seed) for seed in range(prompts)]
    return flips('bfloat16 against float32',
                 [decode_chunk(exact, one, num_actions) for one in ids],
                 [decode_chunk(coarse, one, num_actions) for one in ids], FLIP_MARGIN)


def ratios(repeats: int) -> list[Row]:
    """Time the public greedy loop against the parallel chunk, and the newest-frame path."""
    rows = []
    dtype = pick_dtype('auto', 'cpu')
    model = random_model(SMALL, dtype)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    name = f'{millions:.0f} M, {str(dtype).removeprefix("torch.")}'
    for num_actions, target in ((5, '>= 3'), (10, '>= 5')):
        times = interleaved(decoding_paths(model, num_actions), repeats)
        rows += [row(f'{path} ({name})', 1e3 * float(rounds.min()), 'ms', K=num_actions)
                 for path, rounds in times.items()]
        rows += [row(f'{slow} / {fast}', float(np.median(times[slow] / times[fast])), 'x',
                     K=num_actions, target=wanted)
                 for slow, fast, wanted in (('generate_free', 'generate_chunk', target),
                                            ('generate_chunk', 'newest-frame path', '>= 1.25'))]
    return rows


def decoding_paths(model: Transformer, num_actions: int) -> dict[str, Callable[[], object]]:
    """Return the ways to a chunk at 256 px and two frames, in the order in which they run."""
    prompt = prompt_of(model.config.vocabulary, 256, 2)
    cache = model.new_cache(chunk_capacity(len(prompt), num_actions))

    def one_shot() -> None:
        cache.keep_prefix([])
        generate_chunk(model, prompt, num_actions, cache=cache)

    def ahead() -> None:
        cache.keep_prefix([])
        prefill(model, prompt[:-1 - 276], cache)

    return {
        'generate_free': lambda: generate_free(model, prompt,
                                               ACTION_BLOCK_LENGTH * num_actions + 1),
        'generate_chunk': one_shot,
        'prefill ahead': ahead,
        'newest-frame path': lambda: generate_chunk(model, prompt, num_actions, cache=cache)}


def interleaved(alternatives: dict[str, Callable[[], object]], repeats: int
                ) -> dict[str, NDArray[np.float64]]:
    """Return the times [s] of each alternative per round; in a round they run one after another.

    The first round warms up and does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(repeats + 1):
        for name, run in alternatives.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: np.array(rounds[1:]) for name, rounds in times.items()}


def policy_latency(num_chunks: int) -> list[Row]:
    """Measure camera frame -> chunk of the small random checkpoint (8.5 M), all cores."""
    rows = []
    policy = WorldVLAPolicy.from_pretrained(ensure_random_checkpoint())
    policy.warm_up()
    task = 'pick up the milk and place it in the basket'
    rng = np.random.default_rng(0)
    frames = [Frame(rng.integers(0, 256, (256, 256, 3), np.uint8), i)
              for i in range(num_chunks + 1)]
    state = np.zeros(STATE_DIM)  # for checkpoints that read it
    for name, ahead in (('frame -> chunk', True), ('frame -> chunk, nothing prepared', False)):
        totals = []
        for older, newest in pairwise(frames):
            if ahead:
                policy.prepare((older,), task)
            observation = Observation((older, newest), task, state)
            totals.append(policy.predict_chunk(observation).latency.total)
        for quantile in (50, 99):
            target = '<= 100' if ahead else None
            value = 1e3 * float(np.percentile(totals, quantile))
            rows.append(row(f'{name}, p{quantile}', value, 'ms', K=policy.horizon,
                            target=target))
    return rows


if __name__ == '__main__':
    main()
