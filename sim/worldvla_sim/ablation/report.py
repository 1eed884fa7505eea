# SPDX-License-Identifier: Apache-2.0
"""Tables and a picture of an ablation: success rates with intervals beside the paper's."""

from collections.abc import Sequence
import csv
from dataclasses import dataclass
import io
import math
from pathlib import Path

from worldvla_sim.ablation.failures import AblationError
from worldvla_sim.ablation.paper import LONG_NAMES, PAPER
from worldvla_sim.ablation.plan import Plan, Row
from worldvla_sim.ablation.run import Outcome
from worldvla_sim.results import wilson_interval

HEADINGS = ('row', 'success', 'rate %', '95 % interval', 'errors', 'action CE', 'action acc %',
            'world CE', 'steps', 'paper %', 'paper avg %')


@dataclass(frozen=True)
class Line:
    """The numbers of one row of the tables."""

    title: str
    successes: int
    episodes: int  # that ran to their end
    errors: int
    held_out: dict[str, float]
    steps: tuple[int, ...]  # of the optimizer, stage by stage
    paper: float | None  # [%] in `paper_suite`
    paper_suite: str  # 'goal', ...
    paper_average: float | None  # [%] over the four suites

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)

    def cells(self, suite: str) -> tuple[str, ...]:
        """Return the texts below HEADINGS; numbers of another suite say of which."""
        rate = f'{100 * self.successes / self.episodes:.1f}' if self.episodes else '-'
        interval = '{:.0f} to {:.0f}'.format(*(100 * end for end in self.interval))
        other = '' if self.paper_suite == suite else f' ({self.paper_suite})'
        return (self.title, f'{self.successes}/{self.episodes}', rate,
                interval if self.episodes else '-', str(self.errors),
                _number(self.held_out.get('action')),
                _number(self.held_out.get('action_accuracy'), 100, 1),
                _number(self.held_out.get('world')), '+'.join(map(str, self.steps)),
                _number(self.paper, digits=1) + other * (self.paper is not None),
                _number(self.paper_average, digits=1))


def lines_of(outcomes: Sequence[Outcome], suite: str) -> list[Line]:
    """Return the lines of the tables, in the order of the plan."""
    return [_line(one, LONG_NAMES[suite]) for one in outcomes]


def _line(one: Outcome, suite: str) -> Line:
    published = PAPER[one.row.paper] if one.row.paper else {}
    shown = suite if suite in published or not published else next(iter(published))
    ran = [record for record in one.records if record.error is None]
    return Line(one.row.title, sum(record.success for record in ran), len(ran),
                len(one.records) - len(ran), one.held_out,
                tuple(stage.run.steps for stage in one.row.stages), published.get(shown), shown,
                published.get('average'))


def notes(outcomes: Sequence[Outcome], plan: Plan) -> list[str]:
    """Say what the numbers are of, and what keeps them from being the paper's."""
    episodes, base = plan.config.evaluation, plan.rows[0].final
    tasks = ', '.join(map(str, plan.config.tasks))
    said = [
        f'{episodes.suite}, tasks {tasks}, official initial states 0 to '
        f'{episodes.init_states - 1}, {episodes.assets} assets; batches of '
        f'{base.data.batch_size} samples; one training run per row, seed {base.run.seed}.',
        f'A second branch takes {_share(plan)} of each batch, so a row with it saw '
        'fewer action samples at the same number of steps.',
        'CE [nat] and accuracy: labelled tokens of held-out episodes, the true tokens before '
        'them given. They compare rows of one chunk length only.',
        f'Labels of action bins are smoothed over {base.loss.bin_smoothing:g} bins.',
        'Paper: 7B parameters, 50 episodes per task, LIBERO assets (arXiv 2506.21539).']
    said += [f'{one.row.title}: not finished. {one.error}' for one in outcomes
             if one.error is not None]
    said += [f'{one.row.title}: {len(one.records)} of {one.num_episodes} episodes played.'
             for one in outcomes if not one.finished and one.error is None]
    return said


def text_table(lines: Sequence[Line], suite: str) -> str:
    """Return the table for a terminal."""
    rows = [HEADINGS, *(line.cells(LONG_NAMES[suite]) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows)


def markdown_table(lines: Sequence[Line], suite: str) -> str:
    """Return the table in Markdown."""
    rows = [HEADINGS, ('---', *['---:'] * (len(HEADINGS) - 1)),
            *(line.cells(LONG_NAMES[suite]) for line in lines)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def csv_table(lines: Sequence[Line]) -> str:
    """Return the numbers unrounded, as comma-separated values."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(('row', 'successes', 'episodes', 'low', 'high', 'errors', 'action',
                     'action_accuracy', 'world', 'world_accuracy', 'steps', 'paper_percent',
                     'paper_suite', 'paper_average_percent'))
    for line in lines:
        measured = [line.held_out.get(name, '') for name in (
            'action', 'action_accuracy', 'world', 'world_accuracy')]
        writer.writerow((line.title, line.successes, line.episodes, *line.interval, line.errors,
                         *measured, sum(line.steps), *(
                             '' if value is None else value for value in (
                                 line.paper, line.paper_suite, line.paper_average))))
    return file.getvalue()


def draw(lines: Sequence[Line], suite: str, path: Path) -> None:
    """Draw success rates with intervals, the paper's as marks, and held-out cross entropy."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 1.5 + 0.45 * len(lines)), layout='constrained')
    success, entropy = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, line in enumerate(lines):
        if line.episodes:
            rate = line.successes / line.episodes
            low, high = line.interval
            success.barh(place, 100 * rate, color='tab:blue', height=0.6)
            success.errorbar(100 * rate, place, capsize=3, color='black', fmt='none', xerr=[
                [100 * max(0.0, rate - low)], [100 * max(0.0, high - rate)]])
        if line.paper is not None:
            success.plot(line.paper, place, 'D', color='tab:orange',
                         fillstyle='full' if line.paper_suite == LONG_NAMES[suite] else 'none')
        if math.isfinite(value := line.held_out.get('action', math.nan)):
            entropy.barh(place, value, color='tab:green', height=0.6)
    success.set(yticks=range(len(lines)), yticklabels=[line.title for line in lines],
                xlim=(0, 100), xlabel=f'success on {suite} [%], 95 % intervals\ndiamonds: paper '
                                      '(open: libero_goal)')
    success.invert_yaxis()
    entropy.set(xlabel='held-out action cross entropy [nat]')
    figure.savefig(path, dpi=100)


def write_report(outcomes: Sequence[Outcome], plan: Plan) -> str:
    """Write table.txt, table.csv, table.md and table.png; return the text."""
    suite = plan.config.evaluation.suite
    lines, said = lines_of(outcomes, suite), notes(outcomes, plan)
    text = '\n'.join([text_table(lines, suite), '', *said])
    markdown = '\n'.join([markdown_table(lines, suite), '', *(f'- {note}' for note in said)])
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
        for name, content in (('table.txt', text + '\n'), ('table.md', markdown + '\n'),
                              ('table.csv', csv_table(lines))):
            (plan.output / name).write_text(content)
        draw(lines, suite, plan.output / 'table.png')
    except OSError as error:
        raise AblationError(f'cannot write the tables to {plan.output}: {error}') from error
    return text


def dry_run_text(plan: Plan, seconds: Sequence[tuple[Row, float, float]]) -> str:
    """Return what would run, row by row, with estimates [s] of training and of episodes left."""
    shown = [f'{row.name}: {row.title}; {"+".join(str(s.run.steps) for s in row.stages)} steps, '
             f'{training / 60:.0f} min of training and {episodes / 60:.0f} min of episodes left'
             for row, training, episodes in seconds]
    total = sum(training + episodes for _, training, episodes in seconds)
    longest = max((training + episodes for _, training, episodes in seconds), default=0.0)
    wall = max(total / plan.config.processes, longest)
    return '\n'.join([*shown, f'about {wall / 60:.0f} min in {plan.config.processes} processes'])


def _share(plan: Plan) -> str:
    share = plan.rows[0].final.data.world_share
    return 'its share of all samples' if share is None else f'{share:.0%}'


def _number(value: float | None, factor: float = 1.0, digits: int = 3) -> str:
    missing = value is None or math.isnan(value)
    return '-' if missing else f'{factor * (value or 0.0):.{digits}f}'
