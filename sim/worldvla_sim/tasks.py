# SPDX-License-Identifier: Apache-2.0
"""LIBERO's suites, tasks, instructions, step limits and official initial states, without torch.

The task order is that of LIBERO's task map; its order index 0 is the identity, so a task index
here is the index that published results use.
"""

from dataclasses import dataclass
import functools
import io
from pathlib import Path
import pickle
import runpy
from typing import Any
import zipfile

import numpy as np

from worldvla_ros.errors import SimulationError
from worldvla_sim.libero_setup import libero_folder

MAX_STEPS = {
    'libero_spatial': 220,
    'libero_object': 280,
    'libero_goal': 300,
    'libero_10': 520,
}
"""Step limit of an episode in public evaluations (OpenVLA's code), settle steps not counted."""

SUITES = tuple(MAX_STEPS)

# What a pickled float64 array of NumPy 1 or 2 refers to; anything else is refused.
_ALLOWED_GLOBALS = {
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('_codecs', 'encode'),
}


@dataclass(frozen=True)
class Task:
    """One task of a suite."""

    suite: str
    index: int
    name: str  # file stem, e.g. pick_up_the_milk_and_place_it_in_the_basket
    instruction: str  # as policies get it: derived from the name, lower case, no scene prefix
    max_steps: int

    @property
    def bddl_path(self) -> Path:
        """LIBERO's task file."""
        return libero_folder() / 'bddl_files' / self.suite / f'{self.name}.bddl'

    @property
    def init_states_path(self) -> Path:
        """LIBERO's file of official initial states."""
        return libero_folder() / 'init_files' / self.suite / f'{self.name}.pruned_init'


def _instruction_of(name: str) -> str:
    """Turn `KITCHEN_SCENE3_turn_on_the_stove` into `turn on the stove`."""
    return ' '.join(word for word in name.split('_') if not word.isupper())


@functools.cache
def suite_tasks(suite: str) -> tuple[Task, ...]:
    """Return the tasks of a suite in LIBERO's order.

    :raises SimulationError: unknown suite; lists the known ones.
    """
    if suite not in MAX_STEPS:
        raise SimulationError(f'unknown suite {suite!r}, there are: {", ".join(SUITES)}')
    # By path: importing `libero.libero.benchmark` would import torch.
    task_map = runpy.run_path(str(libero_folder() / 'benchmark' / 'libero_suite_task_map.py'))
    return tuple(Task(suite, index, name, _instruction_of(name), MAX_STEPS[suite])
                 for index, name in enumerate(task_map['libero_task_map'][suite]))


def load_task(suite: str, index: int) -> Task:
    """Return one task.

    :raises SimulationError: unknown suite or index; lists what there is.
    """
    tasks = suite_tasks(suite)
    if not 0 <= index < len(tasks):
        listing = '; '.join(f'{task.index}: {task.instruction}' for task in tasks)
        raise SimulationError(f'{suite} has no task {index}, there are {listing}')
    return tasks[index]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and refuses everything else, because a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise SimulationError(f'an initial-state file refers to {module}.{name}; only NumPy '
                                  f'arrays are expected there, so it is not loaded')
        return super().find_class(module, name)


@functools.lru_cache(maxsize=8)
def initial_states(task: Task) -> np.ndarray:
    """Return the official initial states, (50, 1 + nq + nv) float64: time, qpos, qvel; read-only.

    :raises SimulationError: the file is missing, damaged, or holds more than an array.
    """
    path = task.init_states_path
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith('/data.pkl'))
            states = _ArrayUnpickler(io.BytesIO(archive.read(name))).load()
    except (OSError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, EOFError) as error:
        raise SimulationError(f'cannot read the initial states {path}: {error}') from error
    if not isinstance(states, np.ndarray) or states.ndim != 2:
        raise SimulationError(f'{path} holds {type(states).__name__}, expected a 2-d array')
    states = states.astype(np.float64)
    states.setflags(write=False)
    return states
