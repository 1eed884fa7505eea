# SPDX-License-Identifier: Apache-2.0
"""How well held-out frames survive a tokenizer, and how its codes are used: a log and curves."""

from collections.abc import Mapping
import csv
from dataclasses import dataclass
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.training.frames import FrameSet
from worldvla_ros.training.video_metrics import decibels, squared_errors
from worldvla_ros.whole_files import write_whole_csv

EVALUATION_BATCH = 32  # frames
COLUMNS = ('step', 'loss', 'psnr', 'moving_psnr', 'still_kept', 'held_out_codes', 'used_codes',
           'perplexity', 'revived_codes')


@dataclass(frozen=True)
class ReconstructionQuality:
    """How well held-out frames survive the tokenizer."""

    psnr: float  # [dB] over all pixels
    moving_psnr: float  # [dB] over the pixels that move; NaN where none do
    still_kept: float  # share of the codes where nothing moves that stay from frame to frame
    used_codes: int

    @property
    def in_words(self) -> str:
        """Return one line for people."""
        return (f'PSNR {self.psnr:.2f} dB, moving pixels {self.moving_psnr:.2f} dB, '
                f'{self.still_kept:.1%} of still codes kept, {self.used_codes} codes used')


def reconstruction_quality(tokenizer: ImageTokenizer, frames: FrameSet, most: int = 512
                           ) -> ReconstructionQuality:
    """Measure evenly spaced frames, at most so many, through `encode` and `decode`.

    A place of the code grid is still where no pixel moves. What keeps few codes there shows a
    world model changes that nobody can foresee.
    """
    indices = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int))
    total, moving_total, pixels, moving_pixels, kept, still_places = 0.0, 0.0, 0, 0, 0, 0
    used: set[int] = set()
    for first in range(0, len(indices), EVALUATION_BATCH):
        some = indices[first:first + EVALUATION_BATCH]
        codes = tokenizer.encode(frames.frames[some])
        error = squared_errors(tokenizer.decode(codes).cpu().numpy(), frames.frames[some])
        moving = frames.moving(some)
        total, pixels = total + float(error.sum()), pixels + error.size
        moving_total += float(error[moving].sum())
        moving_pixels += int(moving.sum())
        before = tokenizer.encode(frames.frames[frames.neighbours[some]])
        (height, width), side = codes.shape[1:], tokenizer.factor
        still = ~moving.reshape(-1, height, side, width, side).any((2, 4))
        kept += int((codes == before).cpu().numpy()[still].sum())
        still_places += int(still.sum())
        used.update(codes.unique().tolist())
    return ReconstructionQuality(_psnr(total, pixels), _psnr(moving_total, moving_pixels),
                                 kept / still_places if still_places else math.nan, len(used))


def perplexity(usage: Tensor) -> float:
    """Return exp of the entropy [nat] of how often codes [N] were chosen; 0 when none was.

    It is the number of codes when all are chosen alike, and 1 when one of them always is.
    """
    share = usage.double() / usage.sum().clamp(min=1)
    return float(torch.special.entr(share).sum().exp()) if usage.any() else 0.0


class QualityLog:
    """metrics.csv and curves.png of a tokenizer's training."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        """Continue the log, without rows after the step that is resumed at."""
        self._path, self._picture = folder / 'metrics.csv', folder / 'curves.png'
        self._rows: list[Mapping[str, str]] = []
        if self._path.exists():
            with self._path.open(newline='') as file:
                self._rows = [row for row in csv.DictReader(file)
                              if int(row['step']) <= resumed_at]

    def write(self, values: Mapping[str, float]) -> None:
        """Add a row of COLUMNS; the file is written whole."""
        self._rows.append({name: f'{value:.6g}' for name, value in values.items()})
        write_whole_csv(self._path, COLUMNS, self._rows)

    def plot(self) -> None:
        """Draw the PSNR of all and of moving pixels, and the use of the codebook."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(10, 4), layout='constrained')
        axes = figure.subplots(1, 2)
        for axis, names, label in (
                (axes[0], ('psnr', 'moving_psnr'), 'PSNR of held-out frames [dB]'),
                (axes[1], ('used_codes', 'perplexity', 'revived_codes'), 'codes')):
            for name in names:
                axis.plot([int(row['step']) for row in self._rows],
                          [float(row[name]) for row in self._rows], label=name)
            axis.set(xlabel='optimizer step', ylabel=label)
            axis.legend()
        figure.savefig(self._picture, dpi=100)


def _psnr(squared_error: float, count: int) -> float:
    """Return the PSNR [dB] of a sum of squared errors, range 1; NaN of nothing."""
    return float(decibels(squared_error / count)) if count else math.nan
