# SPDX-License-Identifier: Apache-2.0
"""Ship a checkpoint that is better: `python -m worldvla_sim.promote NEW --evaluation NEW.json`.

A shipped folder holds its own evaluations, one file for each suite. A new checkpoint takes its
place, with its evaluations, when it succeeds more often in the same episodes under the same
settings, and in no suite so much less often that it would hardly be chance. The card stays, with
its pictures: text, numbers and pictures are for a person to make anew, and a test compares its
totals with the evaluations.

Choose between candidates on other initial states, and bring only the one that is chosen: the best
of many on the same episodes looks better there than it is.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
import re
import shutil
import sys
import tempfile

from scipy.stats import binomtest

from worldvla_ros.config import differences
from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_sim.commands import EXIT_OK, EXIT_USAGE
from worldvla_sim.policies import checkpoint_folder, checkpoint_name
from worldvla_sim.results import Results
from worldvla_sim.runner import as_of_today, with_newer_settings

_UNLIKELY = 0.05  # one-sided, of `_chance`
EVALUATIONS, CARD_FILE = 'evaluation', 'README.md'
_OF_THE_POLICY = ('policy', 'checkpoint')  # settings in which the two evaluations differ
_NOT_SHIPPED = ('trainer.pt', EVALUATIONS, CARD_FILE)


def shipped_evidence(folder: Path) -> dict[str, Results]:
    """Read the evaluations, by suite, that a shipped checkpoint holds; ConfigError without any."""
    files = sorted((folder / EVALUATIONS).glob('*.json'))
    if not files:
        raise ConfigError(f'{folder / EVALUATIONS} has no result file, so nothing can be shown to '
                          'be better; evaluate the shipped checkpoint into it')
    return evidence(files, folder)


def evidence(files: Iterable[Path], folder: Path) -> dict[str, Results]:
    """Read the evaluations, by suite, of the checkpoint in `folder`.

    :raises ConfigError: one is of other weights, not complete, of two number formats, or has
        errors or episodes twice; or two are of the same suite.
    """
    there, by_suite = checkpoint_name(str(folder.absolute())), dict[str, Results]()
    for file in files:
        results = Results.load(file)
        suite, evaluated = results.settings.get('suite', ''), results.settings.get('checkpoint')
        episodes = [(record.task, record.init_state) for record in results.records]
        errors = sum(record.error is not None for record in results.records)
        if evaluated != there:
            raise ConfigError(f'{file} is the evaluation of {evaluated!r}, and {folder} holds '
                              f'{there!r}; evaluate that one')
        if (not results.complete or not episodes or errors
                or len(set(episodes)) < len(episodes)):
            raise ConfigError(f'{file} is no evidence: {len(set(episodes))} episodes, '
                              f'{"" if results.complete else "not "}complete, {errors} errors; go '
                              f'on with `evaluate --json {file} --resume`')
        played = sorted({str(record.policy) for record in results.records})
        if len(played) > 1:
            raise ConfigError(f'{file} was resumed on a machine with another number format, in '
                              f'which another policy plays: {"; ".join(played)}; evaluate anew '
                              f'on one')
        if suite in by_suite:
            raise ConfigError(f'{file} is of {suite}, as another file is; give one for each suite')
        by_suite[suite] = results
    return by_suite


def successes(results: Results) -> int:
    """Return the number of episodes that succeeded."""
    return sum(record.success for record in results.records)


def totals(by_suite: Mapping[str, Results]) -> str:
    """Return the successes of each suite in words."""
    return ', '.join(f'{successes(results)} of {len(results.records)} of {suite}'
                     for suite, results in sorted(by_suite.items()))


def require_better(new: Mapping[str, Results], shipped: Mapping[str, Results]) -> None:
    """Raise ConfigError unless `new` is better than `shipped` in total, and nowhere clearly worse.

    Two checkpoints that are equally good in a suite lose some episodes to each other, so that one
    of them is an episode behind there by chance; see `_chance`.
    """
    if missing := sorted(shipped.keys() - new.keys()):
        raise ConfigError(f'the new checkpoint has no evaluation of {", ".join(missing)}, the '
                          'shipped one has; evaluate it there, too')
    for suite, before in shipped.items():
        _require_alike(new[suite], before)
    won, had = (sum(successes(results[suite]) for suite in shipped) for results in (new, shipped))
    worse = [suite for suite, before in shipped.items() if _chance(new[suite], before) < _UNLIKELY]
    if won < had or (won == had and new.keys() == shipped.keys()) or worse:
        raise ConfigError(f'not better{" in " if worse else ""}{" and ".join(worse)}: '
                          f'{totals(new)} new, {totals(shipped)} shipped; the shipped checkpoint '
                          'stays')


def _chance(new: Results, shipped: Results) -> float:
    """Return how probable so many lost episodes are if the new one is as good (sign test).

    Of the same episodes, so only those count in which one succeeded and the other did not.
    """
    before = {(record.task, record.init_state): record.success for record in shipped.records}
    changes = [record.success for record in new.records
               if record.success != before[record.task, record.init_state]]
    lost = changes.count(False)
    return float(binomtest(lost, len(changes), alternative='greater').pvalue) if lost else 1.0


def _require_alike(new: Results, shipped: Results) -> None:
    """Raise ConfigError unless the same episodes were played under the same settings."""
    was = with_newer_settings(shipped.settings)
    different = differences(was, with_newer_settings(new.settings), _OF_THE_POLICY)
    played, before = ({(record.task, record.init_state) for record in results.records}
                      for results in (new, shipped))
    if played != before:
        different.append(f'episodes: {len(played - before)} new alone, {len(before - played)} '
                         f'shipped alone')
    if different:
        advice = (f'{shipped.path} is older than this program: delete it, and evaluate the '
                  'shipped checkpoint anew into it' if was != as_of_today(was) else
                  'evaluate the new checkpoint as the shipped one was')
        raise ConfigError(f'the evaluations do not compare ({"; ".join(different)}); {advice}')


def _of_the_card(shipped: Path) -> list[str]:
    """Return the names of the card and of the pictures beside it that it shows."""
    shown = re.findall(r'!\[[^\]]*\]\(([^)/]+)\)', (shipped / CARD_FILE).read_text())
    return [CARD_FILE, *(name for name in shown if (shipped / name).is_file())]


def promote(folder: Path, evaluations: Sequence[Path], shipped: Path) -> dict[str, Results]:
    """Put a better checkpoint in the place of the shipped one, whole or not at all.

    :param folder: the new checkpoint. :param evaluations: its files of `evaluate --json`.
    :raises ConfigError: it is not shown to be better, or cannot be copied.
    """
    results = evidence(evaluations, folder)
    require_better(results, shipped_evidence(shipped))
    try:
        with tempfile.TemporaryDirectory(prefix='.draft-', dir=shipped.parent) as draft:
            new, old = Path(draft, 'new'), Path(draft, 'old')
            shutil.copytree(folder, new, ignore=shutil.ignore_patterns(*_NOT_SHIPPED))
            for suite, one in results.items():
                one.save(new / EVALUATIONS / f'{suite}.json')
            for name in _of_the_card(shipped):
                shutil.copyfile(shipped / name, new / name)
            shipped.rename(old)
            try:
                new.rename(shipped)
            except BaseException:  # Ctrl-C, too: the draft is about to be deleted
                old.rename(shipped)
                raise
    except OSError as error:  # shutil.Error, too
        raise ConfigError(f'cannot replace {shipped}: {error}; it is as it was') from error
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the new checkpoint ships now, 2 when the shipped one stays."""
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.promote',
        description='Ship a checkpoint that succeeds more often than the shipped one.')
    parser.add_argument('folder', type=Path, metavar='NEW', help='folder of the new checkpoint')
    parser.add_argument('--evaluation', type=Path, required=True, nargs='+', metavar='JSON',
                        help='of the new checkpoint, from evaluate --json, one for each suite')
    parser.add_argument('--shipped', default='worldvla-mini',
                        help='name or folder that is replaced (default: worldvla-mini)')
    options = parser.parse_args(argv)
    try:
        shipped = checkpoint_folder(options.shipped)
        results = promote(options.folder, options.evaluation, shipped)
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_USAGE
    print(f'{shipped} succeeds in {totals(results)} now; make its {CARD_FILE} anew, and the '
          'pictures in it')
    return EXIT_OK


if __name__ == '__main__':
    sys.exit(main())
