# SPDX-License-Identifier: Apache-2.0
"""A run that starts from a checkpoint of another split says so, and so does its result."""

from dataclasses import replace

import pytest
from training_runs import tiny_config
import yaml

from worldvla_ros.config import load_yaml
from worldvla_ros.training.earlier_splits import (
    HASHED_WHOLE,
    UNKNOWN,
    earlier_splits,
    leak_warning,
)
from worldvla_ros.training.run_folder import RunFolder
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.train import export, train

WARNING = 'weights were trained with split published before'


def splits_of(folder):
    return load_yaml(folder / 'train.yaml', TrainConfig).data.earlier_splits


def starting_from(folder, checkpoint, output):
    config = tiny_config(folder, steps=1, output=output)
    return replace(config, model=replace(config.model, init_from=str(checkpoint)))


def test_a_checkpoint_of_another_split_is_warned_of_and_kept_in_mind(tmp_path, capsys):
    """Pins a bug: the episodes that it had seen were held out without a word."""
    first = train(tiny_config(tmp_path, steps=1, split='published'))
    assert WARNING not in capsys.readouterr().err and splits_of(first) == ()
    config = starting_from(tmp_path, first, 'second')
    second = train(config)
    said = capsys.readouterr().err
    assert said.count(WARNING) == 1 and 'that split numeric holds out' in said
    assert splits_of(second) == splits_of(RunFolder(config).latest()) == ('published',)
    longer = replace(config, run=replace(config.run, steps=2))
    assert splits_of(train(longer)) == ('published',), 'it is resumed as it was begun'
    assert capsys.readouterr().err.count(WARNING) == 1
    assert splits_of(export(longer)) == ('published',)
    third = train(starting_from(tmp_path, second, 'third'))
    assert splits_of(third) == ('published',), 'also where the last one had the same split'


def test_a_checkpoint_of_the_same_split_is_not_warned_of_and_one_that_says_none_is(
        tmp_path, capsys):
    """Pins a bug: of one without train.yaml nobody knew what it had seen, and nothing was said."""
    first = train(tiny_config(tmp_path, steps=1))
    train(starting_from(tmp_path, first, 'second'))
    assert 'weights were trained with' not in capsys.readouterr().err
    (first / 'train.yaml').unlink()
    third = train(starting_from(tmp_path, first, 'third'))
    assert f'weights were trained with split {UNKNOWN} before' in capsys.readouterr().err
    assert splits_of(third) == (UNKNOWN,)


@pytest.mark.parametrize(('data', 'expected'), [
    ({'split': 'numeric'}, ('numeric',)),
    ({'split': 'hashed'}, (HASHED_WHOLE,)),  # written when it was another hash
    ({'split': 'hashed', 'earlier_splits': []}, ()),
    ({'split': 'hashed', 'earlier_splits': ['numeric']}, ('numeric',)),
    ({}, ()), (None, (UNKNOWN,)), ('another program', (UNKNOWN,))])
def test_what_a_checkpoint_says_of_its_splits(tmp_path, data, expected):
    (tmp_path / 'train.yaml').write_text(yaml.safe_dump({'data': data}))
    assert earlier_splits(tmp_path, 'hashed') == expected
    assert bool(leak_warning('hashed', expected)) == bool(expected)
