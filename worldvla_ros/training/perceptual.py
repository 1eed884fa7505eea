# SPDX-License-Identifier: Apache-2.0
"""The perceptual loss of the image tokenizer, from VGG-16 weights that are given by path.

Two kinds of file are taken, and none is downloaded:

- `vgg16.pt` of the StyleGAN2-ADA metrics, TorchScript, see `load_lpips`: LPIPS (Zhang 2018);
- the state dict of torchvision's VGG-16: the mean squared distance of channel-normalised features
  at the five depths of LPIPS, without LPIPS's learned channel weights.
"""

import contextlib
from itertools import pairwise
from pathlib import Path
import pickle

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.errors import CheckpointError
from worldvla_ros.training.torchscript import ScriptedFeatures, load_lpips

VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Of the 3 x 3 convolutions between the poolings of VGG-16 (Simonyan 2015, configuration D)."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


class PerceptualLoss(nn.Module):
    """Distance of pictures as VGG-16 sees them; its weights are never trained."""

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Return the mean distance of two batches [N, 3, H, W] in [-1, 1]; not negative."""
        raise NotImplementedError


class LpipsScript(PerceptualLoss):
    """LPIPS by the TorchScript file."""

    def __init__(self, features: ScriptedFeatures) -> None:
        super().__init__()
        self._features = features

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Return the mean LPIPS."""
        one, other = (self._features((batch + 1) * 127.5) for batch in (decoded, pixels))
        return (one - other).square().sum(-1).mean()


class VggFeatures(PerceptualLoss):
    """Distance of the features of torchvision's VGG-16 before each pooling."""

    mean: Tensor
    std: Tensor

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        blocks, index, before = [], 0, 3
        for channels in VGG16_CHANNELS:
            layers: list[nn.Module] = []
            for size_in, size_out in pairwise((before, *channels)):
                convolution = nn.Conv2d(size_in, size_out, 3, padding=1)
                convolution.load_state_dict({name: state[f'features.{index}.{name}']
                                             for name in ('weight', 'bias')})
                layers += [convolution, nn.ReLU()]
                index += 2
            index += 1  # the pooling
            before = channels[-1]
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN)[:, None, None])
        self.register_buffer('std', torch.tensor(IMAGENET_STD)[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, decoded: Tensor, pixels: Tensor) -> Tensor:
        """Return the distance: mean over pictures and places, sum over channels and depths."""
        features = ((torch.cat((decoded, pixels)) + 1) / 2 - self.mean) / self.std
        distance = features.new_zeros(())
        for number, block in enumerate(self.blocks):
            features = block(features if number == 0 else F.max_pool2d(features, 2))
            one, other = F.normalize(features, dim=1, eps=1e-6).chunk(2)
            distance = distance + (one - other).square().sum(1).mean()
        return distance


def load_perceptual_loss(path: Path, device: str = 'cpu') -> PerceptualLoss:
    """Load either file; CheckpointError when it is missing or neither of the two."""
    with contextlib.suppress(CheckpointError):
        return LpipsScript(load_lpips(path, device))
    try:  # no TorchScript: the other kind of file, or none
        state = torch.load(path, map_location=device, weights_only=True)
        return VggFeatures(state).to(device)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f'{path} has no weights for the perceptual loss ({str(error).splitlines()[0]}); '
            'expected vgg16.pt of the StyleGAN2-ADA metrics (TorchScript), or a state dict of '
            "torchvision's VGG-16; leave perceptual_weights empty to train without") from error
