# SPDX-License-Identifier: Apache-2.0
"""The perceptual loss of the image tokenizer: weights and scripts of others; what is refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from training_data import episode
from vqgan_runs import Features, config

from worldvla_ros.errors import CheckpointError
from worldvla_ros.training.perceptual import VGG16_CHANNELS, load_perceptual_loss
from worldvla_ros.training.vqgan_trainer import VqganTrainer


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
