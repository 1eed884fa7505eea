# SPDX-License-Identifier: Apache-2.0
"""Speed of the 7B model on a GPU, against its floors and the public implementation's way.

Random weights: timing does not depend on their values. Times are between CUDA events, p50 and
p99 of all runs; the reference runs in the same process on the same weights.

    python benchmarks/bench_gpu.py [--parts chunk fp8 ...] [--sizes 256 512] [--horizons 5 10]
    python benchmarks/bench_gpu.py --small    # everything on the CPU with a tiny model, < 1 min
"""

import argparse
from copy import deepcopy
from dataclasses import asdict
import gc
from itertools import pairwise
from pathlib import Path
import time

from measuring import FLIP_MARGIN, Bench, clocks, flips, image_length, kernels, quantiles
import numpy as np
from report import Row, row, save, table_of
import roofline
import torch
from workloads import world_prompt_of

from worldvla_ros.datatypes import STATE_DIM, Frame, Observation
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.engine.network import Weights
from worldvla_ros.model.generate import decode_chunk, generate_free
from worldvla_ros.model.image_decoding import MAX_WINDOW, decode_image_rows, image_capacity
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH

CHANGED_CODES = (0.02, 0.05, 0.1, 0.2)  # share of an imagined frame that differs from its draft
def chunk(bench: Bench, weights: Weights = 'dense') -> list[Row]:
    """Time whole chunks, the newest-frame path and their stages."""
    rows = []
    targets = {(256, 10): (38, 30), (512, 10): (75, 50), (256, 5): (38, 30), (512, 5): (75, 50)}
    for size in bench.sizes:
        for K in bench.horizons:
            name = f'{size} px' + (', fp8' if weights == 'fp8' else '')
            engine, prompts = bench.engine(size, K, weights), bench.prompts(size, bench.chunks)
            length, older = len(prompts[0]), len(prompts[0]) - image_length(size) - 1
            engine.warm_up()
            captures = engine.captures
            whole = bench.times(lambda i, e=engine, p=prompts: e.decode(p[i]), bench.chunks)
            ahead = bench.times(lambda i, e=engine, p=prompts, n=older: e.prefill(p[i][:n]),
                                bench.chunks)
            newest = bench.times(lambda i, e=engine, p=prompts: e.decode(p[i]), bench.chunks,
                                 lambda i, e=engine, p=prompts, n=older: e.prefill(p[i][:n]))
            prefill = bench.times(lambda i, e=engine, p=prompts: e.prefill(p[i]), bench.chunks)
            card, config = bench.card, bench.config
            step = roofline.step_ms(card, config, length + K)
            steps = np.median(whole) - np.median(prefill)
            goals = targets.get((size, K), (None, None)) if weights == 'dense' else (None, None)
            rows += [
                *quantiles(f'{name}: whole chunk', whole,
                           roofline.chunk_ms(card, config, length, K), K, goals[0]),
                *quantiles(f'{name}: newest frame -> chunk', newest,
                           roofline.chunk_ms(card, config, length, K, older), K, goals[1]),
                *quantiles(f'{name}: prefill', prefill,
                           roofline.prefill_ms(card, config, length), K),
                *quantiles(f'{name}: older frame ahead', ahead, None, K),
                row(f'{name}: six decode passes (difference)', float(steps), 'ms', K),
                row(f'{name}: one decode pass / floor {step:.3g} ms', float(steps / 6 / step),
                    'x', K, '<= 1.25'),
                row(f'{name}: actions per second, whole chunks', 1e3 * K / float(
                    np.median(whole)), '/s', K),
                row(f'{name}: graphs captured after warm-up', engine.captures - captures, '', K,
                    '= 0')]
    return rows


def fp8(bench: Bench) -> list[Row]:
    """Time 8-bit weights, and count the actions in which a token flips."""
    rows = chunk(bench, 'fp8')
    size, K = bench.sizes[0], bench.horizons[-1]
    prompts = bench.prompts(size, min(bench.chunks, 50))
    exact, coarse = (bench.engine(size, K, weights) for weights in ('dense', 'fp8'))
    return rows + flips('fp8 against bfloat16', [exact.decode(p) for p in prompts],
                        [coarse.decode(p) for p in prompts], None)


def exactness(bench: Bench) -> list[Row]:
    """Compare the engine with plain decoding in the same format and in float32."""
    size, K = bench.sizes[0], bench.horizons[-1]
    prompts = bench.prompts(size, min(bench.chunks, 20))
    engine = bench.engine(size, K)
    chunks = [engine.decode(prompt) for prompt in prompts]
    plain = [decode_chunk(bench.model, prompt, K) for prompt in prompts]
    exact_model = deepcopy(bench.model).float()
    exact = [decode_chunk(exact_model, prompt, K) for prompt in prompts]
    return [*flips('engine against plain passes', plain, chunks, FLIP_MARGIN),
            *flips('engine against float32', exact, chunks, FLIP_MARGIN),
            *flips('plain passes against float32', exact, plain, FLIP_MARGIN)]


def reference(bench: Bench) -> list[Row]:
    """Time the public way of decoding on the same weights: our loop, and transformers' own."""
    from transformers_reference import reference_chunk, reference_of
    rows = []
    theirs = reference_of(bench.model)
    for size in bench.sizes:
        for K, wanted in zip(bench.horizons, ('>= 30', '>= 60'), strict=False):
            engine, prompts = bench.engine(size, K), bench.prompts(size, 8)
            new = ACTION_BLOCK_LENGTH * K + 1
            engine.warm_up()
            fast = np.median(bench.times(lambda i, e=engine, p=prompts: e.decode(p[i % 8]), 24))
            for name, run in (
                    ('generate_free', lambda i, p=prompts, n=new: generate_free(
                        bench.model, p[i % 8], n)),
                    ('transformers generate()', lambda i, p=prompts, n=new: reference_chunk(
                        theirs, p[i % 8], n)),
                    ('plain decode_chunk', lambda i, p=prompts, k=K: decode_chunk(
                        bench.model, p[i % 8], k))):
                slow = np.median(bench.times(run, bench.slow_runs, warm_ups=1))
                rows += [row(f'{size} px: {name}', float(slow), 'ms', K, runs=bench.slow_runs),
                         row(f'{size} px: {name} / engine', float(slow / fast), 'x', K,
                             wanted if name.startswith('transformers') else None)]
    return rows


def frame(bench: Bench) -> list[Row]:
    """Time imagined frames, with drafts that are right in all codes but some."""
    rows = []
    vocabulary, rng = bench.config.vocabulary, np.random.default_rng(0)
    for size in bench.sizes:
        grid, side = (size // 32, size // 32), size // 16
        prompt = world_prompt_of(vocabulary, size)
        tokens = image_capacity(len(prompt), grid) - len(prompt) - 3
        gc.collect()
        engine = StaticImageRows(bench.model, len(prompt) + 3, tokens, MAX_WINDOW)
        plain = decode_image_rows(engine, prompt, grid)
        codes = plain.codes.cpu().numpy()
        floor = roofline.prefill_ms(bench.card, bench.config, len(prompt)) + (side * side - 1) * (
            roofline.step_ms(bench.card, bench.config, len(prompt) + tokens // 2))
        slow = bench.times(lambda i, e=engine, p=prompt, g=grid: decode_image_rows(e, p, g),
                           bench.slow_runs, warm_ups=1)
        rows += quantiles(f'{size} px: imagined frame, a pass per code', slow, floor)
        for changed in CHANGED_CODES:
            draft = np.where(rng.random(codes.shape) < changed, (codes + 1) % 64, codes)
            results = []
            times = bench.times(
                lambda i, e=engine, p=prompt, g=grid, d=draft, out=results: out.append(
                    decode_image_rows(e, p, g, draft=d)), max(3, bench.slow_runs), warm_ups=1)
            passes = results[-1].passes
            same = float((results[-1].codes == plain.codes).float().mean())
            name = f'{size} px: {100 * changed:g} % of codes new'
            rows += [row(f'{name}: accepted codes per pass', codes.size / passes, 'codes'),
                     row(f'{name}: frames per second', 1e3 / float(np.median(times)), '/s',
                         target='>= 8' if size == 256 else None),
                     row(f'{name}: codes as without draft', same, 'of all', target='= 1')]
    return rows


def encode(bench: Bench) -> list[Row]:
    """Time the image tokenizer, in float32 and with TensorFloat-32."""
    rows = []
    images = bench.images
    before = torch.backends.cudnn.allow_tf32
    for size in bench.sizes:
        pixels = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
        codes = {}
        for name, tf32 in (('float32', False), ('TF32', True)):
            torch.backends.cudnn.allow_tf32 = tf32
            codes[name] = images.encode(pixels)
            rows += quantiles(f'{size} px: VQ-GAN encode, {name}', bench.times(
                lambda i, p=pixels: images.encode(p), bench.chunks))
        torch.backends.cudnn.allow_tf32 = before
        rows += [row(f'{size} px: codes that TF32 changes',
                     float((codes['float32'] != codes['TF32']).float().mean()), 'of all'),
                 *quantiles(f'{size} px: VQ-GAN decode', bench.times(
                     lambda i, c=codes['float32']: images.decode(c), bench.chunks))]
    return rows


def policy(bench: Bench) -> list[Row]:
    """Time `predict_chunk` after `prepare` by the host's clock: pixels in, actions out."""
    rows = []
    task = 'pick up the milk and place it in the basket'
    for size in bench.sizes:
        for K in bench.horizons:
            gc.collect()
            settings = PolicySettings('random', trained=False, image_size=size, horizon=K)
            policy = WorldVLAPolicy(Pretrained(
                bench.model, bench.images, TextTokenizer.train([task], 512), settings))
            policy.warm_up()
            rng = np.random.default_rng(0)
            frames = [Frame(rng.integers(0, 256, (size, size, 3), np.uint8), i)
                      for i in range(bench.chunks + 1)]
            state = np.zeros(STATE_DIM)  # for checkpoints that read it
            totals = []
            for older, newest in pairwise(frames):
                policy.prepare(older, task)
                if bench.device.type == 'cuda':
                    torch.cuda.synchronize()
                chunk = policy.predict_chunk(Observation((older, newest), task, state))
                totals.append(1e3 * chunk.latency.total)
            rows += quantiles(f'{size} px: policy, newest frame -> actions', np.array(totals),
                              K=K, target_ms={256: 30, 512: 50}.get(size))
    return rows


def profile(bench: Bench) -> list[Row]:
    """List what the time of ten chunks goes to, the ten largest first."""
    size, K = bench.sizes[0], bench.horizons[-1]
    engine, prompts = bench.engine(size, K), bench.prompts(size, 10)
    engine.warm_up()
    rows, _ = kernels(lambda: [engine.decode(prompt) for prompt in prompts], bench.device,
                      len(prompts), 'chunk', 10, K)
    return rows


PARTS = {part.__name__: part
         for part in (chunk, exactness, reference, frame, encode, policy, fp8, profile)}


def main() -> None:
    """Run the parts one after the other and save after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--small', action='store_true', help='a tiny model on the CPU')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--sizes', nargs='+', type=int, default=[256, 512], help='[px]')
    parser.add_argument('--horizons', nargs='+', type=int, default=[5, 10], help='actions, K')
    parser.add_argument('--chunks', type=int, default=200, help='runs of what is fast')
    parser.add_argument('--slow-runs', type=int, default=5, help='runs of what is slow')
    parser.add_argument('--json', type=Path, default=Path('out/bench_gpu.json'))
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        parser.error('no CUDA device here; --small tries everything on the CPU')
    bench, rows, notes = Bench(arguments), [], {}
    for name in arguments.parts:
        print(f'--- {name}', flush=True)
        started = time.perf_counter()
        rows += [new | {'part': name} for new in PARTS[name](bench)]
        notes[name] = {'seconds': round(time.perf_counter() - started, 1), 'clocks': clocks()}
        print('\n'.join(table_of([one for one in rows if one['part'] == name])), flush=True)
        save(arguments.json, rows, parts=notes, ceilings=asdict(bench.card))
    print(f'saved as {arguments.json}, and the table beside it')


if __name__ == '__main__':
    main()
