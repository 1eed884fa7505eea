# SPDX-License-Identifier: Apache-2.0
"""Speed of the 7B model on a GPU, against its floors and the public implementation's way.

Random weights: timing does not depend on their values. Times are between CUDA events, p50 and
p99 of all runs; the reference runs in the same process on the same weights. Targets are those of
an H200. What fails is a row of the table, and the rest goes on.

    python benchmarks/bench_gpu.py [--parts chunk fp8 ...] [--sizes 256 512] [--horizons 5 10]
    python benchmarks/bench_gpu.py --parts chunk reference:256 fp8:256:10   # of one size, one K
    python benchmarks/bench_gpu.py --small    # everything on the CPU with a tiny model, < 1 min
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
import sys
import time
from typing import NamedTuple

from gpu_chunks import chunk, drafts, exactness, fp8, profile, reference
from gpu_pixels import encode, frame, policy
from measuring import Bench, Clocks
from report import Row, exit_status, recorded, save, table_of
import torch

OF_CHUNKS: dict[str, Callable[[Bench, int, int], Iterable[Row]]] = {
    part.__name__: part for part in (
        chunk, exactness, reference, policy, drafts, fp8, profile)}
OF_FRAMES: dict[str, Callable[[Bench, int], Iterable[Row]]] = {
    part.__name__: part for part in (frame, encode)}
PARTS = (*OF_CHUNKS, *OF_FRAMES)
SMALL_SIZES, SMALL_HORIZONS = [64], [5]


class Job(NamedTuple):
    """One part at one size and, where it decodes actions, for one K."""

    part: str
    size: int  # [px]
    K: int | None

    def __str__(self) -> str:
        return f'{self.part}, {self.size} px' + ('' if self.K is None else f', K={self.K}')

    def rows(self, bench: Bench) -> Iterable[Row]:
        """Measure; what takes long gives its rows as they come."""
        if self.K is None:
            return OF_FRAMES[self.part](bench, self.size)
        return OF_CHUNKS[self.part](bench, self.size, self.K)


def jobs(parts: list[str], sizes: list[int], horizons: list[int]) -> list[Job]:
    """Return what to run in order; 'PART:SIZE' and 'PART:SIZE:K' are of that size and K alone."""
    listed = []
    for asked in parts:
        part, *only = asked.split(':')
        for size in [int(only[0])] if only else sizes:
            own = [int(only[1])] if len(only) > 1 else horizons
            listed += [Job(part, size, K) for K in ([None] if part in OF_FRAMES else own)]
    return listed


def main() -> int:
    """Run the jobs one after the other and save after each; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='a tiny model on the CPU')
    parser.add_argument('--parts', nargs='+', default=list(PARTS), metavar='PART[:SIZE[:K]]',
                        help=', '.join(PARTS))
    parser.add_argument('--sizes', nargs='+', type=int, default=[256, 512], help='[px]')
    parser.add_argument('--horizons', nargs='+', type=int, default=[5, 10], help='actions, K')
    parser.add_argument('--chunks', type=int, default=200, help='runs of what is fast')
    parser.add_argument('--slow-runs', type=int, default=20, help='runs of what is slow, at most')
    parser.add_argument('--slow-seconds', type=float, default=60.0,
                        help='of each of them, after three runs')
    parser.add_argument('--json', type=Path, default=Path('out/bench_gpu.json'))
    arguments = parser.parse_args()
    unknown = {part.split(':')[0] for part in arguments.parts} - set(PARTS)
    if unknown:
        parser.error(f'expected parts of {", ".join(PARTS)}, got {", ".join(sorted(unknown))}')
    if not arguments.small and not torch.cuda.is_available():
        parser.error('no CUDA device here; --small tries everything on the CPU')
    if arguments.small:
        names = dict.fromkeys(part.split(':')[0] for part in arguments.parts)
        todo = jobs(list(names), SMALL_SIZES, SMALL_HORIZONS)
    else:
        todo = jobs(arguments.parts, arguments.sizes, arguments.horizons)
    rows = run(todo, Bench(arguments), arguments.json)
    print(f'saved as {arguments.json}, and the table beside it')
    return exit_status(rows)


def run(todo: list[Job], bench: Bench, path: Path) -> list[Row]:
    """Return the rows of all jobs; the file has those so far, and names what was asked for.

    Also where it is interrupted: `done` names the jobs that came to their end.
    """
    rows: list[Row] = []
    notes: dict[str, object] = {}
    for job in todo:
        print(f'--- {job}', flush=True)
        started = time.perf_counter()
        new: list[Row] = []
        try:
            with Clocks(bench.device) as clocks, recorded(new, str(job)):
                for line in job.rows(bench):
                    new.append(line)
            notes[str(job)] = {'seconds': round(time.perf_counter() - started, 1),
                               'clocks': clocks.summary()}
        finally:
            rows += [line | {'part': job.part, 'size': job.size, 'K': job.K} for line in new]
            print('\n'.join(table_of(new)), flush=True)
            save(path, rows, asked=[str(one) for one in todo], done=notes,
                 ceilings={weights: asdict(card) for weights, card in bench.ceilings.items()})
    return rows


if __name__ == '__main__':
    sys.exit(main())
