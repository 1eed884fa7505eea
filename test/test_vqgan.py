# SPDX-License-Identifier: Apache-2.0
"""Training the image tokenizer: it learns, keeps its codes alive and is measured honestly."""

import csv
from dataclasses import replace
from itertools import pairwise
import subprocess
import sys

import numpy as np
import pytest
from safetensors import SafetensorError
import torch
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, with_wrist, write_hdf5

from worldvla_ros.errors import CheckpointError, ConfigError
from worldvla_ros.model.image_tokenizer import load_image_tokenizer, save_image_tokenizer
from worldvla_ros.training import frames as frames_module
from worldvla_ros.training import vqgan
from worldvla_ros.training.failures import DatasetError, TrainingError
from worldvla_ros.training.frames import choose_spans, frame_set, load_frames
from worldvla_ros.training.libero_hdf5 import Episode
from worldvla_ros.training.perceptual import VGG16_CHANNELS, load_perceptual_loss
from worldvla_ros.training.vqgan import train_vqgan
from worldvla_ros.training.vqgan_quality import perplexity, reconstruction_quality
from worldvla_ros.training.vqgan_trainer import VqganRunConfig, VqganTrainer


def config(folder, **changes):
    base = VqganRunConfig(
        str(folder / 'demos'), str(folder / 'tokenizer'), steps=40, image_size=IMAGE_SIZE,
        batch_size=4, learning_rate=3e-3, dtype='float32', split='numeric',
        network=tiny_tokenizer().config)
    return replace(base, **changes)


def loaded(folder, most=100):
    return load_frames(folder / 'demos', IMAGE_SIZE, most, 'numeric')


def moving_square(number, steps=4):
    """Return an episode of a bright square that moves over a grey ground."""
    base = episode(number, steps)
    frames = np.full_like(base.frames, 90)
    for t in range(steps):
        frames[t, 16:32, 8 * t:8 * t + 16] = 250
    return Episode(base.name, base.task, base.instruction, frames, base.actions, base.executed,
                   success=True)


@pytest.fixture
def demos(tmp_path):
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', [moving_square(i) for i in range(10)])
    return tmp_path


def test_training_makes_held_out_frames_survive_better(demos):
    trained = train_vqgan(config(demos))
    held_out = loaded(demos).held_out
    torch.manual_seed(0)
    before = reconstruction_quality(tiny_tokenizer(), held_out)
    assert trained.psnr > before.psnr + 3
    saved = load_image_tokenizer(demos / 'tokenizer')
    assert reconstruction_quality(saved, held_out) == trained


def test_the_wrist_camera_is_learned_from_where_it_is_asked_for(tmp_path):
    written = [with_wrist(moving_square(i)) for i in range(10)]
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', written)
    both = load_frames(tmp_path / 'demos', IMAGE_SIZE, 100, 'numeric', wrist=True)
    assert [len(both.train), len(both.held_out)] == [2 * 9 * 4, 2 * 4]
    np.testing.assert_array_equal(
        both.held_out.frames, np.concatenate([written[9].frames, written[9].wrist]))
    few = load_frames(tmp_path / 'demos', IMAGE_SIZE, 40, 'numeric', wrist=True)
    assert len(few.train) + len(few.held_out) == 40
    assert train_vqgan(config(tmp_path, steps=2, wrist=True)) == reconstruction_quality(
        load_image_tokenizer(tmp_path / 'tokenizer'), both.held_out)


def test_a_result_that_is_rounded_is_the_one_that_is_measured(demos):
    trained = train_vqgan(config(demos, half=True, steps=2))
    held_out = loaded(demos).held_out
    saved = load_image_tokenizer(demos / 'tokenizer')
    assert reconstruction_quality(saved, held_out) == trained
    assert all(torch.equal(value, value.half().float()) for value in saved.state_dict().values())


def test_quality_of_moving_pixels_is_measured_on_them_alone():
    frames = frame_set([moving_square(0).frames])
    moving = frames.moving(np.arange(4))
    expected = np.zeros((64, 64), bool)
    expected[16:32, :8] = expected[16:32, 16:24] = True  # where the square left and came
    np.testing.assert_array_equal(moving[1], expected)
    np.testing.assert_array_equal(moving[0], moving[1])  # the first is compared with the second


def test_frames_of_two_episodes_are_not_compared():
    frames = frame_set([np.full((2, 64, 64, 3), value, np.uint8) for value in (0, 255)])
    assert not frames.moving(np.arange(4)).any()


def test_frames_are_loaded_in_the_order_of_the_split(demos):
    train, held_out = loaded(demos, 40).train, loaded(demos, 40).held_out
    expected = frame_set([moving_square(number).frames for number in range(9)])
    np.testing.assert_array_equal(train.frames, expected.frames)
    np.testing.assert_array_equal(train.neighbours, expected.neighbours)
    np.testing.assert_array_equal(held_out.frames, moving_square(9).frames)


def test_of_too_many_frames_pairs_are_kept_in_which_pixels_still_move(demos):
    train, held_out = loaded(demos, 20).train, loaded(demos, 20).held_out
    assert (len(train), len(held_out)) == (18, 2)
    moving = train.moving(np.arange(18)).sum((1, 2))
    np.testing.assert_array_equal(moving, 16 * 16)  # the square moves by half its width
    np.testing.assert_array_equal(train.neighbours.reshape(-1, 2), [
        (second, first) for first, second in np.arange(18).reshape(-1, 2)])


@pytest.mark.parametrize('lengths, share, expected', [
    ([3, 4], 1.0, [[(0, 3)], [(0, 4)]]),
    ([9, 4], 0.5, [[(0, 2), (4, 6)], [(0, 2)]]),
    ([1, 1, 4], 0.7, [[(0, 1)], [], [(0, 2)]]),
    ([100], 0.001, [[(0, 2)]])])
def test_kept_frames_are_spread_evenly(lengths, share, expected):
    assert choose_spans(lengths, share) == expected


def test_frames_that_do_not_fit_into_memory_are_refused_before_they_are_read(demos, monkeypatch):
    monkeypatch.setattr(frames_module, 'available_memory', lambda: 30 * IMAGE_SIZE ** 2 * 3)
    with pytest.raises(DatasetError, match=r'40 frames of 64 px .*lower most_frames to 24'):
        loaded(demos)
    loaded(demos, 24)
    monkeypatch.undo()
    assert frames_module.available_memory() > 1e6


def test_a_still_picture_has_no_moving_quality():
    still = frame_set([np.zeros((2, 64, 64, 3), np.uint8)])
    assert np.isnan(reconstruction_quality(tiny_tokenizer(), still).moving_psnr)


def test_dead_codes_are_moved_onto_latents_and_used_ones_are_not(tmp_path):
    trainer = VqganTrainer(config(tmp_path, revive_after=5))
    weight = trainer.tokenizer.quantize.embedding.weight
    latents = torch.randn(2, 4, 4, 4)
    trainer._last_used[:] = 0
    trainer._last_used[:10] = -5
    before = weight.detach().clone()
    with torch.no_grad():
        trainer._revive(latents)
    points = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.equal(weight[10:], before[10:])
    assert torch.cdist(weight[:10].detach(), points).min(1).values.max() < 0.2
    assert (trainer._last_used[:10] == 0).all()


def test_the_first_batch_places_the_whole_codebook(tmp_path):
    trainer = VqganTrainer(config(tmp_path))
    with torch.no_grad():
        trainer.tokenizer.quantize.embedding.weight.fill_(100.0)  # no latent is near
    frames = episode(0, 4).frames
    trainer.train_step(frames, np.zeros((4, 64, 64), bool))
    assert len(trainer.tokenizer.encode(frames).unique()) > 1


def test_a_run_that_starts_from_a_tokenizer_goes_on_from_its_quality_and_its_codes(demos):
    first = train_vqgan(config(demos))
    known = load_image_tokenizer(demos / 'tokenizer').quantize.embedding.weight
    more = config(demos, output=str(demos / 'more'), init_from=str(demos / 'tokenizer'), steps=10,
                  learning_rate=1e-4)
    assert train_vqgan(more).psnr > first.psnr - 1
    codes = load_image_tokenizer(demos / 'more').quantize.embedding.weight
    assert (codes - known).abs().max() < 0.01


def test_a_tokenizer_of_another_shape_to_start_from_is_refused(demos):
    save_image_tokenizer(tiny_tokenizer(), demos / 'given')
    other = replace(tiny_tokenizer().config, n_embed=32)
    with pytest.raises(ConfigError, match=r'given is .*n_embed=.* asks for .*n_embed=32'):
        train_vqgan(config(demos, init_from=str(demos / 'given'), network=other))


def test_weight_on_moving_pixels_changes_the_loss_only_where_something_moves(tmp_path):
    frames = moving_square(0).frames
    moving = frame_set([frames]).moving(np.arange(4))
    losses = {(weight, which): VqganTrainer(config(tmp_path, moving_weight=weight)).train_step(
        frames, mask) for weight in (0.0, 9.0) for which, mask in (
            ('moving', moving), ('still', np.zeros_like(moving)))}
    assert losses[0.0, 'moving'] == losses[0.0, 'still'] == losses[9.0, 'still']
    assert losses[9.0, 'moving'] > losses[0.0, 'moving']


def test_the_discriminator_learns_only_after_the_warm_up(tmp_path):
    trainer = VqganTrainer(config(tmp_path, adversarial_weight=0.1, adversarial_from=1))
    frames, still = episode(0, 2).frames, np.zeros((2, 64, 64), bool)

    def judge():
        return [p.detach().clone() for p in trainer.discriminator.parameters()]
    states = [judge()]
    for _ in range(2):
        trainer.train_step(frames, still)
        states.append(judge())
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))


@pytest.mark.parametrize(('size', 'better'), [(144, 128), (200, 192), (40, 32)])
def test_pictures_that_no_policy_takes_are_refused_before_training(tmp_path, size, better):
    with pytest.raises(ConfigError, match=rf'image size is {size} px.*multiple of 32.*{better}'):
        config(tmp_path, image_size=size)


def test_the_adversary_warms_up_by_default_and_begins_before_the_end(tmp_path):
    assert config(tmp_path, adversarial_weight=0.1, steps=1001).adversarial_from == 1000
    for start, steps in ((0, 40), (40, 40), (1000, 40)):
        with pytest.raises(ConfigError, match=rf'adversarial_from is {start}, expected 1 to 39'):
            config(tmp_path, adversarial_weight=0.1, adversarial_from=start, steps=steps)
    config(tmp_path, adversarial_weight=0.0, adversarial_from=0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = VqganTrainer(config(tmp_path))
    with torch.no_grad():
        trainer.tokenizer.decoder.conv_out.bias.fill_(float('nan'))
    with pytest.raises(TrainingError, match='loss of the ImageTokenizer is nan'):
        trainer.train_step(episode(0, 2).frames, np.zeros((2, 64, 64), bool))


@pytest.mark.parametrize('of', ['tokenizer', 'discriminator'])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_changes_a_weight(tmp_path, of):
    trainer = VqganTrainer(config(tmp_path, adversarial_weight=0.1, adversarial_from=1))
    frames, still = episode(0, 2).frames, np.zeros((2, 64, 64), bool)
    trainer.train_step(frames, still)
    parameter = (trainer.tokenizer.decoder.conv_out.bias if of == 'tokenizer'
                 else trainer.discriminator.layers[0].bias)
    parameter.register_hook(lambda gradient: gradient * float('nan'))
    network = getattr(trainer, of)
    before = {name: value.clone() for name, value in network.named_parameters()
              if 'embedding' not in name}  # codes are revived before
    with pytest.raises(TrainingError, match=r'step 1: the loss of .* its gradient norm nan'):
        trainer.train_step(frames, still)
    assert all(torch.equal(dict(network.named_parameters())[name], value)
               for name, value in before.items())


def test_what_a_failed_run_advises_makes_it_go_on(demos, monkeypatch):
    failing = config(demos, steps=3, save_every=1, dtype='bfloat16')
    through = VqganTrainer._through

    def fails_at_step_1(self, pixels):
        decoded, loss = through(self, pixels)
        return decoded, loss * (float('nan') if self.step == 1 and self._dtype == torch.bfloat16
                                else 1)
    monkeypatch.setattr(VqganTrainer, '_through', fails_at_step_1)
    with pytest.raises(TrainingError, match=r'learning_rate below 0\.003 or dtype float32'):
        train_vqgan(failing)
    seen = []
    step = VqganTrainer.train_step
    monkeypatch.setattr(VqganTrainer, 'train_step', lambda self, *data: (
        step(self, *data), seen.extend([self.step, *(group['lr'] for optimizer in (
            self._optimizer, self._judge_optimizer) for group in optimizer.param_groups)]))[0])
    train_vqgan(replace(failing, dtype='float32', learning_rate=1e-3))
    assert seen[0] == 2 and seen[1] < 1e-3 and seen[2] == 1e-3


def test_a_second_run_of_one_tokenizer_is_refused(demos, monkeypatch):
    def second(*_):
        reading = subprocess.run(
            [sys.executable, '-c', 'import sys; from pathlib import Path; '
             'from worldvla_ros.training.run_lock import alone_in\n'
             f'with alone_in(Path({str(demos / "tokenizer.run")!r})): pass'],
            capture_output=True, text=True, check=False)
        assert 'in use by another training (process' in reading.stderr
        raise KeyboardInterrupt
    monkeypatch.setattr(VqganTrainer, 'train_step', second)
    with pytest.raises(KeyboardInterrupt):
        train_vqgan(config(demos))


def test_settings_built_in_code_are_checked(tmp_path):
    with pytest.raises(ConfigError, match='learning_rate must be'):
        config(tmp_path, learning_rate=-1.0)
    with pytest.raises(ConfigError, match='split must be'):
        config(tmp_path, split='odd')


def test_too_few_demonstrations_are_refused(tmp_path):
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', [moving_square(0)])
    with pytest.raises(DatasetError, match=r'1 episodes to learn from and 0 held out; .*ten'):
        train_vqgan(config(tmp_path))


def test_bfloat16_trains_too(demos):
    assert np.isfinite(train_vqgan(config(demos, dtype='bfloat16', steps=2)).psnr)


def kill_at(monkeypatch, step):
    """Let training end as by a kill before this step; undone by `monkeypatch.undo`."""
    train_step = VqganTrainer.train_step

    def killed(self, *args):
        if self.step == step:
            raise KeyboardInterrupt
        return train_step(self, *args)
    monkeypatch.setattr(VqganTrainer, 'train_step', killed)


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
    with pytest.raises(TrainingError, match=r'trained on other demonstrations \(sha256:'):
        train_vqgan(interrupted)
    write_hdf5(demos / 'demos' / 'push_demo.hdf5', [moving_square(i, 3) for i in range(10)])
    with pytest.raises(TrainingError, match='trained on other demonstrations'):
        train_vqgan(interrupted)
    train_vqgan(replace(interrupted, demonstrations=str(demos / 'moved')))


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


def test_a_state_that_does_not_say_its_demonstrations_is_refused(demos, interrupted):
    path = demos / 'tokenizer.run' / 'state.pt'
    state = torch.load(path, weights_only=True)
    del state['data']
    torch.save(state, path)
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


def test_perplexity_counts_codes_by_how_evenly_they_are_chosen():
    assert perplexity(torch.tensor([5, 5, 5, 5, 0])) == pytest.approx(4)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1)
    assert perplexity(torch.zeros(3, dtype=torch.int64)) == 0


class Features(torch.nn.Module):
    """Stands for vgg16.pt: its squared distance is what is asked for."""

    def forward(self, x: torch.Tensor, resize_images: bool, return_lpips: bool) -> torch.Tensor:
        return x.mean((2, 3)) / 255.0


def vgg16_state():
    """Return random weights in the layout of torchvision's VGG-16, classifier included."""
    state, index, before = {'classifier.0.weight': torch.zeros(2, 2)}, 0, 3
    for channels in VGG16_CHANNELS:
        for size_in, size_out in pairwise((before, *channels)):
            state[f'features.{index}.weight'] = torch.randn(size_out, size_in, 3, 3) / (
                size_in * 4.5) ** 0.5
            state[f'features.{index}.bias'] = torch.zeros(size_out)
            index += 2
        index, before = index + 1, channels[-1]
    assert index == 31  # layers of torchvision's `features`
    return state


@pytest.mark.parametrize('kind', ['script', 'state'])
def test_the_perceptual_loss_is_small_for_like_pictures_and_has_a_gradient(tmp_path, kind):
    path = tmp_path / 'vgg16.pt'
    if kind == 'script':
        torch.jit.script(Features()).save(str(path))
    else:
        torch.save(vgg16_state(), path)
    loss = load_perceptual_loss(path)
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    torch.manual_seed(0)
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    near = (real + 0.02).requires_grad_()
    assert loss(real, real) == 0
    distance = loss(near, real)
    assert 0 < distance < loss(-real, real)
    distance.backward()
    assert near.grad.abs().sum() > 0
    if kind == 'script':
        assert distance.item() == pytest.approx(3 * 0.01 ** 2, rel=1e-3)


class Pictures(torch.nn.Module):
    """Returns what it is given, which is no feature."""

    def forward(self, x: torch.Tensor, resize_images: bool, return_lpips: bool) -> torch.Tensor:
        return x


def test_a_script_without_features_is_refused_as_a_perceptual_loss(tmp_path):
    torch.jit.script(Pictures()).save(str(tmp_path / 'vgg16.pt'))
    loss = load_perceptual_loss(tmp_path / 'vgg16.pt')
    with pytest.raises(CheckpointError, match=r'expected features \[1, D\].*vgg16.pt'):
        loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))


def test_training_with_perceptual_weights_minds_them(tmp_path):
    torch.jit.script(Features()).save(str(tmp_path / 'vgg16.pt'))
    frames, still = episode(0, 2).frames, np.zeros((2, 64, 64), bool)
    losses = [VqganTrainer(config(tmp_path, perceptual_weights=weights, perceptual_weight=9.0)
                           ).train_step(frames, still)
              for weights in ('', str(tmp_path / 'vgg16.pt'))]
    assert losses[1] > losses[0]


@pytest.mark.parametrize('content', [None, b'nothing', {'a': 1}])
def test_other_files_than_perceptual_weights_are_refused(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / 'weights.pt').write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / 'weights.pt')
    with pytest.raises(CheckpointError, match='leave perceptual_weights empty'):
        load_perceptual_loss(tmp_path / 'weights.pt')
