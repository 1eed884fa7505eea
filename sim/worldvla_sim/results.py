# SPDX-License-Identifier: Apache-2.0
"""Result files of an evaluation: written whole after every episode, read back, summed up."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
import json
import math
import os
from pathlib import Path
from typing import Any

from worldvla_ros.errors import ConfigError
from worldvla_sim.episodes import EpisodeRecord

FORMAT = 'worldvla_ros/evaluation/1'
_Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass
class Results:
    """Settings and episode records of one evaluation."""

    settings: dict[str, Any]
    records: list[EpisodeRecord] = field(default_factory=list)
    complete: bool = False  # False while episodes are missing, e.g. after Ctrl-C

    def save(self, path: Path) -> None:
        """Write JSON beside the target and rename it, so that readers never see half a file."""
        content = {'format': FORMAT, 'settings': self.settings, 'complete': self.complete,
                   'records': [asdict(record) for record in self.records]}
        temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        try:
            temporary.write_text(json.dumps(content, indent=1) + '\n')
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ConfigError(f'cannot write results to {path}: {error}') from error

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
            return cls(content['settings'], records, content['complete'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{path} is not a result file of this program ({error!r}); delete '
                              f'it or name another') from error


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
    assets = ', '.join(sorted({record.assets for record in every if record.assets})) or 'no'
    lines.append(_row('all', f'({assets} assets; steps: mean of the successes)', every))
    return '\n'.join(lines)
