# SPDX-License-Identifier: Apache-2.0
"""What an evaluation plays, and how one worker plays it: in its process, or over ROS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np

from worldvla_ros.errors import ConfigError
from worldvla_sim.assets.pack import PACK_VERSION
from worldvla_sim.episodes import EpisodeRecord, run_episode
from worldvla_sim.kept_environment import KeptEnvironment
from worldvla_sim.libero_env import LOCKSTEP, REALTIME, LiberoEnv
from worldvla_sim.policies import CheckpointPolicy, EpisodePolicy, policy_factory
from worldvla_sim.scattering import check_reach
from worldvla_sim.tasks import initial_states, load_task, suite_tasks
from worldvla_sim.videos import EpisodeVideos

PROCESS, ROS = 'process', 'ros'


@dataclass(frozen=True)
class EvaluationSettings:
    """All that decides the outcome of an episode, besides its task and initial state."""

    policy: str
    suite: str
    assets: str  # resolved: 'builtin' or 'official'
    robot: str = 'light'
    msaa: int = 0
    image_size: int = 256  # [px] for policies that take any size
    seed: int = 0  # with the initial state: of where the fixtures stand, and of `scatter`
    max_steps: int | None = None  # None: the suite's published limit
    execute: int | None = None  # actions of a chunk before the next inference; None: all of it
    over: str = PROCESS  # or ROS: policy node, bridge and topics in between
    mode: str = LOCKSTEP  # or REALTIME: the simulator does not wait (over ROS alone)
    device: str = 'cpu'  # torch device of a checkpoint
    checkpoint: str = ''  # name and fingerprints of a checkpoint
    pack_version: str = ''  # of the built-in assets; '' with official ones
    scatter: float = 0.0  # [m] that objects are moved by before the first step, at most
    fixtures: str = 'of seed and initial state'  # which a layout is drawn for

    def __post_init__(self) -> None:
        """Refuse what cannot be played."""
        check_reach(self.scatter)
        if self.scatter > 0 and self.over == ROS:
            raise ConfigError('over ROS things stay where the initial state has them: --scatter '
                              'plays in one process, leave --over ros out')
        if self.over == PROCESS and self.mode == REALTIME:
            raise ConfigError('in one process the simulator waits for the policy: --mode realtime '
                              'needs --over ros')
        if self.over == ROS and not self.checkpoint:
            if self.policy != 'expert':
                raise ConfigError(f'over ROS play the folder of a checkpoint or the expert, not '
                                  f'{self.policy!r}')
            if self.mode == REALTIME:
                raise ConfigError('the expert reads the true state of a simulator that waits: '
                                  'over ROS it plays in lockstep only')


def with_newer_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a result file as if it were not older than some of them."""
    return {**{item.name: item.default for item in fields(EvaluationSettings)
               if item.default is not MISSING}, **settings}


def as_of_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a result file with what no option chooses as this program has it.

    Where that changes them, this program plays no more episodes that compare with those.
    """
    settings = with_newer_settings(settings)
    pack = {'pack_version': PACK_VERSION} if settings.get('assets') == 'builtin' else {}
    return {**settings, **pack, 'fixtures': EvaluationSettings.fixtures}


@dataclass(frozen=True)
class RunOptions:
    """How episodes are played as far as it changes no outcome."""

    threads: int = 1  # of torch, in each worker
    videos: EpisodeVideos | None = None


@dataclass(frozen=True)
class EpisodeJob:
    """One episode to play."""

    task: int
    init_state: int


def make_jobs(suite: str, tasks: Sequence[int] | None, states: Sequence[int]) -> list[EpisodeJob]:
    """Return all episodes of these tasks (None: all of the suite), refusing what does not exist.

    :raises SimulationError: unknown suite or task. :raises ConfigError: unknown initial state.
    """
    jobs = []
    for index in range(len(suite_tasks(suite))) if tasks is None else tasks:
        count = len(initial_states(load_task(suite, index)))
        if missing := [state for state in states if not 0 <= state < count]:
            raise ConfigError(f'{suite} task {index} has initial states 0 to {count - 1}, '
                              f'not {missing}')
        jobs += [EpisodeJob(index, state) for state in states]
    return jobs


class EpisodeRunner:
    """Plays jobs in a worker process; keeps the environment while the task stays the same."""

    def __init__(self, settings: EvaluationSettings, options: RunOptions) -> None:
        self._settings = settings
        self._videos = options.videos
        self._policy: EpisodePolicy = policy_factory(
            settings.policy, execute=settings.execute, threads=options.threads,
            device=settings.device)()
        self._size = self._policy.image_size or settings.image_size
        self._description, self._also_reads = (
            (self._policy.description, self._policy.also_reads)
            if isinstance(self._policy, CheckpointPolicy) else (settings.policy, ''))
        self._kept = KeptEnvironment()

    def __call__(self, job: EpisodeJob) -> EpisodeRecord:
        """Play one episode."""
        frames: list[np.ndarray] | None = None if self._videos is None else []
        record = run_episode(
            self._environment(job.task), self._policy, job.init_state, seed=self._settings.seed,
            max_steps=self._settings.max_steps, scatter=self._settings.scatter, frames=frames)
        seen = self._size if self._policy.needs_images else 0
        record = replace(record, policy=self._description, image_size=seen,
                         also_reads=self._also_reads)
        return self._videos.keep(record, frames) if self._videos and frames else record

    def _environment(self, task: int) -> LiberoEnv:
        settings = self._settings
        return self._kept.get(
            settings.suite, task, assets=settings.assets, robot=settings.robot,
            msaa=settings.msaa, image_size=self._size, wrist=self._policy.needs_wrist,
            render=self._policy.needs_images or self._videos is not None)

    def close(self) -> None:
        """Free the simulator; safe to repeat."""
        self._kept.close()


def make_runner(settings: EvaluationSettings,
                options: RunOptions) -> Callable[[EpisodeJob], EpisodeRecord]:
    """Return what plays jobs in a worker.

    :raises ConfigError: ROS is asked for and not there.
    """
    if settings.over == PROCESS:
        return EpisodeRunner(settings, options)
    require_ros()
    from worldvla_sim.ros.evaluation import RosEpisodeRunner
    return RosEpisodeRunner(settings, options)


def require_ros() -> None:
    """Raise ConfigError where ROS or the built messages cannot be imported."""
    try:
        import worldvla_sim.ros.evaluation  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'--over ros needs ROS 2 and the built messages ({error}): `. tools/'
                          f'env.sh` first, or `make evaluate ARGS=...`') from error
