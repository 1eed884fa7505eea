# SPDX-License-Identifier: Apache-2.0
"""Measure control steps per second: `python -m worldvla_sim.assets.speed`.

One environment at a time, one 256 x 256 camera, small random motions.  The median over the steps
is reported, beside the processor time of all threads, which other load disturbs less.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np

from worldvla_ros.arguments import positive_int
from worldvla_sim.commands import telling
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.tasks import SUITES

_TASKS = {  # suite -> tasks whose rooms or number of objects differ
    'libero_spatial': (0,), 'libero_object': (0,), 'libero_goal': (0,), 'libero_10': (0, 3, 4, 5),
}
_WARM_UP = 10  # steps that fill caches and are not counted
# Name -> options of the environment.
_SETTINGS: dict[str, dict[str, Any]] = {
    'full robot, msaa 4': {'robot': 'full', 'msaa': 4},
    'light robot, msaa 4': {'robot': 'light', 'msaa': 4},
    'light robot, msaa 0': {'robot': 'light', 'msaa': 0},
    'light robot, no images': {'robot': 'light', 'render': False},
}


def measure(env: LiberoEnv, steps: int) -> tuple[float, float]:
    """Return the median wall time and the mean processor time of a control step [s]."""
    env.reset(0)
    random = np.random.default_rng(0)
    walls = []
    for step in range(_WARM_UP + steps):
        if step == _WARM_UP:
            used = time.process_time()
        start = time.perf_counter()
        env.step(random.uniform(-0.3, 0.3, 7))
        walls.append(time.perf_counter() - start)
    return float(np.median(walls[_WARM_UP:])), (time.process_time() - used) / steps


@telling
def main(arguments: list[str] | None = None) -> int:
    """Print one line per task and setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--suite', choices=SUITES, action='append', help='default: all four')
    parser.add_argument('--assets', default='builtin', choices=('builtin', 'official'))
    parser.add_argument('--steps', type=positive_int, default=60)
    options = parser.parse_args(arguments)
    for suite in options.suite or SUITES:
        for task in _TASKS[suite]:
            for name, settings in _SETTINGS.items():
                with LiberoEnv(suite, task, assets=options.assets, **settings) as env:
                    wall, processor = measure(env, options.steps)
                print(f'{suite:14s} {task} {name:23s} {1 / wall:6.1f} steps/s '
                      f'{1e3 * processor:6.1f} ms of processor time per step', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
