# SPDX-License-Identifier: Apache-2.0
"""The mean of checkpoints is one of them with other weights, and only what fits has one."""

from dataclasses import replace
import shutil

import pytest
from safetensors import SafetensorError
import torch

from worldvla_ros.config import read_yaml
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.training import run_folder
from worldvla_ros.training.earlier_splits import HASHED_WHOLE, UNKNOWN, earlier_splits
from worldvla_ros.training.mean_weights import main
from worldvla_ros.training.run_folder import save_pretrained


@pytest.fixture
def two(tmp_path):
    """Two checkpoints that differ in their weights and notes alone."""
    first = shutil.copytree(ensure_random_checkpoint(tmp_path / 'cache'), tmp_path / 'first')
    trained = Pretrained.load(first, dtype='float32')
    for parameter in trained.model.parameters():
        parameter.data += 0.25
    save_pretrained(replace(trained, settings=replace(trained.settings, notes='later')),
                    tmp_path / 'second')
    (tmp_path / 'second' / 'train.yaml').write_text(
        'data: {split: hashed, earlier_splits: [numeric]}\nrun: {steps: 3}\n')
    return first, tmp_path / 'second'


def test_the_mean_lies_between_and_is_the_last_in_all_else(two, tmp_path, capsys):
    assert main([*map(str, two), '--out', str(tmp_path / 'mean')]) == 0
    first, second, mean = (Pretrained.load(folder, dtype='float32')
                           for folder in (*two, tmp_path / 'mean'))
    for name, value in mean.model.state_dict().items():
        expected = (first.model.state_dict()[name] + second.model.state_dict()[name]) / 2
        torch.testing.assert_close(value, expected.to(torch.bfloat16).float(), rtol=0, atol=0)
    assert replace(mean.settings, notes='later') == second.settings
    assert 'mean of the weights of 2' in mean.settings.notes
    assert read_yaml(tmp_path / 'mean' / 'train.yaml')['run'] == {'steps': 3}
    assert main([*map(str, two), '--out', str(tmp_path / 'mean')]) == 2
    assert 'exists; give a folder' in capsys.readouterr().err


@pytest.mark.parametrize(('said', 'earlier'), [
    (None, (UNKNOWN, 'numeric')), ('data: {split: hashed}', (HASHED_WHOLE, 'numeric')),
    ('data: {split: published, earlier_splits: []}', ('published', 'numeric'))])
def test_a_mean_may_have_seen_what_any_of_its_parts_saw(two, tmp_path, said, earlier):
    """Pins a bug: only the last one was asked by which splits it was trained."""
    if said is not None:
        (two[0] / 'train.yaml').write_text(said)
    assert main([*map(str, two), '--out', str(tmp_path / 'mean')]) == 0
    assert earlier_splits(tmp_path / 'mean', 'hashed') == earlier


def test_a_full_disk_is_told_and_does_not_stand_in_the_way(two, tmp_path, monkeypatch, capsys):
    """Pins a bug: a traceback, and half a folder that the next try took for a mean."""
    def full(*_):
        raise SafetensorError('No space left on device')
    arguments = [*map(str, two), '--out', str(tmp_path / 'mean')]
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, 'save_image_tokenizer', full)
        assert main(arguments) == 2
    assert 'is the disk full?' in capsys.readouterr().err
    assert not list(tmp_path.glob('*mean*'))
    assert main(arguments) == 0


def test_checkpoints_whose_weights_mean_something_else_have_none(two, tmp_path, capsys):
    settings = PolicySettings.load(two[1] / POLICY_FILE)
    replace(settings, action_maximum=(2.0,) * 7).save(two[1] / POLICY_FILE)
    assert main([*map(str, two), '--out', str(tmp_path / 'mean')]) == 2
    assert 'differ in action_maximum of policy.json' in capsys.readouterr().err
    assert not (tmp_path / 'mean').exists()


def test_one_checkpoint_has_no_mean(two, tmp_path):
    with pytest.raises(SystemExit):
        main([str(two[0]), '--out', str(tmp_path / 'mean')])
