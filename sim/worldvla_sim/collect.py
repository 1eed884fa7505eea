# SPDX-License-Identifier: Apache-2.0
"""Record demonstrations of the expert: `python -m worldvla_sim.collect --help`.

With `--policy` a policy and the expert take turns, see `dagger`. Every episode starts from a
random reset, never from an official initial state. It is written to a file of its own as soon as
it succeeds, and the files of a task are joined into `<task>_demo.hdf5` at the end, so a killed run
loses at most the episodes it was playing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import functools
import json
from pathlib import Path
import shutil
import sys
from typing import Any

from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import ConfigError, SimulationError
from worldvla_ros.policy.named_checkpoints import NAMES
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.recording.demonstration_file import demonstration_names, whole_file
from worldvla_sim.commands import EXIT_OK, MAX_SEED, end_as_on_ctrl_c, parse_indices, resumable
from worldvla_sim.dagger import LearnerSettings, learner_settings, record_turns
from worldvla_sim.demonstrations import (
    DEMONSTRATION,
    FAILURE,
    DemonstrationRecorder,
    keep_to_settings,
    open_demonstrations,
    write_demonstration,
)
from worldvla_sim.expert.noise import ActionNoise
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.kept_environment import KeptEnvironment
from worldvla_sim.libero_env import MSAA_LEVELS, ROBOTS, LiberoEnv
from worldvla_sim.libero_setup import ASSET_CHOICES, resolve_assets
from worldvla_sim.policies import policy_factory
from worldvla_sim.scattering import Scattering, check_reach
from worldvla_sim.tasks import SUITES, load_task, suite_tasks
from worldvla_sim.workers import JobFailure, WorkerPool, threads_per_worker

_MAX_ATTEMPTS_PER_DEMO = 4
_MAX_ATTEMPTS = 10 ** 5  # of one task; each has a seed of its own
_LARGEST_SEED = (MAX_SEED + 1) // _MAX_ATTEMPTS - 1
UNSEEN = (_LARGEST_SEED + 1) * _MAX_ATTEMPTS  # seed of a layout, the first that is never recorded


@dataclass(frozen=True)
class CollectionSettings:
    """All that decides what a demonstration with a given attempt number looks like."""

    suite: str
    assets: str
    robot: str = 'light'
    msaa: int = 0
    image_size: int = 256  # [px]
    wrist: bool = False
    noise: float = 0.1  # standard deviation of the executed translation, controller input
    seed: int = 0
    learner: LearnerSettings | None = None  # takes turns with the expert; None: plain ones
    scatter: float = 0.0  # how far objects are moved [m], see `scattering`

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> 'CollectionSettings':
        """Undo `asdict`, also of JSON and of a folder that is older than a setting."""
        learner = values.get('learner')
        if learner is not None:
            turns = {key: tuple(learner[key]) for key in ('policy_steps', 'expert_steps')}
            learner = LearnerSettings(**{**learner, **turns})
        return cls(**{**values, 'learner': learner})


@dataclass(frozen=True)
class Attempt:
    """One try to record a demonstration."""

    task: int
    number: int  # counts the tries of a task from 0; with the seed it fixes layout and noise


class AttemptFolder:
    """The files of one task's attempts: one HDF5 per success, an empty marker per failure."""

    def __init__(self, out: Path, settings: CollectionSettings, task: int, per_task: int) -> None:
        self.task, self.per_task = task, per_task
        name = load_task(settings.suite, task).name
        self.final = out / f'{name}_demo.hdf5'
        self.path = out / f'.{name}.attempts'

    def success_file(self, number: int) -> Path:
        """Where a successful attempt is kept."""
        return self.path / f'{number:05d}{DEMONSTRATION}'

    def failure_marker(self, number: int) -> Path:
        """Says that an attempt was played and failed."""
        return self.path / f'{number:05d}{FAILURE}'

    @property
    def successes(self) -> list[Path]:
        """Whole demonstrations so far, in the order of their attempts."""
        return sorted(self.path.glob(f'*{DEMONSTRATION}'))

    @property
    def failures(self) -> int:
        """Number of attempts that failed so far."""
        return len(list(self.path.glob(f'*{FAILURE}')))

    @property
    def dropped(self) -> int:
        """Number of failed attempts of a task that is complete; 0 where its file has no count."""
        with open_demonstrations(self.final) as data:
            return int(data.attrs.get('num_failed', 0))

    def is_complete(self) -> bool:
        """Whether the task's final file is there with enough demonstrations."""
        if not self.final.exists():
            return False
        with open_demonstrations(self.final) as data:
            return len(demonstration_names(data)) >= self.per_task

    def next_attempts(self) -> list[Attempt]:
        """Return as many new attempts as demonstrations are missing.

        :raises SimulationError: far too many attempts failed.
        """
        missing = self.per_task - len(self.successes)
        if self.failures > _MAX_ATTEMPTS_PER_DEMO * self.per_task:
            raise SimulationError(f'task {self.task}: {self.failures} attempts failed for '
                                  f'{len(self.successes)} demonstrations; less noise may help')
        numbers = (number for number in range(_MAX_ATTEMPTS)
                   if not self.success_file(number).exists()
                   and not self.failure_marker(number).exists())
        return [Attempt(self.task, next(numbers)) for _ in range(missing)]

    def join(self, settings: CollectionSettings) -> None:
        """Copy the first `per_task` demonstrations into the final file; drop the rest."""
        task = load_task(settings.suite, self.task)
        with whole_file(self.final) as file:
            data = file.create_group('data')
            total = 0
            for index, path in enumerate(self.successes[:self.per_task]):
                with open_demonstrations(path) as one:
                    file.copy(one['demo_0'], data, name=f'demo_{index}')
                total += int(data[f'demo_{index}'].attrs['num_samples'])
            data.attrs.update({
                'num_demos': self.per_task, 'total': total, 'num_failed': self.failures,
                'macros_image_convention': 'opengl', 'bddl_file_name': task.bddl_path.name,
                'problem_info': json.dumps({'language_instruction': task.instruction,
                                            'suite': task.suite, 'task': task.index}),
                'env_args': json.dumps(asdict(settings))})
        shutil.rmtree(self.path)


class AttemptRunner:
    """Plays attempts in a worker process and writes each success to its own file."""

    def __init__(self, settings: CollectionSettings, out: Path, per_task: int,
                 threads: int = 1) -> None:
        self._settings, self._out, self._per_task = settings, out, per_task
        self._kept = KeptEnvironment()
        self._expert = ExpertPolicy()
        self._learner = None if settings.learner is None else policy_factory(
            settings.learner.name, threads=threads)()

    def __call__(self, attempt: Attempt) -> bool:
        """Play one attempt; True if a demonstration was written."""
        settings, folder = self._settings, AttemptFolder(
            self._out, self._settings, attempt.task, self._per_task)
        env = self._kept.get(
            settings.suite, attempt.task, assets=settings.assets, robot=settings.robot,
            msaa=settings.msaa, image_size=settings.image_size, wrist=settings.wrist)
        seed = _MAX_ATTEMPTS * settings.seed + attempt.number
        recorder = self._record(env, seed)
        if recorder is None:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.failure_marker(attempt.number).touch()
            return False
        demo = recorder.finish(seed=seed, noise=settings.noise)
        with whole_file(folder.success_file(attempt.number)) as file:
            write_demonstration(file.create_group('data'), 'demo_0', demo)
        return True

    def _record(self, env: LiberoEnv, seed: int) -> DemonstrationRecorder | None:
        settings = self._settings
        if self._learner is None or settings.learner is None:
            return record_episode(env, self._expert, seed, settings.noise, settings.scatter)
        return record_turns(env, self._expert, self._learner, settings.learner, seed,
                            settings.noise, settings.scatter)


def record_episode(env: LiberoEnv, expert: ExpertPolicy, seed: int, noise: float,
                   scatter: float = 0.0) -> DemonstrationRecorder | None:
    """Let the expert play a random reset; None when it did not succeed in the step limit.

    :param scatter: how far objects are moved on the way [m].
    """
    observation = env.reset(None, seed=seed)
    recorder, disturbance = DemonstrationRecorder(env), ActionNoise(noise, seed)
    scattering = Scattering(env, scatter, seed)
    expert.start(env, observation)
    while not env.success and env.steps < env.max_steps:
        if scattering.is_due():
            observation = scattering.scatter()
            recorder.objects_moved()
        action = expert.act(observation)
        executed = disturbance.perturb(action)
        recorder.add(observation, action, executed, aim=expert.aim)
        observation = env.step(executed)
    return recorder if env.success else None


def collect(settings: CollectionSettings, tasks: Sequence[int], per_task: int, out: Path, *,
            workers: int = 1) -> dict[int, int]:
    """Record until every task has its demonstrations; return failed attempts per task.

    :raises SimulationError: an attempt ended in an error, such as a full disk, or there is no
        such suite or task.
    :raises ConfigError: no simulator takes the seed, objects shall be moved too far, or `out` is
        of other settings.
    """
    folders = [AttemptFolder(out, settings, task, per_task) for task in tasks]
    if not 0 <= settings.seed <= _LARGEST_SEED:
        raise ConfigError(f'--seed must be from 0 to {_LARGEST_SEED}, got {settings.seed}: it is '
                          f'followed by {_MAX_ATTEMPTS} seeds of attempts')
    check_reach(settings.scatter)
    _check_settings(out, settings)
    open_folders = [folder for folder in folders if not folder.is_complete()]
    done = sum(per_task if folder not in open_folders else len(folder.successes)
               for folder in folders)
    with tqdm(total=per_task * len(tasks), initial=done, unit='demo') as progress:
        while open_folders:
            attempts = [attempt for folder in open_folders for attempt in folder.next_attempts()]
            _run_attempts(attempts, settings, out, per_task, workers, progress)
            for folder in open_folders:
                if len(folder.successes) >= per_task:
                    folder.join(settings)
            open_folders = [folder for folder in open_folders if not folder.is_complete()]
    return {folder.task: folder.dropped for folder in folders}


def _run_attempts(attempts: Sequence[Attempt], settings: CollectionSettings, out: Path,
                  per_task: int, workers: int, progress: tqdm) -> None:
    pool: WorkerPool[Attempt, bool] = WorkerPool(
        functools.partial(AttemptRunner, settings, out, per_task, threads_per_worker(workers)),
        workers)
    answers = pool.run(attempts)
    try:
        for attempt, answer in answers:
            if isinstance(answer, JobFailure):
                raise SimulationError(f'attempt {attempt.number} of task {attempt.task}: '
                                      f'{answer.reason}')
            progress.update(int(answer))
    finally:
        answers.close()


def _check_settings(out: Path, settings: CollectionSettings) -> None:
    """Keep one folder to one set of settings, so that a resumed run does not mix them.

    A folder that is older than `beside_weights` goes on with what is beside the weights today.
    """
    def read(values: dict[str, Any]) -> CollectionSettings:
        if values.get('learner') and settings.learner:
            values['learner'].setdefault('beside_weights', settings.learner.beside_weights)
        return CollectionSettings.from_dict(values)
    keep_to_settings(out / 'collection.json', settings, read, 'made')


def _image_size(learner: LearnerSettings | None, asked: int | None, wrist: bool) -> int:
    """Return the side [px] of the pictures to record.

    :raises ConfigError: another one was asked for than the learner sees, or not its wrist camera.
    """
    if learner is None or learner.weights is None:
        return CollectionSettings.image_size if asked is None else asked
    seen = PolicySettings.load(Path(learner.name) / POLICY_FILE)
    if seen.reads_wrist and not wrist:
        raise ConfigError(f'{learner.name} needs the wrist camera, which is not recorded; give '
                          f'--wrist')
    if asked not in (None, seen.image_size):
        raise ConfigError(f'{learner.name} needs images of {seen.image_size} px, got '
                          f'--image-size {asked}; leave it out')
    return seen.image_size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.collect',
        description='Record expert demonstrations as LIBERO-format HDF5; run again to resume.')
    parser.add_argument('--suite', required=True, help=', '.join(SUITES))
    parser.add_argument('--tasks', type=parse_indices, help='such as 0,3-5 (default: all)')
    parser.add_argument('--per-task', type=positive_int, default=50)
    parser.add_argument('--noise', type=float, default=0.1,
                        help='standard deviation of the executed motion (default: 0.1)')
    parser.add_argument('--policy', metavar='NAME|FOLDER',
                        help=f'takes turns with the expert (DAgger): {", ".join(NAMES)}, hold, '
                             'drift (random mistakes, as long as there is no policy), or the '
                             'folder of a checkpoint')
    parser.add_argument('--chunk', type=positive_int, default=0, metavar='K',
                        help='actions in a chunk of --policy: while it has the arm, let the '
                             'expert play K steps ahead every third step, and record what it does '
                             'as label')
    parser.add_argument('--scatter', type=float, default=0.0, metavar='METRES',
                        help='move what stands free, up to so far along each axis, again and '
                             'again in the first half of an episode: a policy must look where '
                             'things are, and each episode shows ten layouts')
    parser.add_argument('--workers', type=positive_int, default=1)
    parser.add_argument('--image-size', type=positive_int,
                        help='[px] (default: what the checkpoint of --policy needs, else 256)')
    parser.add_argument('--wrist', action='store_true', help='record the wrist camera too')
    parser.add_argument('--assets', choices=ASSET_CHOICES, default='auto')
    parser.add_argument('--robot', choices=ROBOTS, default='light')
    parser.add_argument('--msaa', type=int, choices=MSAA_LEVELS, default=0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, required=True)
    return parser


@resumable
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all demonstrations are there, 2 on errors, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    if options.chunk and options.policy is None:
        raise ConfigError('--chunk is of the steps at which --policy has the arm; name one')
    learner = (learner_settings(options.policy, options.chunk)
               if options.policy is not None else None)
    image_size = _image_size(learner, options.image_size, options.wrist)
    settings = CollectionSettings(
        options.suite, resolve_assets(options.assets).kind, options.robot, options.msaa,
        image_size, options.wrist, options.noise, options.seed, learner, options.scatter)
    tasks = options.tasks or range(len(suite_tasks(options.suite)))
    failed = collect(settings, tasks, options.per_task, options.out, workers=options.workers)
    for task, count in failed.items():
        print(f'task {task}: {options.per_task} demonstrations, {count} failed attempts dropped')
    return EXIT_OK


if __name__ == '__main__':
    end_as_on_ctrl_c()
    sys.exit(main())
