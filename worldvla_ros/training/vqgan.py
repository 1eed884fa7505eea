# SPDX-License-Identifier: Apache-2.0
"""`python -m worldvla_ros.training.vqgan --config FILE`: train an image tokenizer.

    L = reconstruction + |sg(z) - e|^2 + 0.25 |z - sg(e)|^2 (+ weight * adversarial)

as in VQ-VAE (van den Oord 2017) and VQGAN (Esser 2021), without the perceptual loss, whose weights
cannot be had offline. The gripper and the objects are small, so pixels that move between frames
may count more, and are measured apart. A code that no latent chose for a while is moved onto one.
"""

import argparse
from dataclasses import dataclass, field
from itertools import pairwise
import math
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
import torch.nn.functional as F
from tqdm import tqdm

from worldvla_ros.config import REQUIRED, bounded, load_yaml
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.model.checkpoint import pick_dtype
from worldvla_ros.model.image_tokenizer import ImageTokenizer, save_image_tokenizer
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.training.failures import TrainingError, explain_os_error
from worldvla_ros.training.frames import FrameSet, load_frames
from worldvla_ros.training.trainer import pick_device

COMMITMENT = 0.25  # weight of |z - sg(e)|^2 (van den Oord 2017)
EVALUATION_BATCH = 32  # frames


@dataclass(frozen=True)
class VqganRunConfig:
    """One training run of an image tokenizer."""

    demonstrations: str = bounded(REQUIRED, doc='folder with LIBERO-format HDF5 files')
    output: str = bounded(REQUIRED, doc='folder of the tokenizer; must not exist')
    steps: int = bounded(REQUIRED, minimum=1)
    image_size: int = bounded(128, minimum=32, unit='px')
    batch_size: int = bounded(16, minimum=1, unit='frame')
    learning_rate: float = bounded(5e-4, minimum=0.0, doc='decays to a twentieth by a cosine')
    moving_weight: float = bounded(4.0, minimum=0.0, doc='extra weight of pixels that move')
    revive_after: int = bounded(200, minimum=1, unit='step', doc='without use')
    adversarial_weight: float = bounded(0.0, minimum=0.0)
    adversarial_from: int = bounded(0, minimum=0, unit='step', doc='after the warm-up')
    seed: int = bounded(0, minimum=0)
    device: str = bounded('auto', choices=('auto', 'cpu', 'cuda'))
    dtype: str = bounded('auto', choices=('auto', 'float32', 'bfloat16'))
    threads: int = bounded(1, minimum=1, doc='of torch on the CPU')
    network: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)


@dataclass(frozen=True)
class ReconstructionQuality:
    """How well held-out frames survive the tokenizer."""

    psnr: float  # [dB] over all pixels
    moving_psnr: float  # [dB] over the pixels that move; NaN where none do
    used_codes: int


class Discriminator(nn.Module):
    """Judges patches of pictures as real or reconstructed (PatchGAN, Isola 2017)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        sizes = [3, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Conv2d(size_in, size_out, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 4, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return one judgement per patch, positive for real, of pixels [N, 3, H, W]."""
        return self.layers(pixels)


class VqganTrainer:
    """Trains a tokenizer step by step."""

    def __init__(self, config: VqganRunConfig) -> None:
        self._config = config
        self._device = pick_device(config.device)
        self._dtype = pick_dtype(config.dtype, self._device)
        torch.manual_seed(config.seed)
        self.tokenizer = ImageTokenizer(config.network).to(self._device)
        self._optimizer = torch.optim.Adam(self.tokenizer.parameters(), config.learning_rate,
                                           betas=(0.9, 0.99))
        self.discriminator = Discriminator().to(self._device)
        self._judge_optimizer = torch.optim.Adam(self.discriminator.parameters(),
                                                 config.learning_rate, betas=(0.5, 0.9))
        # All codes count as long unused, so the first batch places the whole codebook.
        self._last_used = torch.full((config.network.n_embed,), -config.revive_after,
                                     device=self._device)
        self.step = 0

    def train_step(self, frames: NDArray[np.uint8], moving: NDArray[np.bool_]) -> float:
        """Do one step on frames [N, H, W, 3] with their moving pixels [N, H, W]; return the loss.

        Raises TrainingError when the loss is not finite.
        """
        progress = self.step / self._config.steps
        for group in self._optimizer.param_groups:
            group['lr'] = self._config.learning_rate * (
                0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        pixels = _scaled(frames, self._device)
        weights = 1 + self._config.moving_weight * torch.from_numpy(moving).to(self._device)
        decoded, codebook_loss = self._through(pixels)
        error = decoded - pixels
        loss = (weights[:, None] * (error.abs() + error.square())).mean() / weights.mean()
        loss = loss + codebook_loss
        adversarial = (self._config.adversarial_weight > 0
                       and self.step >= self._config.adversarial_from)
        if adversarial:
            loss = loss - self._config.adversarial_weight * self.discriminator(decoded).mean()
        if not torch.isfinite(loss):
            raise TrainingError(f'step {self.step}: the loss of the image tokenizer is '
                                f'{loss.item()}; lower the learning rate or use float32')
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.tokenizer.parameters(), 1.0)
        self._optimizer.step()
        if adversarial:
            self._train_discriminator(pixels, decoded.detach())
        self.step += 1
        return loss.item()

    def _through(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction of pixels and the loss that ties latents and codes."""
        tokenizer = self.tokenizer
        with self._autocast():
            latents = tokenizer.quant_conv(tokenizer.encoder(pixels)).float()
        with torch.no_grad():  # distances in float32, as at inference
            self._revive(latents)
            codes = tokenizer.quantize.nearest(latents)
            self._last_used[codes.unique()] = self.step
        vectors = tokenizer.quantize.embedding(codes).permute(0, 3, 1, 2)
        loss = (F.mse_loss(vectors, latents.detach())
                + COMMITMENT * F.mse_loss(latents, vectors.detach()))
        through = latents + (vectors - latents).detach()  # gradients pass straight through
        with self._autocast():
            decoded = tokenizer.decoder(tokenizer.post_quant_conv(through))
        return decoded.float(), loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self._device).type, self._dtype,
                              enabled=self._dtype != torch.float32)

    def _revive(self, latents: Tensor) -> None:
        """Move codes that were not chosen for long onto latents of this batch."""
        dead = (self.step - self._last_used >= self._config.revive_after).nonzero()[:, 0]
        if not len(dead):
            return
        points = latents.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = points[torch.randint(len(points), (len(dead),), device=points.device)]
        weight = self.tokenizer.quantize.embedding.weight
        weight[dead] = chosen + 0.01 * points.std() * torch.randn_like(chosen)  # none is a twin
        for name, moment in self._optimizer.state.get(weight, {}).items():
            if name != 'step':
                moment[dead] = 0
        self._last_used[dead] = self.step

    def _train_discriminator(self, real: Tensor, decoded: Tensor) -> None:
        loss = (F.relu(1 - self.discriminator(real)).mean()
                + F.relu(1 + self.discriminator(decoded)).mean())
        self._judge_optimizer.zero_grad()
        loss.backward()
        self._judge_optimizer.step()


def reconstruction_quality(tokenizer: ImageTokenizer, frames: FrameSet, most: int = 512
                           ) -> ReconstructionQuality:
    """Measure evenly spaced frames, at most so many, through `encode` and `decode`."""
    indices = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int))
    total, moving_total, pixels, moving_pixels = 0.0, 0.0, 0, 0
    used: set[int] = set()
    for first in range(0, len(indices), EVALUATION_BATCH):
        some = indices[first:first + EVALUATION_BATCH]
        codes = tokenizer.encode(frames.frames[some])
        decoded = tokenizer.decode(codes).cpu().numpy().astype(np.float32)
        error = np.square((decoded - frames.frames[some]) / 255).mean(-1)
        moving = frames.moving(some)
        total, pixels = total + float(error.sum()), pixels + error.size
        moving_total += float(error[moving].sum())
        moving_pixels += int(moving.sum())
        used.update(codes.unique().tolist())
    return ReconstructionQuality(_psnr(total, pixels), _psnr(moving_total, moving_pixels),
                                 len(used))


def train_vqgan(config: VqganRunConfig) -> ReconstructionQuality:
    """Train, write the tokenizer, and return its quality on held-out frames."""
    torch.set_num_threads(config.threads)
    output = Path(config.output)
    if output.exists():
        raise TrainingError(f'{output} exists; give another output, or delete it first')
    train, held_out = load_frames(Path(config.demonstrations), config.image_size)
    trainer = VqganTrainer(config)
    rng = np.random.default_rng(config.seed)
    for step in tqdm(range(config.steps), unit='step', smoothing=0.05, dynamic_ncols=True,
                     mininterval=1.0 if sys.stderr.isatty() else 30.0):
        indices = rng.integers(len(train), size=config.batch_size)
        loss = trainer.train_step(train.frames[indices], train.moving(indices))
        if step % 500 == 499:
            quality = reconstruction_quality(trainer.tokenizer, held_out, most=64)
            tqdm.write(f'step {step + 1}: loss {loss:.4f}, {_in_words(quality)}', sys.stderr)
    trainer.tokenizer.eval()
    try:
        save_image_tokenizer(trainer.tokenizer, output)
    except OSError as error:
        raise TrainingError(f'cannot write {output}: {explain_os_error(error)}') from error
    return reconstruction_quality(trainer.tokenizer, held_out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', type=Path, required=True, help='YAML file of the run')
    options = parser.parse_args(arguments)
    try:
        quality = train_vqgan(load_yaml(options.config, VqganRunConfig))
    except WorldVLAError as error:
        print(f'vqgan: {error}', file=sys.stderr)
        return 1
    print(f'held-out frames: {_in_words(quality)}')
    return 0


def _in_words(quality: ReconstructionQuality) -> str:
    return (f'PSNR {quality.psnr:.2f} dB, moving pixels {quality.moving_psnr:.2f} dB, '
            f'{quality.used_codes} codes used')


def _scaled(frames: NDArray[np.uint8], device: str) -> Tensor:
    """Return pixels float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _psnr(squared_error: float, count: int) -> float:
    """Return the PSNR [dB] of a sum of squared errors, range 1; NaN of nothing."""
    if count == 0:
        return math.nan
    return -10 * math.log10(max(squared_error / count, 1e-10))


if __name__ == '__main__':
    sys.exit(main())
