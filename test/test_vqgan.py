# SPDX-License-Identifier: Apache-2.0
"""Training the image tokenizer: it learns, keeps its codes alive and is measured honestly."""

from dataclasses import replace
import subprocess
import sys

import numpy as np
import pytest
import torch
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, with_wrist, write_hdf5
from vqgan_runs import config, frame_set, loaded, moving_square, write_moving_squares

from worldvla_ros.errors import ConfigError
from worldvla_ros.model.image_tokenizer import load_image_tokenizer, save_image_tokenizer
from worldvla_ros.training.failures import TrainingError
from worldvla_ros.training.frames import load_frames
from worldvla_ros.training.replay_list import Replay, ReplayList, actions_digest
from worldvla_ros.training.vqgan import train_vqgan
from worldvla_ros.training.vqgan_quality import perplexity, reconstruction_quality
from worldvla_ros.training.vqgan_trainer import VqganTrainer


@pytest.fixture
def demos(tmp_path):
    return write_moving_squares(tmp_path)


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


def test_an_image_tokenizer_can_keep_to_the_replays_of_its_policy(tmp_path, capsys):
    episodes = [moving_square(number) for number in range(30)]
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', episodes)
    ReplayList(False, [Replay('push', one.name, actions_digest(one.actions, one.executed), '',
                              number % 3 == 0, 4, 4) for number, one in enumerate(episodes)]
               ).save(tmp_path / 'replays.json')
    train_vqgan(config(tmp_path, steps=1, only=str(tmp_path / 'replays.json')))
    assert 'numeric: 9 episodes for training + 1 held out' in capsys.readouterr().err


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


def test_a_still_picture_has_no_moving_quality():
    still = frame_set([np.zeros((2, 64, 64, 3), np.uint8)])
    assert np.isnan(reconstruction_quality(tiny_tokenizer(), still).moving_psnr)


@pytest.mark.parametrize('changed, kept', [((0, 7, 14), 11 / 14), ((5, 6), 1.0)])
def test_codes_that_stay_are_counted_where_nothing_moves(changed, kept):
    frames = np.full((2, 64, 64, 3), 90, np.uint8)
    frames[1, 16:32, 16:48] = 250  # places 5 and 6 of the sixteen
    of_second = np.isin(np.arange(16), changed).reshape(4, 4)
    tokenizer = tiny_tokenizer()
    tokenizer.encode = lambda shown: torch.from_numpy(np.stack(
        [of_second & (frame == 250).any() for frame in shown]).astype(int))
    assert reconstruction_quality(tokenizer, frame_set([frames])).still_kept == kept


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


def test_another_encoder_begins_anew_and_the_codes_keep_their_meaning(demos):
    known = tiny_tokenizer()
    save_image_tokenizer(known, demos / 'given')
    network = replace(known.config, local_encoder=True)
    first = VqganTrainer(config(demos, init_from=str(demos / 'given'), network=network)).tokenizer
    codes = np.arange(16).reshape(1, 4, 4)
    np.testing.assert_array_equal(first.eval().decode(codes), known.decode(codes))
    train_vqgan(config(demos, init_from=str(demos / 'given'), network=network))
    trained = load_image_tokenizer(demos / 'tokenizer')
    assert trained.config.local_encoder
    assert not torch.equal(trained.encoder.conv_in.weight, first.encoder.conv_in.weight)


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


def test_bfloat16_trains_too(demos):
    assert np.isfinite(train_vqgan(config(demos, dtype='bfloat16', steps=2)).psnr)


def test_perplexity_counts_codes_by_how_evenly_they_are_chosen():
    assert perplexity(torch.tensor([5, 5, 5, 5, 0])) == pytest.approx(4)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1)
    assert perplexity(torch.zeros(3, dtype=torch.int64)) == 0
