# SPDX-License-Identifier: Apache-2.0
"""The ablation's YAML: one base training run, and what each row changes of it.

    output, processes, tokens_per_s, seconds_per_episode, scale.{steps, batch}, evaluation.{...}
    base:                 a training configuration (`worldvla_ros.training.settings`)
    rows:
      NAME:
        title: ...        for the tables
        paper: ...        row of the paper (`paper.PAPER`) to print beside it; none without it
        pretrain: {...}   changes of a stage of training before, whose weights it starts from
        set: {...}        changes of the base, by dotted names

Where a stage writes and what it starts from follows from the row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldvla_ros.config import bounded, check, flatten, from_mapping, read_yaml, unflatten
from worldvla_ros.datatypes import STATE_DIM
from worldvla_ros.errors import ConfigError
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store import TokenStore
from worldvla_sim.ablation.paper import PAPER
from worldvla_sim.libero_setup import ASSET_CHOICES
from worldvla_sim.runner import make_jobs
from worldvla_sim.tasks import SUITES, suite_tasks

ROWS = 'rows'  # folder of the rows in that of the ablation
_ROW_KEYS = ('title', 'paper', 'pretrain', 'set')
_PER_SCALED_STEP = ('run.steps', 'run.save_every', 'run.evaluate_every', 'optimizer.warmup_steps')
_TEXT_TOKENS = 20  # of a prompt, for estimates


@dataclass(frozen=True)
class ScaleConfig:
    """Makes all rows larger or smaller at once."""

    steps: float = bounded(1.0, minimum=1e-6, doc='factor of steps, warm-up and save intervals')
    batch: float = bounded(1.0, minimum=1e-6, doc='factor of the batch size')


@dataclass(frozen=True)
class EpisodesConfig:
    """What every row plays."""

    suite: str = bounded('libero_object', choices=SUITES)
    tasks: tuple[int, ...] = bounded((), minimum=0, doc='indices in the suite; empty: all')
    init_states: int = bounded(10, minimum=1, doc='official initial states, from the first')
    assets: str = bounded('builtin', choices=ASSET_CHOICES)
    seed: int = bounded(0, minimum=0)


@dataclass(frozen=True)
class AblationConfig:
    """All but the base and the rows."""

    output: str = bounded('out/ablation', doc='folder of all rows and tables; resumed when there')
    processes: int = bounded(2, minimum=1, doc='rows at the same time, one core each')
    tokens_per_s: float = bounded(4000.0, minimum=1.0,
                                  doc='of training in one process, until a row was measured')
    seconds_per_episode: float = bounded(15.0, minimum=0.0, doc='until a row was measured')
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    evaluation: EpisodesConfig = field(default_factory=EpisodesConfig)

    def __post_init__(self) -> None:
        """Check every value."""
        check(self)

    @property
    def tasks(self) -> tuple[int, ...]:
        """Indices of the tasks that every row plays."""
        return self.evaluation.tasks or tuple(range(len(suite_tasks(self.evaluation.suite))))

    @property
    def num_episodes(self) -> int:
        """Episodes that every row plays."""
        return len(self.tasks) * self.evaluation.init_states


@dataclass(frozen=True)
class Row:
    """One row of the tables."""

    name: str  # also its folder
    title: str
    paper: str | None  # key of PAPER
    stages: tuple[TrainConfig, ...]  # one after the other; each but the first starts from the last

    @property
    def final(self) -> TrainConfig:
        """The stage whose checkpoint is evaluated."""
        return self.stages[-1]


@dataclass(frozen=True)
class Plan:
    """Everything that is to be trained and evaluated."""

    config: AblationConfig
    rows: tuple[Row, ...]

    @property
    def output(self) -> Path:
        """Folder of rows and tables."""
        return Path(self.config.output)


def load_plan(path: str | Path, only: Sequence[str] | None = None) -> Plan:
    """Read an ablation YAML.

    :param only: names of the rows to keep, in this order; None keeps all.
    Raises ConfigError for what it does not know, lacks or cannot use, and for unknown names.
    """
    content = dict(read_yaml(path))
    base = _section(content.pop('base', None), f'{path}: base')
    rows = _section(content.pop('rows', None), f'{path}: rows')
    config = from_mapping(AblationConfig, content, where=str(path))
    make_jobs(config.evaluation.suite, config.tasks, range(config.evaluation.init_states))
    if nameless := [name for name in rows if not isinstance(name, str)]:
        raise ConfigError(f'{path}: the name of row {nameless[0]!r} is no text; put it in quotes')
    missing = [name for name in only or () if name not in rows]
    if missing or not rows:
        raise ConfigError(f'{path}: no row {", ".join(map(repr, missing))}; the rows are '
                          f'{", ".join(rows) or "none: give some"}')
    return Plan(config, tuple(_row(name, rows[name], base, config, f'{path}: row {name}')
                              for name in only or rows))


def _row(name: str, entries: Any, base: Mapping[str, Any], config: AblationConfig, where: str
         ) -> Row:
    entries = _section(entries, where)
    unknown = [key for key in entries if key not in _ROW_KEYS]
    if unknown:
        raise ConfigError(f'{where}: unknown key {unknown[0]!r}; a row has '
                          f'{", ".join(_ROW_KEYS)}')
    paper = entries.get('paper')
    if paper is not None and paper not in PAPER:
        raise ConfigError(f'{where}: paper must be one of {", ".join(PAPER)}, got {paper!r}')
    changes = [_section(entries.get(key) or {}, f'{where}: {key}')
               for key in ('pretrain', 'set') if key == 'set' or key in entries]
    folder = Path(config.output) / ROWS / name
    stages: list[TrainConfig] = []
    for number, change in enumerate(changes):
        fixed: dict[str, Any] = {'run.output': str(folder / f'stage{number}')}
        if stages:
            fixed['model.init_from'] = str(Path(stages[-1].run.output) / 'final')
        stages.append(_stage(base, change, fixed, config.scale, where))
    return Row(name, str(entries.get('title', name)), paper, tuple(stages))


def _stage(base: Mapping[str, Any], change: Mapping[str, Any], fixed: Mapping[str, Any],
           scale: ScaleConfig, where: str) -> TrainConfig:
    """Return the base with the changes, sized by the scale."""
    run = base.get('run') or {}
    if given := [name for name in fixed if name in change] or ['run.output'] * ('output' in run):
        raise ConfigError(f'{where}: {given[0]} follows from the row, leave it out')
    complete = {**base, 'run': {**run, 'output': fixed['run.output']}}
    flat = flatten(from_mapping(TrainConfig, complete, where=where))
    flat |= change
    flat |= fixed
    unflatten(TrainConfig, flat, where=where)  # so that what is scaled below is of its type
    for name in _PER_SCALED_STEP:
        flat[name] = max(1 if name.startswith('run.') else 0, round(flat[name] * scale.steps))
    flat['data.batch_size'] = max(1, round(flat['data.batch_size'] * scale.batch))
    return unflatten(TrainConfig, flat, where=where)


def _section(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f'{where} must be a section with keys of its own, got {value!r}')
    return value


def tokens_per_step(config: TrainConfig, store: TokenStore) -> int:
    """Return about how many tokens a batch has; each branch is padded for itself."""
    data, (rows, columns) = config.data, store.codes.shape[1:]
    if data.length is not None:
        return data.batch_size * data.length
    image, action = rows * (columns + 1) + 4, 9  # tokens of one block
    opening, separator = 1 + _TEXT_TOKENS, 1
    video = opening + image + separator + data.world_rounds * (image + separator)
    world = (video + data.world_rounds * (data.world_stride or 1) * action
             + (data.world_rounds - 1) * separator)
    lengths: dict[str, int] = {
        'action': (opening + data.history_length * (1 + data.wrist) * image
                   + data.state * (STATE_DIM + 2)
                   + separator + data.horizon * action + separator),
        'world': world, 'video': video}
    first, *others = (lengths[branch] for branch in data.branches)
    if not others:
        return data.batch_size * first
    share = data.world_share
    if share is None:
        share = len(others) / len(data.branches)
    return round(data.batch_size * ((1 - share) * first + share * sum(others) / len(others)))
