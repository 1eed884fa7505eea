# SPDX-License-Identifier: Apache-2.0
"""Parts of bench_gpu.py that decode chunks of K actions from the tokens of two frames."""

from collections.abc import Iterator
from copy import deepcopy

from measuring import FLIP_MARGIN, Bench, flips, image_length, kernels, quantiles
import numpy as np
from report import Row, row
import roofline

from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.network import Weights
from worldvla_ros.model.generate import decode_chunk, generate_free
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH

CHUNK_MS = {256: 38, 512: 75}  # [px]: [ms], 1.3 times the floor of an H200
SPEED_UPS = {(256, 5): '>= 30', (256, 10): '>= 60', (512, 10): '>= 25'}  # ([px], K)
TRAINED_PASSES = {5: 4.1, 10: 4.7}  # K: of worldvla-mini-libero over a draft (README.md)
PROMPTS = 20  # whose tokens are compared with those of float32
PROFILED = 10  # chunks
LISTED = 10  # kernels


def chunk(bench: Bench, size: int, K: int) -> list[Row]:
    """Time whole chunks, the newest-frame path and their stages."""
    return _timed(bench, bench.engine(size, K), size, K)


def fp8(bench: Bench, size: int, K: int) -> list[Row]:
    """Time 8-bit weights, and count the actions in which a token flips."""
    coarse = bench.engine(size, K, 'fp8')
    rows = _timed(bench, coarse, size, K, 'fp8')
    exact, prompts = bench.engine(size, K), bench.prompts(size, min(bench.chunks, 50))
    return rows + flips(f'{size} px, fp8 against bfloat16', [exact.decode(p) for p in prompts],
                        [coarse.decode(p) for p in prompts], None)


def _timed(bench: Bench, engine: StaticChunkDecoder, size: int, K: int,
           weights: Weights = 'dense') -> list[Row]:
    name = f'{size} px' + (', fp8' if weights == 'fp8' else '')
    card, config, prompts = bench.card(weights), bench.config, bench.prompts(size, bench.chunks)
    length, older = len(prompts[0]), len(prompts[0]) - image_length(size) - 1
    engine.warm_up()
    captures = engine.captures
    whole = bench.times(lambda i: engine.decode(prompts[i]), bench.chunks)
    ahead, newest = bench.stage_times([lambda i: engine.prefill(prompts[i][:older]),
                                       lambda i: engine.decode(prompts[i])], bench.chunks)
    prefill = bench.times(lambda i: engine.prefill(prompts[i]), bench.chunks)
    syncs, grown = bench.waits_and_growth(lambda i: engine.decode(prompts[i]))
    step = roofline.step_ms(card, config, length + K)
    steps = float(np.median(whole) - np.median(prefill))
    return [
        *quantiles(f'{name}: whole chunk', whole, roofline.chunk_ms(card, config, length, K),
                   target_ms=CHUNK_MS.get(size) if weights == 'dense' else None),
        *quantiles(f"{name}: newest frame's tokens -> chunk, no image tokenizer", newest,
                   roofline.chunk_ms(card, config, length, K, older)),
        *quantiles(f'{name}: prefill', prefill, roofline.prefill_ms(card, config, length)),
        *quantiles(f'{name}: older frame ahead', ahead),
        row(f'{name}: six decode passes (difference)', steps, 'ms'),
        row(f'{name}: one decode pass / floor {step:.3g} ms', steps / 6 / step, 'x',
            target='<= 1.25'),
        row(f'{name}: actions per second, whole chunks', 1e3 * K / float(np.median(whole)), '/s'),
        row(f'{name}: graphs captured after warm-up', engine.captures - captures, '',
            target='= 0'),
        row(f'{name}: chunks in which the host waited for the GPU', syncs, '', target='= 0'),
        row(f'{name}: memory that chunks keep', grown, 'bytes', target='= 0')]


def drafts(bench: Bench, size: int, K: int) -> Iterator[Row]:
    """Time chunks that are guessed and corrected, and a pass over all values.

    Random weights need nearly all seven passes, trained ones fewer: read the time of a pass.
    """
    engine, prompts = bench.engine(size, K, drafts=True), bench.prompts(size, bench.chunks)
    engine.warm_up()
    passes: dict[int, int] = {}

    def decode(i: int) -> None:
        passes[i] = engine.decode(prompts[i]).passes
    whole = bench.times(decode, bench.chunks)
    prefill = float(np.median(bench.times(lambda i: engine.prefill(prompts[i]), bench.chunks)))
    needed = float(np.mean([passes[i] for i in range(bench.chunks)]))
    again = (float(np.mean(whole)) - prefill) / (needed - 1)
    yield from quantiles(f'{size} px: drafted chunk, random weights', whole)
    yield row(f'{size} px: drafted chunk, passes of random weights', needed, 'passes',
              target='<= 7')
    yield row(f'{size} px: drafted chunk, one pass over {7 * K} values (difference)', again, 'ms')
    if K in TRAINED_PASSES:
        yield row(f'{size} px: drafted chunk with {TRAINED_PASSES[K]:g} passes',
                  prefill + (TRAINED_PASSES[K] - 1) * again, 'ms')


def exactness(bench: Bench, size: int, K: int) -> list[Row]:
    """Compare the engine with plain decoding in the same format and in float32."""
    prompts = bench.prompts(size, min(bench.chunks, PROMPTS))
    chunks, coarse = ([engine.decode(prompt) for prompt in prompts] for engine in (
        bench.engine(size, K, weights) for weights in ('dense', 'fp8')))
    plain = [decode_chunk(bench.model, prompt, K) for prompt in prompts]
    exact_model = deepcopy(bench.model).float()
    exact = [decode_chunk(exact_model, prompt, K) for prompt in prompts]
    return [*flips(f'{size} px, engine against plain passes', plain, chunks, FLIP_MARGIN),
            *flips(f'{size} px, engine against float32', exact, chunks, FLIP_MARGIN),
            *flips(f'{size} px, plain passes against float32', exact, plain, FLIP_MARGIN),
            *flips(f'{size} px, fp8 engine against float32', exact, coarse, None)]


def reference(bench: Bench, size: int, K: int) -> Iterator[Row]:
    """Time the public way of decoding on the same weights: our loop, and transformers' own."""
    from transformers_reference import reference_chunk, reference_of
    theirs = reference_of(bench.model)
    engine, prompts = bench.engine(size, K), bench.prompts(size, 8)
    new = ACTION_BLOCK_LENGTH * K + 1
    engine.warm_up()
    fast = bench.times(lambda i: engine.decode(prompts[i % 8]), min(bench.chunks, 50))
    yield from quantiles(f'{size} px: engine, whole chunk', fast)
    for name, run in (
            ('transformers generate()', lambda i: reference_chunk(theirs, prompts[i % 8], new)),
            ('transformers generate() without the mask', lambda i: reference_chunk(
                theirs, prompts[i % 8], new, masked=False)),
            ('generate_free', lambda i: generate_free(bench.model, prompts[i % 8], new)),
            ('plain decode_chunk', lambda i: decode_chunk(bench.model, prompts[i % 8], K))):
        slow = bench.slow_times(run, bench.slow_runs)
        yield from quantiles(f'{size} px: {name}', slow)
        yield row(f'{size} px: {name} / engine', float(np.median(slow) / np.median(fast)), 'x',
                  target=SPEED_UPS.get((size, K)) if name == 'transformers generate()' else None)


def profile(bench: Bench, size: int, K: int) -> list[Row]:
    """List what the time of some chunks goes to, the largest first."""
    engine, prompts = bench.engine(size, K), bench.prompts(size, PROFILED)
    engine.warm_up()
    rows, _ = kernels(lambda: [engine.decode(prompt) for prompt in prompts], bench.device,
                      PROFILED, 'chunk', LISTED)
    return [line | {'name': f'{size} px: {line["name"]}'} for line in rows]
