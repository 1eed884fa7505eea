# SPDX-License-Identifier: Apache-2.0
"""Replay demonstrations, whole or without no-ops: `python -m worldvla_sim.replay --help`.

A demonstration starts from its own reset (our recordings keep its seed) and the simulator's state
of the first frame that training sees; then its executed actions follow one after the other. It
succeeds when the task is done after the last of them, as in the published data set.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import SimulationError
from worldvla_ros.recording.demonstration_file import demonstration_names
from worldvla_ros.training.libero_hdf5 import (
    demonstration_files,
    objects_moved,
    observation_lag,
    recorded_actions,
    task_name,
)
from worldvla_ros.training.replay_list import (
    Replay,
    ReplayList,
    actions_digest,
    kept_steps,
)
from worldvla_sim.commands import EXIT_ERRORS, EXIT_OK, end_as_on_ctrl_c, resumable
from worldvla_sim.demonstrations import open_demonstrations
from worldvla_sim.kept_environment import KeptEnvironment
from worldvla_sim.libero_env import ROBOTS, LiberoEnv
from worldvla_sim.libero_setup import ASSET_CHOICES, resolve_assets
from worldvla_sim.recorded_simulation import Simulation, reset_as_recorded, simulation_of
from worldvla_sim.results import alone_with
from worldvla_sim.tasks import SUITES
from worldvla_sim.workers import JobFailure, WorkerPool


@dataclass(frozen=True)
class ReplayJob:
    """One demonstration, and the simulation that it is to be replayed in."""

    path: Path
    task: str
    name: str
    simulation: Simulation
    drop_no_ops: bool


class ReplayRunner:
    """Replays jobs in a worker process; keeps the environment while the task stays the same."""

    def __init__(self) -> None:
        self._kept = KeptEnvironment()

    def __call__(self, job: ReplayJob) -> Replay:
        """Replay one demonstration."""
        with open_demonstrations(job.path) as data:
            group = data[job.name]
            actions, executed = recorded_actions(group)
            states = group['states'][observation_lag(group):]
            moved = objects_moved(group)
            env = self._environment(job)
            reset_as_recorded(env, group)
        kept = (kept_steps(actions, executed) if job.drop_no_ops
                else np.ones(len(actions), dtype=bool))
        if moved is not None and job.drop_no_ops:
            raise SimulationError('objects were moved by hand in it (`collect --scatter`), which '
                                  'is where they stand only if nothing is dropped; replay it '
                                  'without --drop-no-ops')
        if not np.array_equal(env.state(), states[0]):  # else the reset is exact, with contacts
            env.set_state(states[0])
        for step in np.flatnonzero(kept):
            if moved is not None and moved[step]:
                env.set_state(states[step])
            env.step(executed[step])
        return Replay(job.task, job.name, actions_digest(actions, executed),
                      job.simulation.in_words(), env.success, len(actions), int(kept.sum()))

    def _environment(self, job: ReplayJob) -> LiberoEnv:
        return self._kept.get(**asdict(job.simulation), render=False)


def find_jobs(folder: Path, drop_no_ops: bool, *, suite: str | None = None, assets: str = 'auto',
              robot: str = 'light') -> list[tuple[ReplayJob, str]]:
    """Return every demonstration below a folder, with the digest of its actions.

    :param suite: of files that do not say theirs, as LIBERO's own; assets and robot likewise.
    :raises SimulationError: a file that says no suite, and none was given.
    """
    jobs = []
    for path in demonstration_files(folder):
        with open_demonstrations(path) as data:
            simulation = simulation_of(path, data, suite=suite, assets=assets, robot=robot)
            for name in demonstration_names(data):
                jobs.append((ReplayJob(
                    path, task_name(path, folder), name, simulation, drop_no_ops),
                    actions_digest(*recorded_actions(data[name]))))
    return jobs


def _known(earlier: ReplayList, job: ReplayJob, digest: str) -> Replay | None:
    """Return what became of a job before, None where it was another simulation or never played."""
    found = earlier.find(job.task, job.name, digest)
    return found if found and found.simulation == job.simulation.in_words() else None


def replay(jobs: Sequence[tuple[ReplayJob, str]], path: Path, drop_no_ops: bool, *,
           workers: int = 1) -> ReplayList:
    """Replay what the list in `path` lacks or has as an error, and save it after each one.

    :raises WorldVLAError: `path` cannot be written, holds another list, or is in use.
    """
    with alone_with(path):
        return _replay(jobs, path, drop_no_ops, workers)


def _replay(jobs: Sequence[tuple[ReplayJob, str]], path: Path, drop_no_ops: bool, workers: int
            ) -> ReplayList:
    earlier = ReplayList.load(path) if path.exists() else ReplayList(drop_no_ops)
    if earlier.drop_no_ops != drop_no_ops:
        raise SimulationError(f'{path} is of replays {"with" if drop_no_ops else "without"} '
                              'no-ops; name another file')
    known = {job: _known(earlier, job, digest) for job, digest in jobs}
    here = {(job.task, job.name) for job in known}
    results = ReplayList(drop_no_ops, [one for one in earlier.replays
                                       if (one.task, one.name) not in here])  # of other folders
    results.replays += [one for one in known.values() if one is not None and one.error is None]
    results.save(path)  # now, so that a path that cannot be written costs no replay
    missing = [job for job, one in known.items() if one is None or one.error is not None]
    digests = dict(jobs)
    pool: WorkerPool[ReplayJob, Replay] = WorkerPool(ReplayRunner, workers)
    answers = pool.run(missing)
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit='demo') as bar:
        try:
            for job, answer in answers:
                if isinstance(answer, JobFailure):
                    answer = Replay(job.task, job.name, digests[job],
                                    job.simulation.in_words(), False, 0, 0, answer.reason)
                results.replays.append(answer)
                results.save(path)
                succeeded = sum(one.success for one in results.replays
                                if (one.task, one.name) in here)
                bar.set_postfix_str(f'{succeeded} succeed', refresh=False)
                bar.update()
        finally:
            answers.close()
    return results


def summary(results: ReplayList) -> str:
    """Return successes per task, the steps that were dropped, and the errors."""
    lines = []
    for task in sorted({one.task for one in results.replays}):
        ran = [one for one in results.replays if one.task == task and one.error is None]
        steps, kept = sum(one.steps for one in ran), sum(one.kept for one in ran)
        lines.append(f'{sum(one.success for one in ran)}/{len(ran)} succeed, {kept} of {steps} '
                     f'steps replayed: {task}')
    return '\n'.join([*lines, *(f'error in {one.task}, {one.name}: {one.error}'
                                for one in results.replays if one.error is not None)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.replay',
        description='Replay the executed actions of demonstrations and list which still succeed; '
                    'run again to go on. `worldvla_ros.training.tokenise --only` takes the list.')
    parser.add_argument('demonstrations', type=Path, help='folder with LIBERO-format HDF5 files')
    parser.add_argument('--drop-no-ops', action='store_true',
                        help='replay only what the published filter keeps')
    parser.add_argument('--out', type=Path, required=True, help='list to write (JSON)')
    parser.add_argument('--workers', type=positive_int, default=1,
                        help='processes (default: 1)')
    parser.add_argument('--suite', choices=SUITES, help='of files that do not say theirs')
    parser.add_argument('--assets', choices=ASSET_CHOICES, default='auto', help='likewise')
    parser.add_argument('--robot', choices=ROBOTS, default='light', help='likewise')
    return parser


@resumable
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all were replayed, 1 with errors, 2 for bad input, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    jobs = find_jobs(options.demonstrations, options.drop_no_ops, suite=options.suite,
                     assets=resolve_assets(options.assets).kind, robot=options.robot)
    results = replay(jobs, options.out, options.drop_no_ops, workers=options.workers)
    print(summary(results))
    return EXIT_ERRORS if any(one.error for one in results.replays) else EXIT_OK


if __name__ == '__main__':
    end_as_on_ctrl_c()
    sys.exit(main())
