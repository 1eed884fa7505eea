# SPDX-License-Identifier: Apache-2.0
"""A run of the image tokenizer that was killed goes on as if it had not been, and as no other."""

import csv
from dataclasses import replace
import signal

import pytest
from safetensors import SafetensorError
import torch
from training_data import with_wrist, write_hdf5
from vqgan_runs import Features, config, moving_square, write_moving_squares

from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.training import vqgan
from worldvla_ros.training.failures import TrainingError
from worldvla_ros.training.frames import episodes_digest
from worldvla_ros.training.vqgan import train_vqgan
from worldvla_ros.training.vqgan_trainer import VqganTrainer


@pytest.fixture
def demos(tmp_path):
    return write_moving_squares(tmp_path)


def kill_at(monkeypatch, step):
    """Let training end as by a kill before this step; undone by `monkeypatch.undo`."""
    train_step = VqganTrainer.train_step

    def killed(self, *args):
        if self.step == step:
            raise KeyboardInterrupt
        return train_step(self, *args)
    monkeypatch.setattr(VqganTrainer, 'train_step', killed)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_saves_the_step_that_it_does(demos, monkeypatch, number):
    """Pins a bug: what was done since the last save was lost."""
    run = config(demos, steps=7, save_every=100)
    train_step = VqganTrainer.train_step

    def told(self, *args):
        if self.step == 2:
            signal.raise_signal(number)
        return train_step(self, *args)
    with monkeypatch.context() as patched:
        patched.setattr(VqganTrainer, 'train_step', told)
        with pytest.raises(KeyboardInterrupt):
            train_vqgan(run)
    assert vqgan.VqganRun(run).load()['step'] == 3


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(demos, monkeypatch):
    whole = config(demos, steps=7, save_every=2, evaluate_every=3, revive_after=2,
                   adversarial_weight=0.1, adversarial_from=1)
    halves = replace(whole, output=str(demos / 'halves'))
    train_vqgan(whole)
    kill_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(halves)
    monkeypatch.undo()
    assert not (demos / 'halves').exists()
    train_vqgan(halves)
    for name in ('tokenizer', 'halves'):
        assert {path.name for path in (demos / f'{name}.run').iterdir()} == {
            '.lock', 'metrics.csv', 'curves.png'}
    for one, other in (('tokenizer', 'halves'), ('tokenizer.run', 'halves.run')):
        files = [{path.name: path.read_bytes() for path in (demos / name).iterdir()
                  if path.suffix != '.png' and path.name != '.lock'} for name in (one, other)]
        assert files[0] == files[1] and files[0]
    with (demos / 'halves.run' / 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['step'] for row in rows] == ['3', '6', '7']
    assert all(0 < float(row['perplexity']) <= float(row['used_codes']) + 1e-3 for row in rows)
    assert sum(int(row['revived_codes']) for row in rows) >= 64


def test_a_run_is_resumed_with_its_own_configuration_only(demos, monkeypatch):
    first = config(demos, steps=3, save_every=1)
    kill_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(first)
    with pytest.raises(TrainingError, match=r'another configuration .*moving_weight: 4\.0 ->'):
        train_vqgan(replace(first, moving_weight=1.0))
    (demos / 'tokenizer.run' / 'state.pt').write_bytes(b'half')
    with pytest.raises(TrainingError, match=r'cannot be read.*to begin again'):
        train_vqgan(first)


@pytest.fixture
def interrupted(demos, monkeypatch):
    """The configuration of a run that was killed after its first step."""
    first = config(demos, steps=2, save_every=1)
    kill_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(first)
    monkeypatch.undo()
    return first


def test_a_run_goes_on_with_its_demonstrations_moved_but_not_with_others(demos, interrupted):
    (demos / 'demos').rename(demos / 'moved')
    write_hdf5(demos / 'demos' / 'push_demo.hdf5', [moving_square(i) for i in range(11)])
    with pytest.raises(TrainingError, match=r'trained on other demonstrations \(sha256-2:'):
        train_vqgan(interrupted)
    write_hdf5(demos / 'demos' / 'push_demo.hdf5', [moving_square(i, 3) for i in range(10)])
    with pytest.raises(TrainingError, match='trained on other demonstrations'):
        train_vqgan(interrupted)
    train_vqgan(replace(interrupted, demonstrations=str(demos / 'moved')))


@pytest.mark.parametrize('change', ['frames', 'actions'])
def test_demonstrations_that_were_rendered_or_recorded_again_are_others(demos, interrupted,
                                                                        change):
    """Pins a bug: as many steps of the same names were taken for the same demonstrations."""
    again = [moving_square(number) for number in range(10)]
    again[3] = replace(again[3], frames=again[3].frames // 2) if change == 'frames' else replace(
        again[3], actions=again[3].actions / 2)
    write_hdf5(demos / 'demos' / 'push_demo.hdf5', again)
    with pytest.raises(TrainingError, match='trained on other demonstrations'):
        train_vqgan(interrupted)


def test_other_pictures_of_the_wrist_are_other_demonstrations_where_they_are_learned_from(
        tmp_path, monkeypatch):
    """Pins a bug: the digest named those of the main camera alone."""
    shown = [with_wrist(moving_square(number)) for number in range(10)]
    demos = tmp_path / 'demos'
    write_hdf5(demos / 'push_demo.hdf5', shown)
    plain, both = episodes_digest(demos), config(tmp_path, steps=2, save_every=1, wrist=True)
    kill_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(both)
    monkeypatch.undo()
    state = torch.load(tmp_path / 'tokenizer.run' / 'state.pt', weights_only=True)
    write_hdf5(demos / 'push_demo.hdf5',
               [replace(one, wrist=one.wrist // 2) if one is shown[3] else one for one in shown])
    with pytest.raises(TrainingError, match=r'trained on other demonstrations \(sha256-3:'):
        train_vqgan(both)
    assert episodes_digest(demos) == plain, 'without the wrist it is the same run'
    torch.save(state | {'data': plain}, tmp_path / 'tokenizer.run' / 'state.pt')
    with pytest.raises(TrainingError, match='of an older version'):
        train_vqgan(both)


def test_a_run_goes_on_with_or_without_the_perceptual_loss_as_it_began(demos, interrupted):
    torch.jit.script(Features()).save(str(demos / 'vgg16.pt'))
    with pytest.raises(TrainingError, match='with perceptual_weights: False -> True'):
        train_vqgan(replace(interrupted, perceptual_weights=str(demos / 'vgg16.pt')))


def test_a_state_from_before_there_was_a_choice_of_splits_was_split_by_number(demos, interrupted):
    path = demos / 'tokenizer.run' / 'state.pt'
    state = torch.load(path, weights_only=True)
    state['config'] = state['config'].replace('split: numeric\n', '')
    assert 'split' not in state['config']
    torch.save(state, path)
    with pytest.raises(TrainingError, match=r"split: 'numeric' -> 'hashed'"):
        train_vqgan(replace(interrupted, split='hashed'))
    train_vqgan(interrupted)


@pytest.mark.parametrize('data', [{}, {'data': 'sha256:0123456789ab'}])
def test_a_state_that_does_not_say_its_demonstrations_is_refused(demos, interrupted, data):
    """Nor does one that says their names and lengths alone."""
    path = demos / 'tokenizer.run' / 'state.pt'
    state = torch.load(path, weights_only=True)
    del state['data']
    torch.save(state | data, path)
    with pytest.raises(TrainingError, match=r'of an older version .*delete .*tokenizer\.run'):
        train_vqgan(interrupted)


@pytest.mark.parametrize('error', [
    SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)'),
    OSError(28, 'No space left on device')])
def test_a_disk_that_is_full_at_the_end_costs_no_step(demos, monkeypatch, error):
    def full(*_):
        raise error
    monkeypatch.setattr(vqgan, 'save_image_tokenizer', full)
    with pytest.raises(TrainingError, match=r'cannot write .*tokenizer: .*disk.* full.*is whole'):
        train_vqgan(config(demos, steps=1))
    monkeypatch.setattr(VqganTrainer, 'train_step', full)  # nothing is left to train
    monkeypatch.setattr(vqgan, 'save_image_tokenizer', save_image_tokenizer)
    train_vqgan(config(demos, steps=1))
    assert (demos / 'tokenizer').is_dir()
