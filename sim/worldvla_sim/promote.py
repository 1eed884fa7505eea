# SPDX-License-Identifier: Apache-2.0
"""Ship a checkpoint that is better: `python -m worldvla_sim.promote NEW --evaluation NEW.json`.

The shipped folder holds its own evaluation. A new checkpoint takes its place, with its evaluation,
when it succeeds more often in the same episodes under the same settings. The card stays: its text
and numbers are for a person to write, and a test compares its total with the evaluation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import shutil
import sys
import tempfile

from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_sim.commands import EXIT_OK, EXIT_USAGE
from worldvla_sim.policies import checkpoint_folder, checkpoint_name
from worldvla_sim.results import Results

EVALUATION_FILE, CARD_FILE = 'evaluation.json', 'README.md'
_OF_THE_POLICY = ('policy', 'checkpoint')  # settings in which the two evaluations differ
_NOT_SHIPPED = ('trainer.pt', EVALUATION_FILE, CARD_FILE)


def evidence(file: Path, folder: Path) -> Results:
    """Read the evaluation of the checkpoint in `folder`.

    :raises ConfigError: it is of other weights, not complete, or has errors or episodes twice.
    """
    results = Results.load(file)
    evaluated, there = results.settings.get('checkpoint'), checkpoint_name(str(folder))
    episodes = [(record.task, record.init_state) for record in results.records]
    errors = sum(record.error is not None for record in results.records)
    if evaluated != there:
        raise ConfigError(f'{file} is the evaluation of {evaluated!r}, and {folder} holds '
                          f'{there!r}; evaluate that one')
    if not results.complete or not episodes or errors or len(set(episodes)) < len(episodes):
        raise ConfigError(f'{file} is no evidence: {len(set(episodes))} episodes, '
                          f'{"" if results.complete else "not "}complete, {errors} errors; go on '
                          f'with `evaluate --json {file} --resume`')
    return results


def successes(results: Results) -> int:
    """Return the number of episodes that succeeded."""
    return sum(record.success for record in results.records)


def require_better(new: Results, shipped: Results) -> None:
    """Raise ConfigError unless `new` has more successes in the same episodes, played alike."""
    different = [f'{name}: {shipped.settings.get(name)!r} shipped, {new.settings.get(name)!r} new'
                 for name in sorted(new.settings.keys() | shipped.settings.keys())
                 if name not in _OF_THE_POLICY
                 and new.settings.get(name) != shipped.settings.get(name)]
    played, before = ({(record.task, record.init_state) for record in results.records}
                      for results in (new, shipped))
    if played != before:
        different.append(f'episodes: {len(played - before)} new alone, {len(before - played)} '
                         f'shipped alone')
    if different:
        raise ConfigError(f'the evaluations do not compare ({"; ".join(different)}); evaluate the '
                          f'new checkpoint as the shipped one was')
    if successes(new) <= successes(shipped):
        raise ConfigError(f'not better: {successes(new)} of {len(played)} new, '
                          f'{successes(shipped)} shipped; the shipped checkpoint stays')


def promote(folder: Path, evaluation: Path, shipped: Path) -> Results:
    """Put a better checkpoint in the place of the shipped one, whole or not at all.

    :param folder: the new checkpoint. :param evaluation: its file of `evaluate --json`.
    :raises ConfigError: it is not shown to be better, or cannot be copied.
    """
    results = evidence(evaluation, folder)
    require_better(results, evidence(shipped / EVALUATION_FILE, shipped))
    try:
        with tempfile.TemporaryDirectory(prefix='.draft-', dir=shipped.parent) as draft:
            new, old = Path(draft, 'new'), Path(draft, 'old')
            shutil.copytree(folder, new, ignore=shutil.ignore_patterns(*_NOT_SHIPPED))
            shutil.copyfile(evaluation, new / EVALUATION_FILE)
            shutil.copyfile(shipped / CARD_FILE, new / CARD_FILE)
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
    parser.add_argument('--evaluation', type=Path, required=True, metavar='JSON',
                        help='of the new checkpoint, from evaluate --json')
    parser.add_argument('--shipped', default='worldvla-mini',
                        help='name or folder that is replaced (default: worldvla-mini)')
    options = parser.parse_args(argv)
    try:
        shipped = checkpoint_folder(options.shipped)
        results = promote(options.folder, options.evaluation, shipped)
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_USAGE
    print(f'{shipped} succeeds in {successes(results)} of {len(results.records)} episodes now; '
          f'write its {CARD_FILE} anew')
    return EXIT_OK


if __name__ == '__main__':
    sys.exit(main())
