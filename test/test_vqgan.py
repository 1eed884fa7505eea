# SPDX-License-Identifier: Apache-2.0
"""Training the image tokenizer: it learns, keeps its codes alive and is measured honestly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, write_hdf5

from worldvla_ros.model.image_tokenizer import load_image_tokenizer
from worldvla_ros.training.failures import DatasetError, TrainingError
from worldvla_ros.training.frames import frame_set, load_frames
from worldvla_ros.training.libero_hdf5 import Episode
from worldvla_ros.training.vqgan import (
    VqganRunConfig,
    VqganTrainer,
    reconstruction_quality,
    train_vqgan,
)


def config(folder, **changes):
    base = VqganRunConfig(
        str(folder / 'demos'), str(folder / 'tokenizer'), steps=40, image_size=IMAGE_SIZE,
        batch_size=4, learning_rate=3e-3, dtype='float32', network=tiny_tokenizer().config)
    return replace(base, **changes)


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
    _, held_out = load_frames(demos / 'demos', IMAGE_SIZE)
    torch.manual_seed(0)
    before = reconstruction_quality(tiny_tokenizer(), held_out)
    assert trained.psnr > before.psnr + 3
    saved = load_image_tokenizer(demos / 'tokenizer')
    assert reconstruction_quality(saved, held_out) == trained


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


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = VqganTrainer(config(tmp_path))
    with torch.no_grad():
        trainer.tokenizer.decoder.conv_out.bias.fill_(float('nan'))
    with pytest.raises(TrainingError, match='lower the learning rate'):
        trainer.train_step(episode(0, 2).frames, np.zeros((2, 64, 64), bool))


def test_too_few_demonstrations_are_refused(tmp_path):
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', [moving_square(0)])
    with pytest.raises(DatasetError, match='ten demonstrations'):
        train_vqgan(config(tmp_path))


def test_bfloat16_trains_too(demos):
    assert np.isfinite(train_vqgan(config(demos, dtype='bfloat16', steps=2)).psnr)
