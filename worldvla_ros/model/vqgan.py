# SPDX-License-Identifier: Apache-2.0
"""The VQ-GAN's networks, bottom-up: encoder, decoder and codebook.

Module names give the state-dict keys of Meta's `vqgan.ckpt`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.errors import CheckpointError

GROUP_NORM_EPS = 1e-6  # of the public implementation


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Shape of the VQ-GAN; the defaults are Chameleon's."""

    embed_dim: int = 256
    n_embed: int = 8192  # codes
    z_channels: int = 256
    ch: int = 128  # channels at full resolution
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)  # channels per level, each level halves the size
    num_res_blocks: int = 2
    norm_groups: int = 32  # 32 in every released checkpoint; small ones need fewer channels
    # Side of the squares of pixels that become channels before the first convolution; 1 in every
    # released checkpoint. 4 makes a small tokenizer seven times cheaper to train on a CPU.
    patch_size: int = 1
    # A code depends on pixels at most two codes away: below its first resolution the encoder mixes
    # neighbours only where it halves the size, it normalizes each place by itself and has no
    # attention. False in every released checkpoint.
    local_encoder: bool = False

    @property
    def factor(self) -> int:
        """Pixels per code along each side."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> 'ImageTokenizerConfig':
        """Read Meta's nested layout (`ddconfig`) or its own flat one."""
        entries = entries.get('model', entries)
        entries = entries.get('params', entries)
        flat = {**entries, **entries.get('ddconfig', {})}
        if _has_attention_before_the_middle(flat) or flat.get('double_z'):
            raise CheckpointError(
                f'image tokenizer: expected attention in the middle block only and double_z '
                f'false, got attn_resolutions={flat.get("attn_resolutions")} and '
                f'double_z={flat.get("double_z")}')
        known = {field.name for field in fields(cls)}
        missing = known - {'norm_groups', 'patch_size', 'local_encoder'} - set(flat)
        if missing:
            raise CheckpointError(f'image tokenizer: the configuration lacks {sorted(missing)}')
        values = {name: flat[name] for name in known & set(flat)}
        return cls(**{**values, 'ch_mult': tuple(values['ch_mult'])})

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of config.json; inverse of `from_dict`.

        `local_encoder` only where it is true: the fingerprints of older tokenizers, which the
        stores that they made know them by, stay what they were.
        """
        entries = {field.name: getattr(self, field.name) for field in fields(self)}
        return entries if self.local_encoder else {
            name: value for name, value in entries.items() if name != 'local_encoder'}


def _has_attention_before_the_middle(entries: Mapping[str, Any]) -> bool:
    """Tell whether a level has one of the resolutions [px] that the public code attends at."""
    wanted, size = entries.get('attn_resolutions') or (), entries.get('resolution')
    if not size:
        return bool(wanted)
    return any(size >> level in wanted for level in range(len(entries.get('ch_mult', ()))))


class PlaceNorm(nn.LayerNorm):
    """Layer norm over the channels of each place, so that no place knows of another."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        return super().forward(x.movedim(1, 3)).movedim(3, 1)


def _norm(channels: int, groups: int) -> nn.Module:
    """Return the norm over `groups` groups of channels and all places; 0: over each place."""
    return nn.GroupNorm(groups, channels, GROUP_NORM_EPS) if groups else PlaceNorm(channels)


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, kernel, padding='same')
        self.norm2 = _norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, kernel, padding='same')
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H, W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x)


class AttentionBlock(nn.Module):
    """Single-head attention over all positions of the smallest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, GROUP_NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # scale C^-0.5
        return x + self.proj_out(h[:, 0].transpose(1, 2).view_as(x))


class Middle(nn.Module):
    """The blocks at the smallest resolution."""

    def __init__(self, channels: int, groups: int, *, local: bool = False) -> None:
        super().__init__()
        kernel = 1 if local else 3
        self.block_1 = ResBlock(channels, channels, groups, kernel)
        self.attn_1 = nn.Identity() if local else AttentionBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve the size: pad right and bottom by one, then a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the size: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


class Level(nn.Module):
    """The blocks of one resolution, then a change of size where there is a next one."""

    def __init__(self, channels: list[int], groups: int, resize: dict[str, nn.Module],
                 kernel: int = 3) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b, groups, kernel) for a, b in pairwise(channels))
        self.resize_name = next(iter(resize), None)
        for name, module in resize.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H', W']."""
        for block in self.block:
            x = block(x)
        return getattr(self, self.resize_name)(x) if self.resize_name else x


class Encoder(nn.Module):
    """Pixels [N, 3, H, W] in [-1, 1] to latents [N, z, H/16, W/16]."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        levels = [config.ch * mult for mult in config.ch_mult]
        local, last = config.local_encoder, len(levels) - 1
        groups = 0 if local else config.norm_groups
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(3 * config.patch_size ** 2, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level([previous, *[size] * config.num_res_blocks], groups,
                  {'downsample': Downsample(size)} if i < last else {},
                  kernel=1 if local and i > 0 else 3)
            for i, (previous, size) in enumerate(zip([config.ch, *levels], levels,
                                                     strict=False)))
        self.mid = Middle(levels[-1], groups, local=local)
        self.norm_out = _norm(levels[-1], groups)
        self.conv_out = nn.Conv2d(levels[-1], config.z_channels, 1 if local else 3, padding='same')

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class ImageDecoder(nn.Module):
    """Latents [N, z, h, w] to pixels [N, 3, 16h, 16w], about [-1, 1]."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        levels = [config.ch * mult for mult in config.ch_mult]
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(config.z_channels, levels[-1], 3, padding=1)
        self.mid = Middle(levels[-1], groups)
        # Index 0 is the highest resolution, as in the public state dict; used from the last.
        self.up = nn.ModuleList(
            Level([previous, *[size] * (config.num_res_blocks + 1)], groups,
                  {'upsample': Upsample(size)} if i > 0 else {})
            for i, (previous, size) in enumerate(zip([*levels[1:], levels[-1]], levels,
                                                     strict=True)))
        self.norm_out = nn.GroupNorm(groups, levels[0], GROUP_NORM_EPS)
        self.patch_size = config.patch_size
        self.conv_out = nn.Conv2d(levels[0], 3 * config.patch_size ** 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Decode."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)


class Codebook(nn.Module):
    """The code vectors."""

    def __init__(self, num_codes: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, size)

    def nearest(self, latents: Tensor) -> Tensor:
        """Return the index int64 [N, h, w] of the nearest code of latents [N, C, h, w].

        The public code adds |p|^2, which is the same for all codes and rounds away differences of
        near ties; they may fall otherwise here.
        """
        points = latents.permute(0, 2, 3, 1).flatten(0, 2)
        codes = self.embedding.weight
        # |p - c|^2 = |p|^2 - 2 (p c - |c|^2 / 2): one pass over the largest table
        closeness = torch.addmm(-0.5 * codes.square().sum(1), points, codes.T)
        return closeness.argmax(1).view(latents.shape[0], *latents.shape[2:])
