# SPDX-License-Identifier: Apache-2.0
"""PSNR, SSIM, LPIPS and the Frechet distance agree with what can be worked out by hand."""

import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

from worldvla_ros.errors import CheckpointError
from worldvla_ros.training.video_metrics import (
    PerceptualDistance,
    VideoFeatures,
    decibels,
    frechet_distance,
    squared_errors,
    ssim,
)

# the field passes its networks around as TorchScript
pytestmark = pytest.mark.filterwarnings('ignore:.torch.jit:DeprecationWarning')


class LpipsStandIn(torch.nn.Module):
    """Features are the mean colours."""

    def forward(self, pixels: torch.Tensor, resize_images: bool, return_lpips: bool
                ) -> torch.Tensor:
        assert return_lpips and not resize_images
        return pixels.mean([2, 3]) / 255


class I3dStandIn(torch.nn.Module):
    """Features are the mean colours of the first and the last frame."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool
                ) -> torch.Tensor:
        assert rescale and resize and return_features
        colours = video.mean([3, 4]) / 255
        return torch.cat([colours[:, :, 0], colours[:, :, -1]], 1)


def saved(module, path):
    torch.jit.script(module).save(str(path))
    return path


def grey(*values, size=16):
    return np.stack([np.full((size, size, 3), value, np.uint8) for value in values])


def noise(seed, frames=2, size=16):
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), np.uint8)


def test_psnr_of_a_known_error():
    errors = squared_errors(grey(100, 100, 0), grey(101, 100, 255))
    assert errors.shape == (3, 16, 16)
    # 20 log10(255) = 48.1308 dB; equal frames have the 80 dB of the epsilon; the worst has 0
    np.testing.assert_allclose(decibels(errors.mean((1, 2))), [48.128, 80, 0], atol=5e-3)


def test_ssim_of_equal_frames_is_one():
    np.testing.assert_allclose(ssim(noise(0), noise(0)), 1, atol=1e-6)


def test_ssim_of_flat_frames_compares_their_brightness():
    x, y = 100 / 255, 150 / 255
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    np.testing.assert_allclose(ssim(grey(100), grey(150)), expected, atol=1e-4)


def test_ssim_of_one_window_follows_the_definition():
    frame, other = noise(1, 1, 11), noise(2, 1, 11)
    ramp = np.exp(-np.arange(-5, 6) ** 2 / (2 * 1.5 ** 2))
    weights = np.outer(ramp, ramp)[..., None] / ramp.sum() ** 2
    x, y = frame[0] / 255, other[0] / 255
    mean_x, mean_y = ((weights * side).sum((0, 1)) for side in (x, y))
    variance_x = (weights * (x - mean_x) ** 2).sum((0, 1))
    variance_y = (weights * (y - mean_y) ** 2).sum((0, 1))
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum((0, 1))
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                / ((mean_x ** 2 + mean_y ** 2 + c1) * (variance_x + variance_y + c2)))
    np.testing.assert_allclose(ssim(frame, other), expected.mean(), rtol=1e-4)


def test_ssim_falls_with_noise():
    clean = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None, None], (1, 1, 32, 3))
    rng = np.random.default_rng(0)
    values = [ssim(np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 255).astype(np.uint8),
                   clean)[0] for sigma in (2, 10, 50)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.5 < values[0]


def test_frechet_distance_of_a_shift_is_its_square():
    sample = np.random.default_rng(0).normal(size=(40, 5))
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(sample, sample + np.array([3, 0, 4, 0, 0])) == pytest.approx(25)


def test_frechet_distance_of_a_scaled_sample():
    sample = np.random.default_rng(0).normal(size=(50, 1))
    mean, deviation = sample.mean(), sample.std(ddof=1)
    assert frechet_distance(sample, 3 * sample) == pytest.approx(
        (2 * mean) ** 2 + (2 * deviation) ** 2)


def test_frechet_distance_agrees_with_the_matrix_root():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    other = 1 + rng.normal(size=(45, 4)) @ rng.normal(size=(4, 4))
    c1, c2 = np.cov(one.T), np.cov(other.T)
    expected = (np.square(one.mean(0) - other.mean(0)).sum()
                + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real))
    assert frechet_distance(one, other) == pytest.approx(expected)


def test_frechet_distance_needs_two_samples():
    sample = np.random.default_rng(0).normal(size=(3, 5))
    assert np.isnan(frechet_distance(sample[:1], sample))
    assert frechet_distance(sample, 2 * sample) > 0  # fewer samples than dimensions


def test_lpips_is_the_squared_distance_of_the_features(tmp_path):
    lpips = PerceptualDistance(saved(LpipsStandIn(), tmp_path / 'vgg16.pt'))
    copy, other, real = grey(0, 0, 0), grey(51, 51, 0), grey(0, 102, 0)
    np.testing.assert_allclose(
        lpips([copy, other, real], real),
        3 * np.square([[0, 0.4, 0], [0.2, 0.2, 0], [0, 0, 0]]), atol=1e-6)


def test_a_video_has_one_feature_in_order_of_time(tmp_path):
    features = VideoFeatures(saved(I3dStandIn(), tmp_path / 'i3d.pt'))
    np.testing.assert_allclose(features(grey(51, 0, 102)), [0.2] * 3 + [0.4] * 3, atol=1e-6)


def test_a_wrong_file_of_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r'missing.pt.*No such file.*expected vgg16.ckpt'):
        PerceptualDistance(tmp_path / 'missing.pt')
    (tmp_path / 'text.pt').write_text('no weights')
    with pytest.raises(CheckpointError, match=r'no pickled arrays.*expected i3d-kinetics-400'):
        VideoFeatures(tmp_path / 'text.pt')
    (tmp_path / 'other.ckpt').write_bytes(pickle.dumps({'a': {'b': np.zeros(3)}}))
    with pytest.raises(CheckpointError, match=r"has no 'VGG16_0/Conv_0/kernel'; expected"):
        PerceptualDistance(tmp_path / 'other.ckpt')
    with pytest.raises(CheckpointError, match=r"has no 'batch_stats/Conv3d_1a_7x7/"):
        VideoFeatures(tmp_path / 'other.ckpt')
    for kernel in ('text', np.zeros(3), np.zeros((3, 3, 4, 64))):
        (tmp_path / 'other.ckpt').write_bytes(pickle.dumps(
            {'VGG16_0': {'Conv_0': {'kernel': kernel, 'bias': np.zeros(64)}}}))
        with pytest.raises(CheckpointError, match=r'other.ckpt.*; expected vgg16.ckpt'):
            PerceptualDistance(tmp_path / 'other.ckpt')
    swapped = PerceptualDistance(saved(I3dStandIn(), tmp_path / 'i3d.pt'))
    with pytest.raises(CheckpointError, match=r'does not take.*return_lpips'):
        swapped([grey(0)], grey(1))
    images = VideoFeatures(saved(Pictures(), tmp_path / 'pictures.pt'))
    with pytest.raises(CheckpointError, match=r'expected features \[1, D\]'):
        images(grey(0, 1))


class Pictures(torch.nn.Module):
    """Returns what it is given, which is no feature."""

    def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool
                ) -> torch.Tensor:
        return video
