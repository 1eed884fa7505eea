# SPDX-License-Identifier: Apache-2.0
"""Small runs of the image tokenizer's training, and demonstrations in which something moves."""

from dataclasses import replace

import numpy as np
import torch
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, write_hdf5

from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.frames import FrameSet, load_frames, neighbours
from worldvla_ros.training.vqgan_trainer import VqganRunConfig


def config(folder, **changes):
    base = VqganRunConfig(
        str(folder / 'demos'), str(folder / 'tokenizer'), steps=40, image_size=IMAGE_SIZE,
        batch_size=4, learning_rate=3e-3, dtype='float32', split='numeric',
        network=tiny_tokenizer().config)
    return replace(base, **changes)


def loaded(folder, most=100):
    return load_frames(folder / 'demos', IMAGE_SIZE, most, 'numeric')


def frame_set(episodes):
    """Join the frames (T, H, W, 3) of a few episodes."""
    return FrameSet(np.concatenate(episodes), neighbours([len(frames) for frames in episodes]))


def moving_square(number, steps=4):
    """Return an episode of a bright square that moves over a grey ground."""
    base = episode(number, steps)
    frames = np.full_like(base.frames, 90)
    for t in range(steps):
        frames[t, 16:32, 8 * t:8 * t + 16] = 250
    return Episode(base.name, base.task, base.instruction, frames, base.actions, base.executed,
                   success=True)


def write_moving_squares(folder):
    """Write ten demonstrations into folder/demos; return the folder."""
    write_hdf5(folder / 'demos' / 'push_demo.hdf5', [moving_square(i) for i in range(10)])
    return folder


class Features(torch.nn.Module):
    """Stands for vgg16.pt: its squared distance is what is asked for."""

    def forward(self, x: torch.Tensor, resize_images: bool, return_lpips: bool) -> torch.Tensor:
        return x.mean((2, 3)) / 255.0
