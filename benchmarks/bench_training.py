# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes: batches, host, kernels.

    python benchmarks/bench_training.py --config config/train/mini_gpu.yaml --made-up

Trains the recipe for some steps and writes nothing but the figures. `GPU busy` far below 1 means
that the host or the batches are what a step waits for; else the kernels below it are. On a CPU:
`--device cpu --batch-size 16 --no-compile --steps 2`.

    --variants recipe batch wide

also times the recipe with twice the batch, and twice as wide: where the share of the matmul peak
rises with either, the matrices are too small. Each variant is compiled anew: 36 s on an H100.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
import gc
import itertools
import os
from pathlib import Path
import sys
import tempfile
import time

from measuring import Clocks, kernels
import numpy as np
from report import Row, exit_status, recorded, row, save, table_of
import torch

from worldvla_ros.config import load_yaml
from worldvla_ros.model.image_tokenizer import load_image_tokenizer
from worldvla_ros.recording.demonstration_file import AIM_DIM
from worldvla_ros.training.batches import Batch
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.loading import AHEAD, made_ahead
from worldvla_ros.training.parallel import pick_device
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.throughput import matmul_peak, training_flops
from worldvla_ros.training.trainer import Trainer

WARM_UPS = 3  # steps: kernels are compiled and chosen
PROFILED = 5  # steps
LISTED = 20  # kernels
Parts = Sequence[Sequence[Batch]]


def _wide(config: TrainConfig) -> TrainConfig:
    """Return the recipe with matrices of four times the size, in heads as large as before."""
    shape = config.model
    return replace(config, model=replace(
        shape, init_from='', hidden_size=2 * shape.hidden_size,
        intermediate_size=2 * shape.intermediate_size, num_heads=2 * shape.num_heads))


VARIANTS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    'recipe': lambda config: config,
    'batch': lambda config: replace(
        config, data=replace(config.data, batch_size=2 * config.data.batch_size)),
    'wide': _wide}


def made_up_store(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return the recipe with a store of made-up episodes: lengths count, not what is in them."""
    image_tokenizer = load_image_tokenizer(config.data.tokenizer)
    rng = np.random.default_rng(0)
    size, steps, episodes = 192, 40, 10

    def episode(number: int) -> Episode:
        actions = rng.uniform(-1, 1, (steps, 7))
        frames = np.broadcast_to(rng.integers(0, 256, (1, size, size, 3), np.uint8),
                                 (steps, size, size, 3))
        return Episode(f'demo_{number}', 'made_up', 'put the bowl on the plate', frames, actions,
                       actions, True, rng.uniform(-1, 1, (steps, 7)),
                       aims=rng.uniform(0, 1, (steps, AIM_DIM)))
    write_store(folder / 'store', map(episode, range(episodes)), image_tokenizer, size)
    return replace(config, data=replace(config.data, store=str(folder / 'store')))


class TrainingBench:
    """A trainer that is timed and keeps no checkpoint."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        self._config, self._steps = config, steps
        self._trainer = Trainer(build_experiment(config))
        self._device = torch.device(self._trainer.device)
        self._parts = self._trainer.batches(0)

    def run(self) -> list[Row]:
        """Measure; return the rows."""
        model = self._trainer.model
        peak = matmul_peak(str(self._device), self._trainer.dtype)
        started = time.perf_counter()
        self._train([self._parts] * WARM_UPS)
        rows = [row('first steps, compiling', time.perf_counter() - started, 's'),
                row('batch, made by one process', 1e3 * self._seconds_per_batch(), 'ms')]
        again = self._train([self._parts] * self._steps)
        processes = self._config.run.loader_processes
        queued = max(1, AHEAD * processes)  # made before the clock starts, faster than any step
        steps = range(queued + self._steps)
        with made_ahead(self._trainer.batches, steps, processes) as fresh:
            self._train(itertools.islice(fresh, queued))
            loaded = self._train(fresh)
        samples, flops = self._config.data.batch_size, sum(
            training_flops(model.config, batches) for batches in self._parts)
        return [*rows, row('step, the same batch again', 1e3 * again, 'ms'),
                row('step, with its batches', 1e3 * loaded, 'ms'),
                row('samples per second', samples / loaded, '/s'),
                row('share of the matmul peak', flops / loaded / peak, 'of 1', target='>= 0.45'),
                *self._profile()]

    def _seconds_per_batch(self) -> float:
        started = time.perf_counter()
        for step in range(PROFILED):
            self._trainer.batches(step)
        return (time.perf_counter() - started) / PROFILED

    def _train(self, batches: Iterable[Parts]) -> float:
        """Return the seconds per step."""
        self._wait()
        started, done = time.perf_counter(), 0
        for parts in batches:
            self._trainer.train_step(parts)
            done += 1
        self._wait()
        return (time.perf_counter() - started) / done

    def _profile(self) -> list[Row]:
        listed, busy = kernels(lambda: self._train([self._parts] * PROFILED), self._device,
                               PROFILED, 'step', LISTED)
        if self._device.type != 'cuda':
            return listed
        return [row('GPU busy, under the profiler', busy, 'of 1'), *listed]

    def _wait(self) -> None:
        if self._device.type == 'cuda':
            torch.cuda.synchronize()


def main() -> int:
    """Run the benchmark and save its table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, required=True, help='YAML file of a run')
    parser.add_argument('--variants', nargs='+', choices=VARIANTS, default=['recipe'],
                        help='twice the batch, twice as wide')
    parser.add_argument('--steps', type=int, default=30, help='that are timed')
    parser.add_argument('--batch-size', type=int, help='instead of the one in the recipe')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--no-compile', action='store_true')
    parser.add_argument('--made-up', action='store_true', help='made-up episodes as the store')
    parser.add_argument('--json', type=Path, default=Path('out/bench_training.json'))
    options = parser.parse_args()
    config = load_yaml(options.config, TrainConfig)
    run = replace(config.run, device=options.device, steps=10 ** 6,
                  compile=config.run.compile and not options.no_compile,
                  loader_processes=min(config.run.loader_processes, os.cpu_count() or 1))
    data = replace(config.data, batch_size=options.batch_size or config.data.batch_size)
    config = replace(config, run=run, data=data)
    with tempfile.TemporaryDirectory() as folder:
        if options.made_up:
            config = made_up_store(config, Path(folder))
        rows = run_variants(config, options.variants, options.steps, options.json)
    return exit_status(rows)


def run_variants(config: TrainConfig, names: list[str], steps: int, path: Path) -> list[Row]:
    """Return the rows of all variants; the file has those so far."""
    rows: list[Row] = []
    notes: dict[str, object] = {}
    device = torch.device(pick_device(config.run.device))
    for name in names:
        new: list[Row] = []
        with Clocks(device) as clocks, recorded(new, name):
            new += TrainingBench(VARIANTS[name](config), steps).run()
        new = [line | {'name': f'{name}: {line["name"]}', 'variant': name} for line in new]
        rows += new
        notes[name] = {'clocks': clocks.summary()}
        print('\n'.join(table_of(new)), flush=True)
        save(path, rows, asked=names, done=notes)
        torch._dynamo.reset()
        gc.collect()  # the weights before the next ones are made
    return rows


if __name__ == '__main__':
    sys.exit(main())
