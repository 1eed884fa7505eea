# SPDX-License-Identifier: Apache-2.0
"""Render demonstrations again, larger or with other assets: `python -m worldvla_sim.rerender -h`.

The simulator is put into every recorded state, and what is seen and felt there takes the place
of `obs` and `robot_states`; nothing is played, so no demonstration is lost. LIBERO's own files are
of 128 px and hold at index t what was seen after action t; rendered again, it is what was seen
before, as in our recordings. (A recording shows a step's end as it was one physics step, 2 ms,
before it; a rendered state shows the state.)
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
import shutil
import sys
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import ConfigError, SimulationError
from worldvla_ros.recording.demonstration_file import (
    FILE_ENDING,
    WRIST_IMAGES,
    demonstration_names,
    whole_file,
)
from worldvla_ros.training.libero_hdf5 import demonstration_files, episode_actions
from worldvla_ros.training.replay_list import actions_digest
from worldvla_sim.commands import EXIT_OK, end_as_on_ctrl_c, resumable, seed
from worldvla_sim.demonstrations import (
    Seen,
    keep_to_settings,
    open_demonstrations,
    write_demonstration,
    write_seen,
)
from worldvla_sim.glances import glances
from worldvla_sim.kept_environment import KeptEnvironment
from worldvla_sim.libero_env import MSAA_LEVELS, ROBOTS
from worldvla_sim.libero_setup import ASSET_CHOICES, resolve_assets
from worldvla_sim.recorded_simulation import Simulation, reset_as_recorded, simulation_of
from worldvla_sim.scattering import check_reach
from worldvla_sim.tasks import SUITES
from worldvla_sim.workers import JobFailure, WorkerPool

_REPLACED = ('obs', 'robot_states')
_SOURCE = 'rendered_from'  # attribute of a copy: digest of the actions that it is of


@dataclass(frozen=True)
class Pictures:
    """How everything in an output folder is rendered."""

    image_size: int  # [px]
    assets: str | None = None  # None: as the file says, or else what is found
    robot: str | None = None  # None: as the file says, or else 'light'
    msaa: int = 0
    wrist: bool = False  # the wrist camera, too; False: where it was recorded
    scatter: float = 0.0  # see `glances` [m]; 0: things stay where they were
    seed: int = 0  # of those layouts


@dataclass(frozen=True)
class Rendering(Pictures):
    """The same for the whole folder, with what `assets` and `robot` came to in its files."""

    simulations: tuple[str, ...] = ()  # in words


@dataclass(frozen=True)
class RenderJob:
    """One demonstration to render into a file of its own."""

    path: Path
    name: str
    digest: str  # of its actions
    part: Path
    simulation: Simulation
    pictures: Pictures


class RenderRunner:
    """Renders jobs in a worker process; keeps the environment while the task stays the same."""

    def __init__(self) -> None:
        self._kept = KeptEnvironment()

    def __call__(self, job: RenderJob) -> None:
        """Render one demonstration."""
        with open_demonstrations(job.path) as data:
            recorded = data[job.name]
            env = self._kept.get(**asdict(job.simulation), image_size=job.pictures.image_size,
                                 msaa=job.pictures.msaa,
                                 wrist=(job.pictures.wrist
                                        or f'obs/{WRIST_IMAGES}' in recorded))
            reset_as_recorded(env, recorded)
            states = _states(recorded, job)
            if job.pictures.scatter > 0:
                demo = glances(env, recorded, states, job.pictures.scatter, job.pictures.seed)
                with whole_file(job.part) as file:
                    write_demonstration(file, job.name, demo)
                    file[job.name].attrs[_SOURCE] = job.digest
                return
            observations = []
            for state in states:
                env.set_state(state)
                observations.append(env.observe())
            with whole_file(job.part) as file:
                group = file.create_group(job.name)
                for key in recorded:
                    if key not in _REPLACED:
                        recorded.copy(key, group)
                group.attrs.update(recorded.attrs)
                group.attrs.update({'assets': env.assets, 'base_position': env.base_position,
                                    _SOURCE: job.digest})
                write_seen(group, Seen.stack(observations))


def _states(recorded: h5py.Group, job: RenderJob) -> np.ndarray:
    """Return the states (T, n) before each action.

    :raises SimulationError: the file does not have one for each.
    """
    actions, states = recorded['actions'], recorded.get('states')
    if states is None or len(states) != len(actions):
        raise SimulationError(
            f'{job.path}, {job.name}: {0 if states is None else len(states)} states of the '
            f'simulator for {len(actions)} actions, so it cannot be rendered again')
    return np.asarray(states)


class RenderedFile:
    """A file of demonstrations and its copy, beside which rendered parts lie until the end."""

    def __init__(self, source: Path, target: Path, simulation: Simulation, pictures: Pictures
                 ) -> None:
        self._source, self._target = source, target
        self._parts = target.with_name(f'.{target.name.removesuffix(FILE_ENDING)}.parts')
        self.simulation, self._pictures = simulation, pictures
        self._digests = {name: actions_digest(*actions)
                         for name, actions in episode_actions(source).items()}

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def jobs(self) -> list[RenderJob]:
        """What is still to be rendered."""
        if self.is_complete:
            return []
        return [RenderJob(self._source, name, digest, self._part(name), self.simulation,
                          self._pictures)
                for name, digest in self._digests.items() if not self._has_part(name)]

    @property
    def is_complete(self) -> bool:
        """Whether the copy has all demonstrations, as they are now recorded."""
        if not self._target.exists():
            return False
        with open_demonstrations(self._target) as data:
            return {name: data[name].attrs.get(_SOURCE)
                    for name in demonstration_names(data)} == self._digests

    def join(self) -> None:
        """Put the parts together."""
        with open_demonstrations(self._source) as source, whole_file(self._target) as file:
            data = file.create_group('data')
            data.attrs.update(source.attrs)
            said = json.loads(source.attrs.get('env_args', '{}'))
            pictures = asdict(self._pictures)
            glances = {name: pictures.pop(name) for name in ('scatter', 'seed')}
            if glances['scatter'] > 0:  # the same names are of the recording, too
                pictures['glances'] = glances
            pictures['wrist'] |= said.get('wrist', False)
            data.attrs['env_args'] = json.dumps(said | pictures | asdict(self.simulation))
            for name in self._digests:
                with h5py.File(self._part(name)) as part:
                    file.copy(part[name], data, name=name)
        shutil.rmtree(self._parts)

    def _has_part(self, name: str) -> bool:
        if not self._part(name).exists():
            return False
        with h5py.File(self._part(name)) as part:
            return bool(part[name].attrs.get(_SOURCE) == self._digests[name])

    def _part(self, name: str) -> Path:
        return self._parts / f'{name}.hdf5'


def files_to_render(folder: Path, out: Path, pictures: Pictures, suite: str | None = None
                    ) -> list[RenderedFile]:
    """Return every demonstration file below a folder with its place below `out`.

    :param suite: of files that do not say theirs, as LIBERO's own.
    :raises ConfigError: `out` would mix what is to be rendered, or holds other pictures.
    :raises SimulationError: a file that says no suite, and none was given.
    """
    root = folder if folder.is_dir() else folder.parent
    if out.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f'{out} lies among the demonstrations in {root}; name a folder outside')
    found = resolve_assets(pictures.assets or 'auto').kind
    files = []
    for source in demonstration_files(folder):
        with open_demonstrations(source) as data:
            simulation = simulation_of(source, data, suite=suite, assets=found,
                                       robot=pictures.robot or ROBOTS[0])
        if pictures.assets is not None:
            simulation = replace(simulation, assets=found)
        if pictures.robot is not None:
            simulation = replace(simulation, robot=pictures.robot)
        files.append(RenderedFile(source, out / source.relative_to(root), simulation, pictures))
    _check_settings(out, pictures, found, files)
    return files


def _check_settings(out: Path, pictures: Pictures, found: str, files: Sequence[RenderedFile]
                    ) -> None:
    """Keep one folder to one rendering; ConfigError also where `auto` finds other assets now."""
    simulations = tuple(sorted({file.simulation.in_words() for file in files}))
    asked = asdict(pictures) | {'assets': found if pictures.assets else None}

    def read(known: dict[str, Any]) -> Rendering:
        said = known.get('simulations', simulations)  # a folder may be older than this
        return Rendering(**{**known, 'simulations': tuple(said)})
    keep_to_settings(out / 'rendering.json', Rendering(**asked, simulations=simulations), read,
                     'rendered')


def rerender(files: Sequence[RenderedFile], *, workers: int = 1) -> None:
    """Render what is missing.

    :raises SimulationError: a demonstration cannot be rendered; those that could are kept.
    """
    jobs = [job for file in files for job in file.jobs]
    pool: WorkerPool[RenderJob, None] = WorkerPool(RenderRunner, workers)
    answers = pool.run(jobs)
    total = sum(map(len, files))
    with tqdm(total=total, initial=total - len(jobs), unit='demo') as bar:
        try:
            for job, answer in answers:
                if isinstance(answer, JobFailure):
                    raise SimulationError(f'{job.path}, {job.name}: {answer.reason}')
                bar.update()
        finally:
            answers.close()
    for file in files:
        if not file.is_complete:
            file.join()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.rerender',
        description='Render demonstrations again from their recorded states, at another size or '
                    'with other assets; run again to go on.')
    parser.add_argument('demonstrations', type=Path, help='folder with LIBERO-format HDF5 files')
    parser.add_argument('--image-size', type=positive_int, required=True, help='[px]')
    parser.add_argument('--out', type=Path, required=True, help='folder of the copies')
    parser.add_argument('--workers', type=positive_int, default=1,
                        help='processes (default: 1)')
    parser.add_argument('--suite', choices=SUITES, help='of files that do not say theirs')
    parser.add_argument('--assets', choices=ASSET_CHOICES,
                        help='(default: those of the file, auto where it does not say)')
    parser.add_argument('--robot', choices=ROBOTS, help='(default: likewise, light)')
    parser.add_argument('--msaa', type=int, choices=MSAA_LEVELS, default=0)
    parser.add_argument('--scatter', type=float, default=0.0, metavar='METRES',
                        help='lay what stands free elsewhere in each state, up to so far along '
                             'each axis, and ask the expert there: single steps (glances), for '
                             'data.short_chunks of a training run')
    parser.add_argument('--seed', type=seed, default=0,
                        help='of --scatter: another one, other layouts (default: 0)')
    parser.add_argument('--wrist', action='store_true',
                        help='the wrist camera, too (default: where it was recorded)')
    return parser


@resumable
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all were rendered, 2 on errors, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    check_reach(options.scatter)
    files = files_to_render(
        options.demonstrations, options.out,
        Pictures(options.image_size, options.assets, options.robot, options.msaa, options.wrist,
                 options.scatter, options.seed),
        options.suite)
    rerender(files, workers=options.workers)
    print(f'{sum(map(len, files))} demonstrations in {len(files)} files: {options.out}')
    return EXIT_OK


if __name__ == '__main__':
    end_as_on_ctrl_c()
    sys.exit(main())
