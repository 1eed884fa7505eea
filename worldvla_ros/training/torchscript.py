# SPDX-License-Identifier: Apache-2.0
"""Networks that the field passes around as TorchScript files, to judge pictures and videos."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldvla_ros.errors import CheckpointError


class ScriptedFeatures:
    """Features by a network of a TorchScript file; it is never trained.

    :param expected: which file that is, for messages.
    :param options: what the network is always called with.
    :raises CheckpointError: no TorchScript file.
    """

    def __init__(self, path: Path, device: str, expected: str, **options: bool) -> None:
        self._path, self._device, self._expected = path, device, expected
        self._options: dict[str, Any] = options
        try:
            self._module = torch.jit.load(str(path), map_location=device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f'{path} is no TorchScript file: {_first_line(error)}; '
                                  f'expected {expected}') from error
        for parameter in self._module.parameters():  # a script has no requires_grad_ of its own
            parameter.requires_grad_(False)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features [N, D] of pixels [N, ...] in [0, 255], with a gradient to the pixels.

        :raises CheckpointError: the network takes other pixels or options, or has no features.
        """
        try:
            features: Tensor = self._module(pixels.to(self._device), **self._options)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f'{self._path} does not take {tuple(pixels.shape)} with '
                f'{sorted(self._options)}: {_first_line(error)}; expected {self._expected}'
            ) from error
        if features.ndim != 2 or len(features) != len(pixels):
            raise CheckpointError(f'{self._path}: expected features [{len(pixels)}, D], got '
                                  f'{tuple(features.shape)}; expected {self._expected}')
        return features


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
