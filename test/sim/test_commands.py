# SPDX-License-Identifier: Apache-2.0
"""What the simulator's commands share: how they read what they are given."""

import argparse
import importlib

import pytest

from worldvla_sim.commands import EXIT_USAGE, parse_indices


@pytest.mark.parametrize(('text', 'expected'), [
    ('0', [0]), ('0,3-5', [0, 3, 4, 5]), ('2-3,2', [2, 3]), (' 1 , 4 ', [1, 4])])
def test_indices_are_lists_and_ranges(text, expected):
    assert parse_indices(text) == expected


@pytest.mark.parametrize('text', ['', 'a', '1-', '-1', '5-3', '1;2', '1--2', '0,9-5'])
def test_other_indices_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r'such as|names no'):
        parse_indices(text)


COMMANDS = {
    'evaluate': ['--suite', 'libero_object'],
    'collect': ['--suite', 'libero_object', '--out', 'out'],
    'rerender': ['demonstrations', '--out', 'out'],
    'replay': ['demonstrations', '--out', 'out'],
    'assets.speed': [], 'assets.gallery': []}
COUNTS = [('evaluate', '--max-steps'), ('evaluate', '--image-size'), ('evaluate', '--workers'),
          ('evaluate', '--execute'), ('collect', '--per-task'), ('collect', '--workers'),
          ('collect', '--image-size'), ('rerender', '--image-size'), ('rerender', '--workers'),
          ('replay', '--workers'), ('assets.speed', '--steps'), ('assets.gallery', '--size')]


@pytest.mark.parametrize('value', ['0', '-1', '2.5', 'many'])
@pytest.mark.parametrize(('command', 'option'), COUNTS)
def test_a_number_that_counts_is_whole_and_from_one(command, option, value, capsys, tmp_path,
                                                    monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f'worldvla_sim.{command}').main
    with pytest.raises(SystemExit) as ended:
        main([*COMMANDS[command], f'{option}={value}'])
    assert ended.value.code == EXIT_USAGE
    assert f'{option}: expected a whole number from 1' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
