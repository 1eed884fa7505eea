# SPDX-License-Identifier: Apache-2.0
"""Evaluate a policy on LIBERO tasks: `python -m worldvla_sim.evaluate --help`."""

import argparse
from collections.abc import Sequence
import contextlib
from dataclasses import asdict, replace
import functools
import hashlib
import json
from pathlib import Path
import sys

from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.config import differences
from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_ros.policy.named_checkpoints import NAMES
from worldvla_sim.assets.pack import PACK_VERSION
from worldvla_sim.commands import (
    EXIT_ERRORS,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    end_as_on_ctrl_c,
    parse_indices,
    seed,
)
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.libero_env import LOCKSTEP, MSAA_LEVELS, REALTIME, ROBOTS
from worldvla_sim.libero_setup import ASSET_CHOICES, resolve_assets
from worldvla_sim.policies import POLICIES, absolute_policy, checkpoint_name, policy_factory
from worldvla_sim.ray_pool import RayPool
from worldvla_sim.report import require_writable, write_report
from worldvla_sim.results import Results, alone_with, describe_run, summary_table
from worldvla_sim.runner import (
    PROCESS,
    ROS,
    EpisodeJob,
    EvaluationSettings,
    RunOptions,
    make_jobs,
    make_runner,
    require_ros,
    with_newer_settings,
)
from worldvla_sim.tasks import SUITES, load_task
from worldvla_sim.videos import KINDS, EpisodeVideos
from worldvla_sim.workers import JobFailure, WorkerPool, threads_per_worker


def evaluate(settings: EvaluationSettings, jobs: Sequence[EpisodeJob], *, workers: int = 1,
             path: Path | None = None, resume: bool = False, ray: str | None = None,
             videos: EpisodeVideos | None = None) -> Results:
    """Play all jobs and return their records; with `path` save them after every episode.

    :param resume: keep the records of an earlier, interrupted run in `path` and play the rest;
        those of `jobs` that ended in an error are played again, and an error of another episode
        keeps the results incomplete. Without it, records in `path` are refused, so that the same
        command given again loses none.
    :param ray: address of a Ray cluster that the workers run on.
    :raises ConfigError: `path` holds results, or resuming, those of other settings or of another
        number format; another evaluation writes it; or it cannot be written.
    """
    with alone_with(path) if path is not None else contextlib.nullcontext():
        return _evaluate(settings, jobs, workers, path, resume, ray, videos)


def _evaluate(settings: EvaluationSettings, jobs: Sequence[EpisodeJob], workers: int,
              path: Path | None, resume: bool, ray: str | None, videos: EpisodeVideos | None
              ) -> Results:
    results = Results(asdict(settings))
    if path is not None and path.exists():
        earlier = Results.load(path)
        if not resume and earlier.records:
            raise ConfigError(f'{path} exists with {len(earlier.records)} episodes; add --resume '
                              f'to go on, or name another file')
        different = _differences(earlier, settings)
        if different and any(record.error is None for record in earlier.records):
            raise ConfigError(f'cannot resume with other settings ({"; ".join(different)}); '
                              f'name another result file')
        if not different:  # else it holds the errors of a wrong option
            results.records, results.runs = earlier.records, earlier.runs
    options = RunOptions(threads_per_worker(workers), videos)
    # A worker of Ray runs in another folder.
    make_handler = functools.partial(
        make_runner, replace(settings, policy=absolute_policy(settings.policy)), options)
    pool: WorkerPool[EpisodeJob, EpisodeRecord] | RayPool[EpisodeJob, EpisodeRecord] = (
        WorkerPool(make_handler, workers) if ray is None
        else RayPool(make_handler, workers, ray))
    done = {_job_of(record) for record in results.records if record.error is None}
    missing = [job for job in jobs if job not in done]
    left, run = set(missing), describe_run()
    if path is not None:
        results.save(path)  # now, so that a path that cannot be written costs no episode
    episodes = pool.run(missing)
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit='episode') as progress:
        try:
            for job, answer in episodes:
                record = _record_of(settings, job, answer)
                _require_same_policy(results.records, record)
                left.discard(job)
                results.records = [one for one in results.records if _job_of(one) != job]
                results.records.append(record)
                if run not in results.runs:
                    results.runs.append(run)
                _show(progress, results.records)
                if path is not None:
                    results.save(path)
        finally:
            episodes.close()
            results.complete = not left and not any(
                record.error is not None and _job_of(record) not in jobs
                for record in results.records)
            results.records.sort(key=lambda record: (record.task, record.init_state))
            if path is not None:
                results.save(path)
    return results


def _job_of(record: EpisodeRecord) -> EpisodeJob:
    return EpisodeJob(record.task, record.init_state)


def _differences(earlier: Results, settings: EvaluationSettings) -> list[str]:
    """Say in what settings earlier results differ.

    A checkpoint is what its fingerprints say, however its folder is written.
    """
    before, now = with_newer_settings(earlier.settings), asdict(settings)
    if before['checkpoint'] and now['checkpoint']:
        before['policy'] = now['policy']
    return differences(before, now, before.keys() - now.keys())


def _require_same_policy(earlier: Sequence[EpisodeRecord], record: EpisodeRecord) -> None:
    """Raise ConfigError where a machine plays a checkpoint in another number format."""
    if record.error is not None:
        return
    if other := {one.policy for one in earlier if one.error is None} - {record.policy}:
        raise ConfigError(f'the episodes so far are of {" and ".join(sorted(other))}, and this '
                          f'machine plays {record.policy}: they make no common rate; go on where '
                          f'the others were played, or name another result file')


def _record_of(settings: EvaluationSettings, job: EpisodeJob,
               answer: EpisodeRecord | JobFailure) -> EpisodeRecord:
    """Turn a worker's answer into a record; an error is neither success nor failure."""
    if isinstance(answer, JobFailure):
        instruction = load_task(settings.suite, job.task).instruction
        answer = EpisodeRecord(settings.suite, job.task, instruction, job.init_state,
                               success=False, steps=0, error=answer.reason,
                               assets=settings.assets,
                               policy=settings.checkpoint or settings.policy)
    return replace(answer, robot=settings.robot, over=settings.over, mode=settings.mode)


def _show(progress: tqdm, records: Sequence[EpisodeRecord]) -> None:
    """Advance the progress bar."""
    errors = sum(record.error is not None for record in records)
    won = sum(record.success for record in records)
    progress.set_postfix_str(f'success {won}/{len(records) - errors}'
                             + (f', errors {errors}' if errors else ''))
    progress.update()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.evaluate',
        description='Play LIBERO episodes from official initial states, write one record each.')
    parser.add_argument('--policy', default='expert',
                        help=f'{", ".join((*POLICIES, *NAMES))}, or the folder of a checkpoint '
                             '(default: %(default)s)')
    parser.add_argument('--over', choices=(PROCESS, ROS), default=PROCESS,
                        help='ros: through policy node, bridge and topics')
    parser.add_argument('--mode', choices=(LOCKSTEP, REALTIME), default=LOCKSTEP,
                        help='realtime: the simulator does not wait (with --over ros)')
    parser.add_argument('--suite', required=True, help=', '.join(SUITES))
    parser.add_argument('--tasks', type=parse_indices, help='such as 0,3-5 (default: all)')
    parser.add_argument('--init-states', type=parse_indices, default=parse_indices('0-9'),
                        help='official initial states, such as 0-9 (the default)')
    parser.add_argument('--assets', choices=ASSET_CHOICES, default='auto')
    parser.add_argument('--robot', choices=ROBOTS,
                        help='default: full with official assets, else light')
    parser.add_argument('--msaa', type=int, choices=MSAA_LEVELS,
                        help='samples per pixel (default: 4 with official assets, else 0)')
    parser.add_argument('--image-size', type=positive_int,
                        help='[px] of what the expert, hold and drift see (default: 256); a '
                             'checkpoint sees pictures of its own size')
    parser.add_argument('--seed', type=seed, default=0,
                        help='with the initial state: of where the fixtures stand, and of '
                             '--scatter (default: 0)')
    parser.add_argument('--max-steps', type=positive_int,
                        help='default: the published limit of the suite')
    parser.add_argument('--execute', type=positive_int, metavar='N',
                        help='actions of a chunk before the next inference (default: all)')
    parser.add_argument('--scatter', type=float, default=0.0, metavar='METRES',
                        help='move what stands free, up to so far along each axis, before the '
                             'first step (default: 0, the official layout)')
    parser.add_argument('--device', help='torch device of a checkpoint (default: cpu)')
    parser.add_argument('--workers', type=positive_int, default=1,
                        help='processes (default: 1)')
    parser.add_argument('--ray', metavar='ADDRESS',
                        help='workers on a Ray cluster: local, auto or host:port')
    parser.add_argument('--json', type=Path, help='result file, saved after every episode; one '
                                                  'that holds some needs --resume')
    parser.add_argument('--videos', type=Path, metavar='FOLDER', help='keep mp4s of failures')
    parser.add_argument('--videos-of', choices=KINDS, help=f'default: {KINDS[0]}')
    parser.add_argument('--report', type=Path, metavar='HTML', help='write a report at the end')
    parser.add_argument('--resume', action='store_true',
                        help='play only what the result file lacks or has as an error')
    return parser


def _checked(options: argparse.Namespace) -> tuple[EvaluationSettings, list[EpisodeJob]]:
    """Return what to play; all that can be wrong is found before the first episode."""
    policy_factory(options.policy, execute=options.execute)
    jobs = make_jobs(options.suite, options.tasks, options.init_states)
    checkpoint = checkpoint_name(options.policy)
    _refuse_idle_options(options, checkpoint)
    if checkpoint and options.device and not options.ray:
        from worldvla_ros.policy.pretrained import require_device
        require_device(options.device)
    assets = resolve_assets(options.assets).kind
    # LIBERO's own pictures are of robosuite's robot and of smooth edges.
    robot, msaa = ('light', 0) if assets == 'builtin' else ('full', 4)
    settings = EvaluationSettings(
        policy=options.policy, suite=options.suite, assets=assets,
        robot=options.robot or robot, msaa=msaa if options.msaa is None else options.msaa,
        image_size=options.image_size or EvaluationSettings.image_size, seed=options.seed,
        max_steps=options.max_steps, execute=options.execute, over=options.over,
        mode=options.mode, device=options.device or EvaluationSettings.device,
        checkpoint=checkpoint, pack_version=PACK_VERSION if assets == 'builtin' else '',
        scatter=options.scatter)
    if settings.over == ROS:
        require_ros()
        if options.videos and not settings.checkpoint:
            raise ConfigError('over ROS the expert is played without pictures; leave --videos '
                              'out, or play it without --over ros')
    return settings, jobs


def _refuse_idle_options(options: argparse.Namespace, checkpoint: str) -> None:
    """Raise ConfigError for an option that would change nothing."""
    for given, idle, reason in (
            (options.device, not checkpoint, f'--device is for a checkpoint, and {options.policy} '
                                             'needs none'),
            (options.image_size, checkpoint, '--image-size is for the expert, hold and drift: a '
                                             'checkpoint sees pictures of its own size'),
            (options.videos_of, options.videos is None, '--videos-of needs --videos FOLDER'),
            (options.resume, options.json is None, '--resume goes on with the file that --json '
                                                   'names')):
        if given and idle:
            raise ConfigError(f'{reason}; leave it out, or say what it shall change')


def _short_name(settings: EvaluationSettings) -> str:
    """Return a few letters that stand for all settings, the weights of the checkpoint included."""
    return hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()[:6]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when every episode ran, 1 with errors, 2 for bad input, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        settings, jobs = _checked(options)
        videos = (EpisodeVideos(options.videos.absolute(), options.videos_of or KINDS[0],
                                _short_name(settings)) if options.videos else None)
        if videos is not None:
            videos.create()
        if options.report is not None:
            require_writable(options.report)
        results = evaluate(settings, jobs, workers=options.workers, path=options.json,
                           resume=options.resume, ray=options.ray, videos=videos)
        print(summary_table(results.records))
        if options.report is not None:
            write_report([results], options.report)
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f'interrupted; --resume continues from {options.json}' if options.json
              else 'interrupted', file=sys.stderr)
        return EXIT_INTERRUPTED
    errors = [record for record in results.records if record.error is not None]
    for record in errors:
        print(f'error in task {record.task}, initial state {record.init_state}: {record.error}',
              file=sys.stderr)
    return EXIT_ERRORS if errors else EXIT_OK


if __name__ == '__main__':
    end_as_on_ctrl_c()
    sys.exit(main())
