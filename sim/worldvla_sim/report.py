# SPDX-License-Identifier: Apache-2.0
"""One HTML page of evaluations: `python -m worldvla_sim.report a.json b.json --out report.html`.

It stands alone: pictures are inside; only the links to videos lead out of it. Results that differ
in the suite alone make one row, beside the published rows.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import html
import os
from pathlib import Path
import sys
from typing import Any
from urllib.parse import quote

from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_ros.whole_files import try_writing, write_whole
from worldvla_sim.baselines import BASELINES, EPISODES
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.report_pictures import Bar, success_plot, video_strip
from worldvla_sim.results import WITH_FIXTURES, Results, moved, pictures_of, wilson_interval
from worldvla_sim.runner import with_newer_settings
from worldvla_sim.tasks import SUITES

MAX_STRIPS = 60  # pictures of failures; the other failures are links alone
_STYLE = '''
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; } h3 { font-size: 1.05em; }
table { border-collapse: collapse; margin: .6em 0; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: left;
         vertical-align: top; }
th { border-bottom: 2px solid #888; } .number { text-align: right; white-space: nowrap; }
.ours td:first-child { border-left: 4px solid #2a6fb0; } .published { color: #666; }
.small { font-size: .85em; color: #555; } .total td { font-weight: 600; }
code { background: #f4f4f4; padding: .1em .3em; } img { max-width: 100%; }
'''


@dataclass(frozen=True)
class Run:
    """Results that differ in the suite alone."""

    label: str
    results: tuple[Results, ...]

    @property
    def records(self) -> list[EpisodeRecord]:
        """All episodes."""
        return [record for one in self.results for record in one.records]

    def of_suite(self, suite: str) -> list[EpisodeRecord]:
        """The episodes of a suite."""
        return [record for record in self.records if record.suite == suite]


@dataclass(frozen=True)
class Tally:
    """Successes among the episodes that ran; errors apart."""

    successes: int
    episodes: int
    errors: int = 0

    @classmethod
    def of(cls, records: Iterable[EpisodeRecord]) -> 'Tally':
        """Count records."""
        records = list(records)
        ran = [record for record in records if record.error is None]
        return cls(sum(record.success for record in ran), len(ran), len(records) - len(ran))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)

    def cells(self) -> str:
        """Return three cells: success, rate with interval, errors."""
        low, high = self.interval
        rate = (f'{self.successes / self.episodes:.1%} [{low:.0%}, {high:.0%}]'
                if self.episodes else '-')
        return (_cell(f'{self.successes}/{self.episodes}', 'number') + _cell(rate, 'number')
                + _cell(self.errors or '', 'number'))


def write_report(results: Sequence[Results], path: Path) -> None:
    """Write the page whole or not at all.

    :raises ConfigError: it cannot be written, or an episode of a run is there twice.
    """
    page = render_report(results, path.parent)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda draft: draft.write_text(page))


def require_writable(path: Path) -> None:
    """Raise ConfigError where a report cannot be written, as long as that costs no episode."""
    with _writing(path):
        try_writing(path.parent)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f'cannot write the report to {path}: {error}') from error


def render_report(results: Sequence[Results], folder: Path) -> str:
    """Return the page; ConfigError if an episode of a run is there twice.

    :param folder: where it will lie; links to videos start there.
    """
    runs = group_runs(results)
    body = [_heading(runs), _comparison(runs), *(_run_section(run) for run in runs),
            _failures(runs, folder), _errors(runs), _origin(runs)]
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            f'<title>LIBERO evaluation</title><style>{_STYLE}</style></head>\n<body>\n'
            + '\n'.join(part for part in body if part) + '\n</body></html>\n')


def group_runs(results: Sequence[Results]) -> list[Run]:
    """Put results that differ in the suite alone together, in the order of their appearance.

    Results of a suite without fixtures join those that say more, namely how theirs were placed.

    :raises ConfigError: an episode of a run is there twice.
    """
    keys = [_telling(one.settings) for one in results]
    groups: dict[frozenset[tuple[str, str]], list[Results]] = {}
    for key, one in zip(keys, results, strict=True):
        groups.setdefault(next((other for other in keys if key < other), key), []).append(one)
    for group in groups.values():
        _require_each_episode_once(group)
    return [Run(_label(dict(sorted(key)), [dict(other) for other in groups]), tuple(group))
            for key, group in groups.items()]


def _telling(settings: dict[str, Any]) -> frozenset[tuple[str, str]]:
    """Return the settings that tell runs apart."""
    hidden = {'suite'} if settings.get('suite') in WITH_FIXTURES else {'suite', 'fixtures'}
    if settings.get('checkpoint'):  # says it by its fingerprints, however its folder is written
        hidden.add('policy')
    return frozenset((name, str(value)) for name, value in with_newer_settings(settings).items()
                     if name not in hidden)


def _require_each_episode_once(run: Iterable[Results]) -> None:
    """Raise ConfigError if results of one run overlap: they would count an episode twice."""
    seen: dict[tuple[str, int, int], Results] = {}
    for one in run:
        for record in one.records:
            episode = (record.suite, record.task, record.init_state)
            if episode in seen:
                raise ConfigError(
                    f'{record.suite} task {record.task}, initial state {record.init_state} is in '
                    f'{seen[episode].path} and in {one.path}, with the same settings; give each '
                    f'episode once')
            seen[episode] = one


def _label(settings: dict[str, str], every: Sequence[dict[str, str]]) -> str:
    """Return the policy, and the settings that tell it from other runs of the same policy."""
    def policy(settings: dict[str, str]) -> str:
        return settings.get('checkpoint') or settings.get('policy', 'unknown')
    alike = [other for other in every if policy(other) == policy(settings)]
    telling = [f'{name} {value}' for name, value in settings.items()
               if any(other.get(name, value) != value for other in alike)]
    return ', '.join([policy(settings), *telling])


def _cell(content: object, kind: str = '') -> str:
    return f'<td{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{_text(content)}</td>'


def _text(content: object) -> str:
    return html.escape(str(content))


def _table(header: Sequence[str], rows: Iterable[str]) -> str:
    head = ''.join(f'<th>{_text(name)}</th>' for name in header)
    return f'<table><tr>{head}</tr>\n' + '\n'.join(rows) + '</table>'


def _heading(runs: Sequence[Run]) -> str:
    records = [record for run in runs for record in run.records]
    tally = Tally.of(records)
    unfinished = sum(not one.complete for run in runs for one in run.results)
    warning = (f'<p><b>{unfinished} of the results are not complete</b>: episodes are '
               f'missing.</p>' if unfinished else '')
    return (f'<h1>LIBERO evaluation</h1>{warning}<p>{tally.episodes} episodes ran, '
            f'{tally.successes} succeeded; {tally.errors} ended in an error and are counted '
            f'nowhere else. Intervals are Wilson\'s at 95 %.</p>')


def _comparison(runs: Sequence[Run]) -> str:
    """Return the table and the plot with the published rows."""
    rows, bars = [], []
    for run in runs:
        cells = [_cell(run.label), *(map(_cell, _conditions(run)))]
        for suite in SUITES:
            tally = Tally.of(run.of_suite(suite))
            cells.append(_rate_cell(tally))
            if tally.episodes:
                bars.append(Bar(run.label, suite, tally.successes / tally.episodes,
                                tally.interval, ours=True))
        rows.append(f'<tr class="ours">{"".join(cells)}</tr>')
    for row in BASELINES:
        cells = list(map(_cell, (row.name, row.assets, row.checkpoint, row.inputs, row.mode)))
        for suite, rate in zip(SUITES, row.rates, strict=True):
            tally = Tally(row.successes(suite), EPISODES)
            cells.append(_rate_cell(tally))
            bars.append(Bar(row.name, suite, rate, tally.interval, ours=False))
        rows.append(f'<tr class="published">{"".join(cells)}</tr>')
    table = _table(['policy', 'assets', 'checkpoint', 'sees', 'mode', *SUITES], rows)
    return (f'<h2>Beside the published rates</h2>{table}<p class="small">Published: from the '
            f'public READMEs; intervals for {EPISODES} episodes per suite. Built-in pictures are '
            f'not LIBERO\'s, so rates on them do not rank a policy against published ones.</p>'
            f'<p>{_image(success_plot(bars), "success rate of each suite with intervals")}</p>')


def _conditions(run: Run) -> tuple[str, str, str, str]:
    """Return assets, checkpoint, inputs and mode of a run, as its episodes that ran say."""
    def each(values: Iterable[str]) -> str:
        return ', '.join(sorted(set(values) - {''})) or 'unknown'
    records = [record for record in run.records if record.error is None]
    mode = each((f'{one.mode} over ROS' if one.over == 'ros' else f'{one.mode} in one process')
                + moved(one) for one in records)
    return (each(one.assets for one in records), each(one.policy for one in records),
            each(f'{pictures_of(one)}, {one.robot} robot' for one in records), mode)


def _rate_cell(tally: Tally) -> str:
    if not tally.episodes:
        return _cell('-', 'number')
    low, high = tally.interval
    return (f'<td class="number"><b>{tally.successes / tally.episodes:.1%}</b><br/>'
            f'<span class="small">[{low:.0%}, {high:.0%}] of {tally.episodes}</span></td>')


def _run_section(run: Run) -> str:
    parts = [f'<h2>{_text(run.label)}</h2>']
    for suite in sorted({record.suite for record in run.records}, key=SUITES.index):
        records = run.of_suite(suite)
        rows = [_task_row(task, [one for one in records if one.task == task])
                for task in sorted({record.task for record in records})]
        rows.append(f'<tr class="total"><td></td>{_cell("all tasks")}{Tally.of(records).cells()}'
                    f'{_effort_cells(records)}</tr>')
        header = ['task', 'instruction', 'success', 'rate', 'errors', 'steps of successes',
                  'seconds per episode']
        parts.append(f'<h3>{suite}</h3>{_table(header, rows)}')
    return '\n'.join(parts)


def _task_row(task: int, records: Sequence[EpisodeRecord]) -> str:
    return (f'<tr>{_cell(task, "number")}{_cell(records[0].instruction)}'
            f'{Tally.of(records).cells()}{_effort_cells(records)}</tr>')


def _effort_cells(records: Sequence[EpisodeRecord]) -> str:
    """Return two cells: mean steps of the successes, mean duration."""
    won = [record.steps for record in records if record.success]
    ran = [record.duration for record in records if record.error is None]
    return (_cell(f'{sum(won) / len(won):.0f}' if won else '-', 'number')
            + _cell(f'{sum(ran) / len(ran):.1f}' if ran else '-', 'number'))


def _failures(runs: Sequence[Run], folder: Path) -> str:
    """Return the failed episodes, with pictures where a video was kept."""
    rows, strips = [], 0
    for run in runs:
        for record in run.records:
            if record.success or record.error is not None:
                continue
            shown = ''
            if record.video is not None and Path(record.video).is_file():
                strip = video_strip(Path(record.video)) if strips < MAX_STRIPS else None
                strips += strip is not None
                target = _text(quote(os.path.relpath(record.video, folder)))
                shown = (f'<a href="{target}">'
                         + (_image(strip, 'frames of the episode') if strip else 'video')
                         + '</a>')
            rows.append(f'<tr>{_cell(run.label)}{_cell(record.suite)}'
                        f'{_cell(record.task, "number")}{_cell(record.init_state, "number")}'
                        f'{_cell(record.instruction)}<td>{shown}</td></tr>')
    if not rows:
        return ''
    header = ['policy', 'suite', 'task', 'initial state', 'instruction', 'video']
    return f'<h2>Failures</h2>{_table(header, rows)}'


def _errors(runs: Sequence[Run]) -> str:
    rows = [f'<tr>{_cell(run.label)}{_cell(record.suite)}{_cell(record.task, "number")}'
            f'{_cell(record.init_state, "number")}{_cell(record.error)}</tr>'
            for run in runs for record in run.records if record.error is not None]
    header = ['policy', 'suite', 'task', 'initial state', 'error']
    return f'<h2>Errors</h2>{_table(header, rows)}' if rows else ''


def _origin(runs: Sequence[Run]) -> str:
    """Return how the numbers were made."""
    parts = ['<h2>How it was made</h2>']
    for run in runs:
        for one in run.results:
            parts += [_origin_of({**one.settings, **part}) for part in one.runs or [{}]]
    return '\n'.join(parts)


def _origin_of(facts: dict[str, Any]) -> str:
    versions = facts.pop('versions', {})
    command = facts.pop('command', 'unknown')
    listed = [*facts.items(), *((f'version of {name}', version)
                                for name, version in versions.items())]
    rows = [f'<tr>{_cell(name)}{_cell(value)}</tr>' for name, value in listed]
    return (f'<p><code>{_text(command)}</code></p><details><summary>settings and '
            f'machine</summary>{_table(["setting", "value"], rows)}</details>')


def _image(uri: str, description: str) -> str:
    return f'<img src="{uri}" alt="{_text(description)}"/>'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog='python -m worldvla_sim.report',
                                     description='Write one HTML page of result files.')
    parser.add_argument('results', type=Path, nargs='+', help='files of evaluate --json')
    parser.add_argument('--out', type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        write_report([Results.load(path) for path in options.results], options.out)
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'wrote {options.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
