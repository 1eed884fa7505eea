# SPDX-License-Identifier: Apache-2.0
"""Result files of an evaluation: written whole after every episode, read back, summed up."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
from dataclasses import asdict, dataclass, field, fields
import datetime
import importlib.metadata
import json
import math
import os
from pathlib import Path
import platform
import re
import shlex
import subprocess
import sys
from typing import Any

from worldvla_ros.errors import ConfigError
from worldvla_ros.file_lock import hold_lock
from worldvla_ros.whole_files import write_whole
from worldvla_sim.episodes import EpisodeRecord

FORMAT = 'worldvla_ros/evaluation/1'
_PACKAGES = ('torch', 'numpy', 'mujoco', 'robosuite', 'hf-libero', 'rclpy', 'ros-rclpy')
_FIRST_PACK = '1.0'  # version of the built-in assets in files that do not say theirs
_FIRST_FIXTURES = 'of the seed alone'  # how they were placed in files that do not say
WITH_FIXTURES = ('libero_spatial', 'libero_goal', 'libero_10')  # suites
_Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass
class Results:
    """Settings and episode records of one evaluation."""

    settings: dict[str, Any]
    records: list[EpisodeRecord] = field(default_factory=list)
    complete: bool = False  # False while episodes are missing, e.g. after Ctrl-C
    runs: list[dict[str, Any]] = field(default_factory=list)
    """What `describe_run` says of each run that played some of the episodes, oldest first."""
    path: Path | None = field(default=None, compare=False)  # of the file it was read from

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all; ConfigError when it cannot be written."""
        content = {'format': FORMAT, 'settings': self.settings, 'runs': self.runs,
                   'complete': self.complete,
                   'records': [asdict(record) for record in self.records]}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda draft: draft.write_text(json.dumps(content, indent=1) + '\n'))
        except OSError as error:  # its own text names a draft or a folder above
            raise ConfigError(f'cannot write results to {path}: '
                              f'{error.strerror or error}') from error

    @classmethod
    def load(cls, path: Path) -> 'Results':
        """Read a result file.

        :raises ConfigError: not such a file; says what is wrong with it.
        """
        try:
            content = json.loads(path.read_text())
            known = {item.name for item in fields(EpisodeRecord)}
            records = [EpisodeRecord(**{key: value for key, value in record.items()
                                        if key in known}) for record in content['records']]
            settings = content['settings']
            if settings.get('assets') == 'builtin':
                settings.setdefault('pack_version', _FIRST_PACK)
            if settings.get('suite') in WITH_FIXTURES:
                settings.setdefault('fixtures', _FIRST_FIXTURES)
            older = [content['run']] if content.get('run') else []  # one for the whole file
            runs = [dict(run) for run in content.get('runs', older)]
            return cls(settings, records, content['complete'], runs, path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f'{path} is not a result file of this program ({error!r}); delete '
                              f'it or name another') from error


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep other programs that write a list of results out of its file: each has its own in mind.

    :raises ConfigError: another one has it, or its folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            owner = hold_lock(path.with_name(f'.{path.name}.lock'), stack)
        except OSError as error:
            raise ConfigError(f'cannot write {path}: {error.strerror or error}') from error
        if owner:
            raise ConfigError(f'another program writes {path} ({owner}); wait for it, or name '
                              f'another file')
        yield


def describe_run() -> dict[str, Any]:
    """Return the command, the time, the machine and the versions that results come from."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    models = re.findall(r'^model name\s*:\s*(.+)$', Path('/proc/cpuinfo').read_text(), re.M)
    return {'command': shlex.join(['python', *_program(), *sys.argv[1:]]),
            'began': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'machine': f'{os.cpu_count()} cores, {models[0] if models else platform.machine()}, '
                       f'{platform.system()} {platform.release()}',
            'python': platform.python_version(), 'versions': versions, 'commit': _commit()}


def _program() -> list[str]:
    """Return how the running program is named to Python."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    return ['-m', spec.name] if spec else sys.argv[:1]


def _commit() -> str:
    """Return the commit of the source tree, '' outside of one or where there is no git.

    An installation may lie within a repository that is another one's: it does not know this file.
    """
    here = Path(__file__)
    try:
        tracked = subprocess.run(['git', '-C', str(here.parent), 'ls-files', '--error-unmatch',
                                  here.name], capture_output=True, check=False)
        done = subprocess.run(['git', '-C', str(here.parent), 'describe', '--always', '--dirty'],
                              capture_output=True, text=True, check=False)
    except OSError:
        return ''
    return done.stdout.strip() if tracked.returncode == 0 else ''


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return the 95 % score interval of a success rate (Wilson 1927); (0, 1) without episodes."""
    if episodes == 0:
        return 0.0, 1.0
    rate, z2 = successes / episodes, _Z95 ** 2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = _Z95 / (1 + z2 / episodes) * math.sqrt(
        rate * (1 - rate) / episodes + z2 / (4 * episodes ** 2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _row(label: str, title: str, records: list[EpisodeRecord]) -> str:
    ran = [record for record in records if record.error is None]
    won = [record for record in ran if record.success]
    low, high = wilson_interval(len(won), len(ran))
    rate = f'{len(won) / len(ran):6.1%}' if ran else '     -'
    steps = f'{sum(record.steps for record in won) / len(won):5.0f}' if won else '    -'
    return (f'{label:>5} {len(won):4d}/{len(ran):<4d} {rate}  [{low:4.0%}, {high:4.0%}] {steps}'
            f' {len(records) - len(ran):6d}  {title}')


def summary_table(records: Iterable[EpisodeRecord]) -> str:
    """Return successes per task with 95 % intervals; errors are counted apart."""
    by_task: dict[tuple[str, int], list[EpisodeRecord]] = {}
    for record in records:
        by_task.setdefault((record.suite, record.task), []).append(record)
    lines = [' task   success    rate  95 % interval steps errors']
    lines += [_row(str(task), group[0].instruction, group)
              for (_, task), group in sorted(by_task.items())]
    every = [record for group in by_task.values() for record in group]
    lines.append(_row('all', '(steps: mean of the successes)', every))
    return '\n'.join([*lines, conditions(every)])


def conditions(records: Iterable[EpisodeRecord]) -> str:
    """Return in one line what the episodes that ran hold for: suite, policy, assets, robot, mode.

    An error is of no condition: its record has what was asked for, not what was there.
    """
    records = [record for record in records if record.error is None]

    def each(describe: Callable[[EpisodeRecord], str]) -> str:
        return ', '.join(sorted({describe(record) for record in records} - {''})) or 'unknown'
    return (f'{each(lambda one: one.suite)}; {each(lambda one: one.policy)}; '
            f'{each(lambda one: one.assets)} assets, {each(lambda one: one.robot)} robot, '
            f'{each(pictures_of)}; {each(lambda one: one.mode)} over '
            f'{each(lambda one: one.over + moved(one))}')


def moved(record: EpisodeRecord) -> str:
    """Say how far things were moved from the official initial state."""
    return f', things moved by up to {100 * record.scatter:g} cm' if record.scatter else ''


def pictures_of(record: EpisodeRecord) -> str:
    """Say which pictures the policy saw, and what else it read."""
    pictures = f'{record.image_size} px' if record.image_size else 'no pictures'
    return ' + '.join([pictures, *filter(None, [record.also_reads])])
