# SPDX-License-Identifier: Apache-2.0
"""One step of training an image tokenizer.

    L = reconstruction + |sg(z) - e|^2 + 0.25 |z - sg(e)|^2 (+ weight * perceptual)
        (+ weight * adversarial)

as in VQ-VAE (van den Oord 2017) and VQGAN (Esser 2021); the perceptual loss needs a file, see
`perceptual`. The gripper and the objects are small, so pixels that move between frames
may count more. A code that no latent chose for a while is moved onto one.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.config import REQUIRED, bounded, check
from worldvla_ros.errors import ConfigError
from worldvla_ros.model.checkpoint import pick_dtype
from worldvla_ros.model.image_tokenizer import ImageTokenizer, load_image_tokenizer
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.training.failures import TrainingError
from worldvla_ros.training.parallel import pick_device
from worldvla_ros.training.perceptual import load_perceptual_loss
from worldvla_ros.training.settings import OptimizerConfig
from worldvla_ros.training.splits import SPLITS
from worldvla_ros.training.steps import learning_rate, seed_of
from worldvla_ros.training.store_writing import check_image_size

COMMITMENT = 0.25  # weight of |z - sg(e)|^2 (van den Oord 2017)
BETAS = (0.9, 0.99)  # of Adam for the tokenizer: ours
JUDGE_BETAS = (0.5, 0.9)  # for the discriminator (Esser 2021, public code)
CLIP_NORM = 1.0  # largest gradient norm of the tokenizer: ours
FINAL_SHARE = 0.05  # of the learning rate at the end of the cosine: ours
TWIN_NOISE = 0.01  # of the latents' deviation, added to revived codes so that none is a twin: ours


@dataclass(frozen=True)
class VqganRunConfig:
    """One training run of an image tokenizer."""

    demonstrations: str = bounded(REQUIRED, doc='folder with LIBERO-format HDF5 files')
    output: str = bounded(REQUIRED, doc='folder of the tokenizer; made beside it: OUTPUT.run')
    steps: int = bounded(REQUIRED, minimum=1)
    init_from: str = bounded('', doc='tokenizer to start from; empty: random weights')
    image_size: int = bounded(128, minimum=32, unit='px')
    only: str = bounded('', doc='list of worldvla_sim.replay that tokenise is given; empty: all '
                                'demonstrations that succeeded')
    wrist: bool = bounded(False, doc='the frames of the wrist camera, too')
    split: str = bounded('hashed', choices=SPLITS, doc='which episodes are held out: see splits; '
                                                       "that of the policy's data.split")
    most_frames: int = bounded(40_000, minimum=20, unit='frame',
                               doc='held in memory, 111 kB each at 192 px; evenly of all episodes')
    batch_size: int = bounded(16, minimum=1, unit='frame')
    learning_rate: float = bounded(5e-4, minimum=0.0, doc='decays to a twentieth by a cosine')
    moving_weight: float = bounded(4.0, minimum=0.0, doc='extra weight of pixels that move')
    revive_after: int = bounded(200, minimum=1, unit='step', doc='without use')
    perceptual_weights: str = bounded('', doc='file for the perceptual loss; empty: without it')
    perceptual_weight: float = bounded(0.1, minimum=0.0)
    adversarial_weight: float = bounded(0.0, minimum=0.0)
    adversarial_from: int = bounded(1000, minimum=0, unit='step', doc='end of the warm-up')
    save_every: int = bounded(250, minimum=1, unit='step')
    evaluate_every: int = bounded(500, minimum=1, unit='step')
    half: bool = bounded(False, doc='round the result to float16: half the file, the same codes '
                                    'wherever it is read')
    seed: int = bounded(0, minimum=0)
    device: str = bounded('auto', choices=('auto', 'cpu', 'cuda'))
    dtype: str = bounded('auto', choices=('auto', 'float32', 'bfloat16'))
    threads: int = bounded(1, minimum=1, doc='of torch on the CPU')
    loader_threads: int = bounded(1, minimum=1, doc='that put batches together')
    network: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)

    def __post_init__(self) -> None:
        """Check every value, and refuse an adversary without a warm-up; ConfigError."""
        check(self)
        check_image_size(self.image_size, self.network.factor)
        if self.adversarial_weight > 0 and not 0 < self.adversarial_from < self.steps:
            raise ConfigError(
                f'adversarial_from is {self.adversarial_from}, expected 1 to {self.steps - 1} '
                '(steps - 1): first the tokenizer learns without the adversary, then with it; '
                'change it, or set adversarial_weight to 0')


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
        self._perceptual = None if not config.perceptual_weights else load_perceptual_loss(
            Path(config.perceptual_weights), self._device)
        torch.manual_seed(config.seed)
        self.tokenizer = _initial(config).to(self._device)
        self._rates = OptimizerConfig(config.learning_rate, final_share=FINAL_SHARE,
                                      warmup_steps=0)
        self._optimizer = torch.optim.Adam(self.tokenizer.parameters(), config.learning_rate,
                                           betas=BETAS)
        self.discriminator = Discriminator().to(self._device)
        self._judge_optimizer = torch.optim.Adam(self.discriminator.parameters(),
                                                 config.learning_rate, betas=JUDGE_BETAS)
        # Random codes count as long unused, so the first batch places the whole codebook.
        unused_since = 0 if config.init_from else -config.revive_after
        self._last_used = torch.full((config.network.n_embed,), unused_since,
                                     device=self._device)
        self.usage = torch.zeros_like(self._last_used)  # how often each code was chosen
        self.revived = 0  # codes that were moved, since `usage` was last cleared
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on; the inverse of `restore`."""
        return {'step': self.step, 'last_used': self._last_used, 'usage': self.usage,
                'revived': self.revived,
                **{name: part.state_dict() for name, part in self._parts().items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.revived = state['step'], state['revived']
        self._last_used.copy_(state['last_used'])
        self.usage.copy_(state['usage'])
        for group in self._judge_optimizer.param_groups:  # it may be another than before
            group['lr'] = self._config.learning_rate

    def _parts(self) -> dict[str, Any]:
        return {'tokenizer': self.tokenizer, 'optimizer': self._optimizer,
                'discriminator': self.discriminator, 'judge_optimizer': self._judge_optimizer}

    def train_step(self, frames: NDArray[np.uint8], moving: NDArray[np.bool_]) -> float:
        """Do one step on frames [N, H, W, 3] with their moving pixels [N, H, W]; return the loss.

        Raises TrainingError when the loss or a gradient is not finite.
        """
        # Which latents revive codes differs by step, and is the same when a step is done again.
        torch.manual_seed(seed_of(self._config.seed, self.step))
        for group in self._optimizer.param_groups:
            group['lr'] = learning_rate(self.step, self._rates, self._config.steps)
        pixels = _scaled(frames, self._device)
        weights = 1 + self._config.moving_weight * torch.from_numpy(moving).to(self._device)
        decoded, codebook_loss = self._through(pixels)
        error = decoded - pixels
        loss = (weights[:, None] * (error.abs() + error.square())).mean() / weights.mean()
        loss = loss + codebook_loss
        if self._perceptual is not None:
            loss = loss + self._config.perceptual_weight * self._perceptual(decoded, pixels)
        adversarial = (self._config.adversarial_weight > 0
                       and self.step >= self._config.adversarial_from)
        if adversarial:
            loss = loss - self._config.adversarial_weight * self.discriminator(decoded).mean()
        self._descend(loss, self.tokenizer, self._optimizer, CLIP_NORM)
        if adversarial:
            self._train_discriminator(pixels, decoded.detach())
        self.step += 1
        return loss.item()

    def _descend(self, loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer,
                 clip_norm: float) -> None:
        """Change a network against the gradient of its loss, unless that is not finite."""
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), clip_norm).item()
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            raise TrainingError(
                f'step {self.step}: the loss of the {type(network).__name__} is {loss.item()} and '
                f'its gradient norm {norm}, so it was not changed. The last saved step is good: '
                f'run again with learning_rate below {self._config.learning_rate:.2g} or dtype '
                'float32, and it goes on from there')
        optimizer.step()

    def _through(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstruction of pixels and the loss that ties latents and codes."""
        tokenizer = self.tokenizer
        with self._autocast():
            latents = tokenizer.quant_conv(tokenizer.encoder(pixels)).float()
        with torch.no_grad():  # distances in float32, as at inference
            self._revive(latents)
            codes = tokenizer.quantize.nearest(latents)
            self._last_used[codes.unique()] = self.step
            self.usage += codes.flatten().bincount(minlength=len(self.usage))
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
        weight[dead] = chosen + TWIN_NOISE * points.std() * torch.randn_like(chosen)
        for name, moment in self._optimizer.state.get(weight, {}).items():
            if name != 'step':
                moment[dead] = 0
        self._last_used[dead] = self.step
        self.revived += len(dead)

    def _train_discriminator(self, real: Tensor, decoded: Tensor) -> None:
        loss = (F.relu(1 - self.discriminator(real)).mean()
                + F.relu(1 + self.discriminator(decoded)).mean())
        self._descend(loss, self.discriminator, self._judge_optimizer, math.inf)


def _initial(config: VqganRunConfig) -> ImageTokenizer:
    """Return the tokenizer to train; CheckpointError or ConfigError if it cannot be had."""
    if not config.init_from:
        return ImageTokenizer(config.network)
    tokenizer = load_image_tokenizer(config.init_from)
    if replace(tokenizer.config, local_encoder=config.network.local_encoder) != config.network:
        raise ConfigError(f'{config.init_from} is {tokenizer.config}, network asks for '
                          f'{config.network}; make them alike, or start without init_from')
    if tokenizer.config != config.network:  # another encoder: it begins anew
        known = {name: tensor for name, tensor in tokenizer.state_dict().items()
                 if not name.startswith('encoder.')}
        tokenizer = ImageTokenizer(config.network)
        tokenizer.load_state_dict(known, strict=False)
    return tokenizer.requires_grad_(True).train()


def _scaled(frames: NDArray[np.uint8], device: str) -> Tensor:
    """Return pixels float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
