# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate rows, each step in a process of its own, several rows at a time.

    OUTPUT/rows/NAME/stage0.yaml  stage0/  train.log     one stage of training, and what it said
    OUTPUT/rows/NAME/stage0.origin                       fingerprints of what it is trained on
    OUTPUT/rows/NAME/evaluation.json  evaluate.log       the episodes
    OUTPUT/rows/NAME/error.txt                           why the row is not finished

Everything is read back from these files, so a killed ablation goes on where it was.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import logging
import os
from pathlib import Path
import statistics
import subprocess
import sys
import threading

from tqdm import tqdm

from worldvla_ros.config import differences
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.training.run_folder import read_metrics
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store import TokenStore
from worldvla_sim.ablation.failures import AblationError
from worldvla_sim.ablation.origins import changes, note
from worldvla_sim.ablation.plan import ROWS, AblationConfig, Plan, Row, tokens_per_step
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.policies import checkpoint_name
from worldvla_sim.results import Results
from worldvla_sim.runner import as_of_today, with_newer_settings

_EVALUATION = 'evaluation.json'
_POLL = 1.0  # [s] between looks at the files of running rows
_PATIENCE = 10.0  # [s] for a stopped process to end
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What the files say about one row."""

    row: Row
    records: tuple[EpisodeRecord, ...]  # of the planned episodes
    held_out: dict[str, float]  # columns of metrics.csv at the last step; empty without
    error: str | None  # why the row is not finished, of the last try
    num_episodes: int  # planned

    @property
    def finished(self) -> bool:
        """Whether every planned episode was played."""
        return len([one for one in self.records if one.error is None]) == self.num_episodes


def outcome(row: Row, plan: Plan) -> Outcome:
    """Read what there is of a row.

    What was made with another plan, on other data or with other weights does not count, and a log
    line says so.
    """
    config, folder = plan.config, _folder(row, plan)
    records: list[EpisodeRecord] = []
    measured: dict[str, float] = {}
    doubts = _doubts(row, plan)
    if not doubts:
        wanted = {(task, state) for task in config.tasks
                  for state in range(config.evaluation.init_states)}
        records = [record for record in _records(row, plan)
                   if (record.task, record.init_state) in wanted]
        for line in read_metrics(Path(row.final.run.output)):
            if line['split'] == 'held_out' and int(line['step']) == row.final.run.steps:
                measured = {name: float(value) for name, value in line.items()
                            if name not in ('step', 'split') and value}
    elif (folder / _EVALUATION).exists():
        _logger.warning('row %s: its episodes do not count (%s)', row.name, '; '.join(doubts))
    error = folder / 'error.txt'
    return Outcome(row, tuple(records), measured, error.read_text() if error.exists() else None,
                   config.num_episodes)


def _doubts(row: Row, plan: Plan) -> list[str]:
    """Say why the episodes of a row are not those of its plan, its data and its weights."""
    folder = _folder(row, plan)
    doubts = [f'stage {number}, {change}' for number, stage in enumerate(row.stages)
              for change in changes(stage, folder / f'stage{number}.yaml')]
    doubts += [f'stage {number} is not trained to its last step'
               for number, stage in enumerate(row.stages) if not _is_trained(stage)]
    return doubts or _other_weights(row, plan)


def _other_weights(row: Row, plan: Plan) -> list[str]:
    """Say how the checkpoint, assets and fixtures of a row differ from those that were played."""
    path = _folder(row, plan) / _EVALUATION
    if not path.exists():
        return []
    played = Results.load(path).settings
    try:
        now = {'checkpoint': checkpoint_name(_result_folder(row.final))}
    except WorldVLAError as error:
        return [str(error)]
    return differences(with_newer_settings(played), {**as_of_today(played), **now})


def _records(row: Row, plan: Plan) -> list[EpisodeRecord]:
    """Return the episodes of a row's checkpoint, none that were played otherwise."""
    path, episodes = _folder(row, plan) / _EVALUATION, plan.config.evaluation
    if not path.exists():
        return []
    results = Results.load(path)
    wanted = {'policy': _result_folder(row.final), 'suite': episodes.suite,
              'seed': episodes.seed}
    if episodes.assets != 'auto':
        wanted['assets'] = episodes.assets
    return results.records if wanted.items() <= results.settings.items() else []


class Estimate:
    """How long things take, from what was measured so far and from the YAML before that."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        stages = [stage for row in plan.rows for stage in row.stages]
        stores = {where: TokenStore.open(where) for where in {one.data.store for one in stages}}
        self._tokens = {stage.run.output: tokens_per_step(stage, stores[stage.data.store])
                        for stage in stages}
        folder = plan.output / ROWS  # also of rows that are not in this plan, `--rows`
        rates = [float(line['tokens_per_s']) for run in sorted(folder.glob('*/stage*/'))
                 for line in read_metrics(run) if line['split'] == 'train']
        durations = [record.duration for file in sorted(folder.glob(f'*/{_EVALUATION}'))
                     for record in Results.load(file).records]
        self._rate = statistics.median(rates or [plan.config.tokens_per_s])
        self._episode = statistics.mean(durations or [plan.config.seconds_per_episode])

    def total(self, row: Row) -> float:
        """Return the time [s] that a row takes in all."""
        return sum(self._stage(stage, stage.run.steps) for stage in row.stages) + (
            self._plan.config.num_episodes * self._episode)

    def left(self, row: Row) -> tuple[float, float]:
        """Return the time [s] of the training and of the episodes that a row still lacks."""
        training = sum(self._stage(stage, stage.run.steps - _steps_done(stage))
                       for stage in row.stages)
        played = len(_records(row, self._plan))
        return training, max(0, self._plan.config.num_episodes - played) * self._episode

    def done(self, row: Row) -> float:
        """Return how much [s] of `total` the files of a row show as done."""
        return self.total(row) - sum(self.left(row))

    def _stage(self, stage: TrainConfig, steps: int) -> float:
        return self._tokens[stage.run.output] * steps / self._rate


class Processes:
    """Runs commands with their output in files; stops all of them at once."""

    def __init__(self) -> None:
        self._lock, self._running = threading.Lock(), set[subprocess.Popen[bytes]]()
        self.stopped = False

    def run(self, module: str, arguments: Sequence[str], log: Path, *, threads: int = 1) -> None:
        """Run `python -m module`; AblationError with its last words when it fails."""
        environment = {**os.environ, 'OMP_NUM_THREADS': str(threads),
                       'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
        with log.open('ab') as output:
            with self._lock:
                if self.stopped:
                    raise AblationError('stopped')
                process = subprocess.Popen([sys.executable, '-m', module, *arguments],
                                           stdin=subprocess.DEVNULL, stdout=output,
                                           stderr=subprocess.STDOUT, env=environment,
                                           start_new_session=True)  # Ctrl-C comes to us alone
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        if status:
            words = log.read_text(errors='replace').replace('\r', '\n').strip().splitlines()
            raise AblationError(f'{module} ended with status {status}: '
                                f'{words[-1] if words else "no output"} (all of it: {log})')

    def stop(self) -> None:
        """End what runs, and run nothing more."""
        with self._lock:
            self.stopped, running = True, list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def run_rows(plan: Plan) -> list[Outcome]:
    """Train and evaluate what is missing; return the outcome of every row, failed ones too.

    On KeyboardInterrupt the processes are ended before it is passed on; the same call goes on.
    """
    estimate, processes = Estimate(plan), Processes()
    missing = [row for row in plan.rows if not outcome(row, plan).finished]
    total = sum(estimate.total(row) for row in plan.rows)
    pool = ThreadPoolExecutor(plan.config.processes)
    with tqdm(total=round(total), unit='s', desc='estimated work', dynamic_ncols=True,
              initial=round(sum(map(estimate.done, plan.rows))),
              mininterval=1.0 if sys.stderr.isatty() else 30.0) as bar:
        try:
            running = {pool.submit(_run_row, row, plan, processes): row for row in missing}
            while not all(future.done() for future in running):
                _show(bar, plan, estimate, running)
                threading.Event().wait(_POLL)
            _show(bar, plan, estimate, running)
        finally:
            processes.stop()
            pool.shutdown(wait=True, cancel_futures=True)
    for future in running:
        future.result()  # what is no row's error is everybody's
    return [outcome(row, plan) for row in plan.rows]


def _run_row(row: Row, plan: Plan, processes: Processes) -> None:
    """Do what is missing of one row; a failure is written down and ends this row only."""
    folder = _folder(row, plan)
    folder.mkdir(parents=True, exist_ok=True)
    error = folder / 'error.txt'
    error.unlink(missing_ok=True)
    try:
        for number, stage in enumerate(row.stages):
            _train(stage, folder / f'stage{number}.yaml', folder / 'train.log', processes)
        if changed := _other_weights(row, plan):
            raise AblationError(f'{folder / _EVALUATION} is of another checkpoint, pack or '
                                f'fixtures ({"; ".join(changed)}); delete it')
        processes.run('worldvla_sim.evaluate', _evaluation_arguments(row, plan.config, folder),
                      folder / 'evaluate.log')
    except (WorldVLAError, OSError) as failure:
        if not processes.stopped:
            with contextlib.suppress(OSError):  # a full disk, which is what it would say
                error.write_text(str(failure))


def _train(stage: TrainConfig, file: Path, log: Path, processes: Processes) -> None:
    if changed := changes(stage, file):
        raise AblationError(f'{file.parent} was made with another plan or other data '
                            f'({"; ".join(changed)}); delete it, or give another output')
    if _is_trained(stage):
        return
    note(stage, file)
    processes.run('worldvla_ros.training.train', ['--config', str(file)], log,
                  threads=stage.run.threads)


def _evaluation_arguments(row: Row, config: AblationConfig, folder: Path) -> list[str]:
    episodes = config.evaluation
    return ['--policy', _result_folder(row.final), '--suite', episodes.suite,
            '--tasks', ','.join(map(str, config.tasks)),
            '--init-states', f'0-{episodes.init_states - 1}', '--assets', episodes.assets,
            '--seed', str(episodes.seed), '--workers', '1',
            '--json', str(folder / _EVALUATION), '--resume']


def _show(bar: tqdm, plan: Plan, estimate: Estimate, running: dict[Future[None], Row]) -> None:
    """Bring the progress bar up to date."""
    active = [row.name for future, row in running.items() if future.running()]
    left = sum(not future.done() for future in running)
    bar.set_postfix_str(f'{len(plan.rows) - left}/{len(plan.rows)} rows, now '
                        f'{", ".join(active) or "none"}', refresh=False)
    bar.update(max(0, round(sum(map(estimate.done, plan.rows))) - bar.n))


def _is_trained(stage: TrainConfig) -> bool:
    """Say whether a stage has its result, and not one that was exported before the last step."""
    return (Path(_result_folder(stage)).is_dir()
            and any(int(line['step']) == stage.run.steps
                    for line in read_metrics(Path(stage.run.output))))


def _steps_done(stage: TrainConfig) -> int:
    lines = [] if _is_trained(stage) else read_metrics(Path(stage.run.output))
    return int(lines[-1]['step']) if lines else stage.run.steps * _is_trained(stage)


def _result_folder(stage: TrainConfig) -> str:
    return str(Path(stage.run.output) / 'final')


def _folder(row: Row, plan: Plan) -> Path:
    return plan.output / ROWS / row.name
