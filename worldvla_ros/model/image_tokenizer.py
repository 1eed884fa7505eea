# SPDX-License-Identifier: Apache-2.0
"""VQ-GAN image tokenizer: RGB frames to code indices and back, one code per 16 x 16 pixels.

The network runs in float32. On a GPU cuDNN's convolutions are TensorFloat-32 where
`torch.backends.cudnn.allow_tf32` says so, by default and in the public implementation: some codes
then differ from those of a CPU. Pixels are scaled and truncated exactly as there.
"""

from collections.abc import Iterator, Mapping
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldvla_ros.errors import CheckpointError, FrameError
from worldvla_ros.model.vqgan import Codebook, Encoder, ImageDecoder, ImageTokenizerConfig
from worldvla_ros.model.weight_files import (
    fill_from_tensors,
    read_json,
    read_safetensors,
    read_torch_checkpoint,
    write_safetensors,
)

# (configuration, weights) in a folder: Meta's layout, our own.
LAYOUTS = (('vqgan.yaml', 'vqgan.ckpt'), ('config.json', 'model.safetensors'))


class ImageTokenizer(nn.Module):
    """RGB frames [N, H, W, 3] to code indices [N, H/16, W/16], and back."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = ImageDecoder(config)
        self.quantize = Codebook(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        # uint8 -> [-1, 1], in float64 and then rounded, as the public code does.
        self._scaled = torch.tensor(np.arange(256) / 255 * 2 - 1, dtype=torch.float32,
                                    device='cpu')

    @property
    def factor(self) -> int:
        """Pixels per code along each side."""
        return self.config.factor

    @torch.inference_mode()
    def encode(self, frames: Tensor | np.ndarray) -> Tensor:
        """Return the code indices int64 [N, H/16, W/16] of RGB frames uint8 [N, H, W, 3].

        Raises FrameError for another dtype or shape, or sides that are no multiple of 16. (A
        prompt counts sides in blocks of 32 px, and its builder refuses odd numbers of codes.)
        """
        return self.quantize.nearest(self.latents(frames))

    @torch.inference_mode()
    def latents(self, frames: Tensor | np.ndarray) -> Tensor:
        """Return the latents float32 [N, C, H/16, W/16] before quantization."""
        # torch takes no array that runs backwards, as a view of a BGR picture does
        pixels = (frames if isinstance(frames, Tensor)
                  else torch.tensor(np.ascontiguousarray(frames)))
        side = self.factor
        if (pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3
                or pixels.shape[1] % side or pixels.shape[2] % side or not pixels.numel()):
            raise FrameError(f'expected RGB frames uint8 [N, H, W, 3] with sides that are '
                             f'multiples of {side}, got {tuple(pixels.shape)} {pixels.dtype}')
        device = self.quant_conv.weight.device
        self._scaled = self._scaled.to(device)  # once: a copy would wait for the GPU
        scaled = self._scaled[pixels.to(device).int()]
        return self.quant_conv(self.encoder(scaled.permute(0, 3, 1, 2).contiguous()))

    @torch.inference_mode()
    def decode(self, codes: Tensor | np.ndarray) -> Tensor:
        """Return RGB frames uint8 [N, 16h, 16w, 3] of code indices [N, h, w]."""
        pixels = self.decode_raw(codes).clamp(-1, 1)
        # Truncated, not rounded: the public code casts.
        return ((pixels + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1)

    @torch.inference_mode()
    def decode_raw(self, codes: Tensor | np.ndarray) -> Tensor:
        """Return the decoder's output float32 [N, 3, 16h, 16w] before clamping."""
        indices = codes if isinstance(codes, Tensor) else torch.tensor(codes)
        indices = indices.to(self.quant_conv.weight.device)
        if indices.ndim != 3 or indices.is_floating_point() or not indices.numel():
            raise FrameError(f'expected code indices [N, h, w], got {tuple(indices.shape)} '
                             f'{indices.dtype}')
        if int(indices.min()) < 0 or int(indices.max()) >= self.config.n_embed:
            raise FrameError(f'code indices must lie in [0, {self.config.n_embed})')
        vectors = self.quantize.embedding(indices.long()).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(vectors))


def load_image_tokenizer(path: str | Path, device: str = 'cpu') -> ImageTokenizer:
    """Load a VQ-GAN from a folder with one of LAYOUTS, or from a file in it.

    Its weights are float32, in evaluation mode.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    layout = _layout(folder)
    if layout is None:
        raise CheckpointError(f'no image tokenizer in {folder}: expected one of '
                              + ', '.join(' + '.join(names) for names in LAYOUTS))
    config_path, weights_path = (folder / name for name in layout)
    tokenizer = _empty(ImageTokenizerConfig.from_dict(_read_config(config_path)))
    tensors: Iterator[tuple[str, Tensor]]
    if weights_path.suffix == '.ckpt':  # Meta's, which also holds what only training needed
        parts = tuple(f'{name}.' for name, _ in tokenizer.named_children())
        tensors = ((name, value) for name, value in read_torch_checkpoint(weights_path)
                   if name.startswith(parts))
    else:
        tensors = read_safetensors(weights_path)
    fill_from_tensors(tokenizer, tensors, weights_path, device, torch.float32)
    return tokenizer.eval()


def save_image_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Write config.json and model.safetensors; inverse of `load_image_tokenizer`.

    Weights that were rounded to float16 take half the space, and are the same when they are read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tokenizer.config.to_dict(), indent=2)
    (folder / 'config.json').write_text(text + '\n')
    state = tokenizer.state_dict()
    half = {name: value.half() for name, value in state.items()}
    loses_nothing = all(torch.equal(value, half[name].float()) for name, value in state.items())
    write_safetensors(half if loses_nothing else state, folder / 'model.safetensors')


@torch.no_grad()
def round_to_half(tokenizer: ImageTokenizer) -> None:
    """Round the weights to float16, in place; they stay float32.

    Do it before anything is tokenised: a few codes change. Raises CheckpointError for a weight
    that float16 cannot hold.
    """
    for name, parameter in tokenizer.named_parameters():
        rounded = parameter.half()
        if not rounded.isfinite().all():
            raise CheckpointError(f'image tokenizer: {name} reaches {parameter.abs().max():g}, '
                                  'float16 holds up to 65504; keep float32')
        parameter.copy_(rounded)


def tokenizer_fingerprint(tokenizer: ImageTokenizer) -> str:
    """Return a short name of a tokenizer: a hash over its configuration and all its weights."""
    digest = hashlib.sha256(json.dumps(tokenizer.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f'sha256:{digest.hexdigest()[:12]}'


def has_image_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a VQ-GAN in one of LAYOUTS."""
    return _layout(folder) is not None


def _layout(folder: Path) -> tuple[str, str] | None:
    complete = (names for names in LAYOUTS if all((folder / name).is_file() for name in names))
    return next(complete, None)


def _empty(config: ImageTokenizerConfig) -> ImageTokenizer:
    with torch.device('meta'):
        return ImageTokenizer(config)


def _read_config(path: Path) -> Mapping[str, Any]:
    if path.suffix == '.json':
        return read_json(path)
    import yaml  # only Meta's layout needs it
    try:
        return dict(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise CheckpointError(f'{path} is no YAML mapping: {error}') from error
