# SPDX-License-Identifier: Apache-2.0
"""The simulation that a demonstration was recorded in, and is put back into."""

from dataclasses import dataclass
import json
from pathlib import Path

import h5py

from worldvla_ros.errors import SimulationError
from worldvla_ros.recording.demonstration_file import FILE_ENDING
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.tasks import SUITES, suite_tasks


@dataclass(frozen=True)
class Simulation:
    """Which environment, without what only pictures depend on."""

    suite: str
    task: int
    assets: str  # 'builtin' or 'official'
    robot: str

    def in_words(self) -> str:
        """Say what two simulations of one task can differ in."""
        return f'{self.assets} assets, {self.robot} robot'


def simulation_of(path: Path, data: h5py.Group, *, suite: str | None, assets: str, robot: str
                  ) -> Simulation:
    """Return the simulation of a demonstration file whose group `data` is open.

    :param suite: of files that do not say theirs, as LIBERO's own; assets and robot likewise.
    :raises SimulationError: a file that says no suite, and none was given, or one without it.
    """
    said = json.loads(data.attrs.get('env_args', '{}'))
    if {'suite', 'assets', 'robot'} <= said.keys():
        suite, assets, robot = said['suite'], said['assets'], said['robot']
    if suite is None:
        raise SimulationError(f'{path} does not say its suite; give --suite, one of '
                              f'{", ".join(SUITES)}')
    stem = path.name.removesuffix(FILE_ENDING)
    for task in suite_tasks(suite):
        if task.name == stem:
            return Simulation(suite, task.index, assets, robot)
    raise SimulationError(f'{path}: {suite} has no task {stem!r}; give the suite it is of')


def reset_as_recorded(env: LiberoEnv, group: h5py.Group) -> None:
    """Place the fixtures as they stood in a demonstration; states do not say where they are.

    Our recordings keep the seed of their reset, LIBERO's own files the whole model.
    """
    env.reset(None, seed=int(group.attrs.get('seed', 0)))
    if 'model_file' in group.attrs:
        env.place_fixtures(group.attrs['model_file'])
