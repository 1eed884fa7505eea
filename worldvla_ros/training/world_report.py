# SPDX-License-Identifier: Apache-2.0
"""Sum up what was measured of a world model, in numbers, words and pictures.

Means follow the published evaluation: over the frames of a clip first, then over clips. Pixels
that moved (those that differ from the frame of the start, see `frames.differing`) are few and not
the same number in each frame, so their squared errors are summed over all clips first.

Deviations: frames are compared at the size of the model, where the public code resizes to 256 px,
and a clip has the steps asked for, where it takes whole episodes. FVD falls with the number of
clips, so compare it only between runs on the same ones.

Pixels alone do not tell whether a model foresees anything. On all pixels a still background
favours copying, which loses nothing to the image tokenizer. Pixels that moved are those where the
copy is wrong, so there any blur wins against it: encoding and decoding it gains 2 dB. The model is
therefore compared with the better of both copies, and by what no blur can win: which of the image
codes that changed since the start are predicted right (a copy: none), and which of the others are
kept (a copy: all).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from worldvla_ros.training.video_metrics import (
    MIN_FVD_FRAMES,
    MIN_FVD_VIDEOS,
    Video,
    decibels,
    frechet_distance,
)
from worldvla_ros.whole_files import write_whole, write_whole_csv

MODEL, COPY, CODED_COPY, CEILING = ('world model', 'copy last frame', 'copy, tokenized',
                                    'tokenizer ceiling')
COPIES = (COPY, CODED_COPY)
TILE_PX, HEADER_PX, LABEL_PX = 128, 18, 110  # of the strip picture
MAX_COLUMNS = 8
ERROR_GAIN = 3  # so that a small difference can be seen


@dataclass(frozen=True, eq=False)
class CodesRight:
    """How many image codes of T frames are the real ones.

    The image tokenizer gives some places another code though nothing moves there, and nobody can
    foresee those: 100 % of the changed ones is out of reach.
    """

    changed: NDArray[np.int64]  # (T,) codes of the real frame that differ from the start's
    changed_right: NDArray[np.int64]  # (T,) of these
    kept: NDArray[np.int64]  # (T,) of the codes that are as at the start
    num_codes: int  # of a frame

    @classmethod
    def count(cls, codes: NDArray[np.int64], real: NDArray[np.int64], start: NDArray[np.int64]
              ) -> 'CodesRight':
        """Compare codes (T, 2h, 2w) with the real ones and those of the start (1, 2h, 2w)."""
        changed, right = real != start, codes == real
        return cls(changed.sum((1, 2)), (changed & right).sum((1, 2)),
                   (~changed & right).sum((1, 2)), real[0].size)


@dataclass(frozen=True, eq=False)
class ClipMeasures:
    """How far T frames of one clip are from the real ones."""

    error: NDArray[np.float64]  # (T,) mean squared error, range 1
    moved_error: NDArray[np.float64]  # (T,) sum of squared errors over pixels that moved
    moved_pixels: NDArray[np.int64]  # (T,)
    ssim: NDArray[np.float64]  # (T,)
    codes: CodesRight
    lpips: NDArray[np.float64] | None  # (T,)
    features: dict[int, NDArray[np.float64]]  # (D,) of the first N frames, by N
    real_features: dict[int, NDArray[np.float64]]  # (D,) of the real ones


@dataclass(frozen=True, eq=False)
class StripRow:
    """One clip to be drawn."""

    title: str
    real: Video  # (T + 1, S, S, 3), the frame of the start first
    imagined: Video  # (T, S, S, 3)


@dataclass(frozen=True)
class Row:
    """One line of the table; NaN where there is nothing to measure or no weights to do it."""

    frames: str  # which predictor
    steps: int
    psnr: float  # [dB] mean over steps 1 to `steps`
    psnr_at: float  # [dB] at the last of them
    moved_psnr: float  # [dB] likewise, pixels that moved
    moved_psnr_at: float  # [dB]
    ssim: float  # times 100, as published
    lpips: float  # times 100, as published
    fvd: float
    changed_right: float  # share of the codes that changed since the start, at the last step
    kept: float  # share of the other codes
    beats_copy: int  # clips nearer the truth than both copies where pixels moved, at the last step
    moved_clips: int  # of so many in which pixels moved until that step


@dataclass(frozen=True)
class Report:
    """What was measured, on what, and how."""

    checkpoint: str
    demonstrations: str
    clips: list[str]
    held_out_episodes: int
    too_short_episodes: int
    image_size: int  # [px], also of the frames compared
    reencode: bool
    split: str
    drop_no_ops: bool
    horizons: tuple[int, ...]
    measures: dict[str, list[ClipMeasures]]  # by predictor, clip by clip

    def rows(self) -> list[Row]:
        """Return the table, horizon by horizon."""
        return [self._row(name, steps) for steps in self.horizons for name in self.measures]

    def _row(self, name: str, steps: int) -> Row:
        clips, last = self.measures[name], slice(steps - 1, steps)
        copies = zip(*(self.measures[copy] for copy in COPIES), strict=True)
        moved = [(clip.moved_error[steps - 1],
                  min(copied.moved_error[steps - 1] for copied in both))
                 for clip, both in zip(clips, copies, strict=True)
                 if clip.moved_pixels[steps - 1]]
        lpips = [clip.lpips[:steps].mean() for clip in clips if clip.lpips is not None]
        return Row(
            name, steps, _psnr(clips, slice(steps)), _psnr(clips, last),
            _moved_psnr(clips, slice(steps)), _moved_psnr(clips, last),
            100 * float(np.mean([clip.ssim[:steps].mean() for clip in clips])),
            100 * float(np.mean(lpips)) if lpips else math.nan, _fvd(clips, steps),
            *_codes_right([clip.codes for clip in clips], steps),
            sum(bool(error < copied) for error, copied in moved), len(moved))

    def curve(self, name: str) -> dict[str, list[float]]:
        """Return PSNR [dB] of each step, over all pixels and over those that moved."""
        clips, steps = self.measures[name], range(max(self.horizons))
        return {'psnr': [_psnr(clips, slice(step, step + 1)) for step in steps],
                'moved_psnr': [_moved_psnr(clips, slice(step, step + 1)) for step in steps]}

    def skipped(self) -> dict[str, str]:
        """Return which metrics were not measured, and why."""
        clips = self.measures[MODEL]
        reasons = {}
        if clips[0].lpips is None:
            reasons['lpips'] = 'needs --lpips-weights FILE (`make judges` gets it)'
        if max(self.horizons) < MIN_FVD_FRAMES or len(clips) < MIN_FVD_VIDEOS:
            reasons['fvd'] = (f'needs {MIN_FVD_FRAMES} frames and {MIN_FVD_VIDEOS} clips or '
                              'more: raise --horizons or --clips')
        elif not clips[0].features:
            reasons['fvd'] = 'needs --i3d-weights FILE (`make judges` gets it)'
        return reasons

    def in_words(self) -> str:
        """Return table, verdict on pixels that moved, and what was skipped, for the terminal."""
        return '\n'.join([
            self.checkpoint,
            f'{len(self.clips)} clips of {self.held_out_episodes} held-out episodes '
            f'({self.too_short_episodes} too short) of {self.demonstrations}, '
            f'{self.image_size} px, imagined codes '
            f'{"re-encoded" if self.reencode else "reused"}', '', *self._table(), '',
            *self._verdicts(),
            *(f'{name.upper()} skipped: {why}' for name, why in self.skipped().items())])

    def _table(self) -> Iterator[str]:
        yield (f'{"steps":>5} {"":<18}{"PSNR":>7}{"at end":>8}{"moved":>8}{"at end":>8}'
               f'{"SSIM":>8}{"LPIPS":>9}{"FVD":>9}{"changed":>9}{"kept":>7}')
        for row in self.rows():
            numbers = (row.psnr, row.psnr_at, row.moved_psnr, row.moved_psnr_at, row.ssim)
            cells = [f'{value:8.2f}' for value in numbers]
            for name, value in (('lpips', row.lpips), ('fvd', row.fvd)):
                missing = 'skipped' if name in self.skipped() else '-'  # of too few frames
                cells.append(f'{value:9.2f}' if math.isfinite(value) else f'{missing:>9}')
            cells += [f'{row.changed_right:9.1%}', f'{row.kept:7.1%}']
            yield f'{row.steps:5} {row.frames:<17}{"".join(cells)}'

    def _verdicts(self) -> Iterator[str]:
        rows = {(row.frames, row.steps): row for row in self.rows()}
        for steps in self.horizons:
            model, copies = rows[MODEL, steps], [rows[copy, steps] for copy in COPIES]
            moved = _against_copy(model.moved_psnr_at,
                                  max(copy.moved_psnr_at for copy in copies))
            everywhere = _against_copy(model.psnr_at, max(copy.psnr_at for copy in copies))
            yield (f'step {steps}, world model against the better copy: {moved} on pixels that '
                   f'moved (better in {model.beats_copy} of {model.moved_clips} clips), '
                   f'{everywhere} on all; {_percent(model.changed_right)} of the codes that '
                   f'changed are right (copy 0 %), {_percent(model.kept)} of the others are kept '
                   '(copy 100 %)')


def _against_copy(model: float, copied: float) -> str:
    """Return the gain of one PSNR [dB] over another in words."""
    gain = model - copied
    if math.isnan(gain):
        return 'nothing to compare'
    return f'{abs(gain):.2f} dB {"better" if gain > 0 else "worse"}'


def _percent(share: float) -> str:
    return 'none' if math.isnan(share) else f'{100 * share:.1f} %'


def _codes_right(clips: Sequence[CodesRight], steps: int) -> tuple[float, float]:
    """Return the shares right of all codes that changed, and of the others, at one step."""
    changed, changed_right, kept = (
        sum(int(counts[steps - 1]) for counts in column) for column in zip(
            *((clip.changed, clip.changed_right, clip.kept) for clip in clips), strict=True))
    others = sum(clip.num_codes for clip in clips) - changed
    return (changed_right / changed if changed else math.nan,
            kept / others if others else math.nan)


def _psnr(clips: Sequence[ClipMeasures], steps: slice) -> float:
    return float(np.mean([decibels(clip.error[steps]).mean() for clip in clips]))


def _moved_psnr(clips: Sequence[ClipMeasures], steps: slice) -> float:
    pixels = sum(int(clip.moved_pixels[steps].sum()) for clip in clips)
    error = sum(float(clip.moved_error[steps].sum()) for clip in clips)
    return float(decibels(error / pixels)) if pixels else math.nan


def _fvd(clips: Sequence[ClipMeasures], steps: int) -> float:
    if steps not in clips[0].features:
        return math.nan
    return frechet_distance(np.stack([clip.features[steps] for clip in clips]),
                            np.stack([clip.real_features[steps] for clip in clips]))


def write_report(report: Report, strips: Sequence[StripRow], folder: Path) -> None:
    """Write metrics.json, metrics.csv, curve.png and strip.png; OSError where it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(row) for row in report.rows()]
    settings = {name: value for name, value in vars(report).items() if name != 'measures'}
    content = {**settings, 'skipped': report.skipped(),
               'rows': [{name: _plain(value) for name, value in row.items()} for row in rows],
               'curves': {name: {metric: [_plain(value) for value in values]
                                 for metric, values in report.curve(name).items()}
                          for name in report.measures}}
    write_whole(folder / 'metrics.json', lambda draft: draft.write_text(
        json.dumps(content, indent=1, allow_nan=False) + '\n'))
    write_whole_csv(folder / 'metrics.csv', rows[0], (
        {name: '' if _plain(value) is None else value for name, value in row.items()}
        for row in rows))
    write_whole(folder / 'curve.png', lambda draft: _draw_curve(report, draft))
    write_whole(folder / 'strip.png', lambda draft: draw_strips(strips).save(draft))


def draw_strips(strips: Sequence[StripRow]) -> Image.Image:
    """Return imagined beside real frames at some steps, with the errors of model and copy."""
    font = ImageFont.load_default(11)
    columns = _columns(len(strips[0].imagined))
    height = 2 * HEADER_PX + 4 * TILE_PX
    picture = Image.new('RGB', (LABEL_PX + len(columns) * TILE_PX, height * len(strips)), 'white')
    draw = ImageDraw.Draw(picture)
    for number, strip in enumerate(strips):
        top = number * height
        draw.text((4, top + 3), strip.title, 'black', font)
        copied = np.repeat(strip.real[:1], len(strip.imagined), axis=0)
        for line, (label, video) in enumerate((
                ('real', strip.real[1:]), ('imagined', strip.imagined),
                (f'error x {ERROR_GAIN}', _error(strip.imagined, strip.real[1:])),
                (f'copy error x {ERROR_GAIN}', _error(copied, strip.real[1:])))):
            y = top + 2 * HEADER_PX + line * TILE_PX
            draw.text((4, y + TILE_PX // 2), label, 'black', font)
            for column, step in enumerate(columns):
                x = LABEL_PX + column * TILE_PX
                if line == 0:
                    draw.text((x + 4, y - HEADER_PX + 3), f'step {step}', 'black', font)
                tile = Image.fromarray(video[step - 1])
                picture.paste(tile.resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR), (x, y))
    return picture


def _columns(steps: int) -> list[int]:
    """Return steps from 1 to the last, denser at the start, where quality falls."""
    return sorted({round(step) for step in np.geomspace(1, steps, min(steps, MAX_COLUMNS))})


def _error(video: Video, real: Video) -> Video:
    difference = np.abs(video.astype(np.int16) - real) * ERROR_GAIN
    shown: Video = np.minimum(difference, 255).astype(np.uint8)
    return shown


def _draw_curve(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    steps = np.arange(1, max(report.horizons) + 1)
    for axis, metric, title in ((axes[0], 'psnr', 'all pixels'),
                                (axes[1], 'moved_psnr', 'pixels that moved')):
        for name in report.measures:
            axis.plot(steps, report.curve(name)[metric], marker='.', label=name)
        axis.set(xlabel='steps since the real frame', ylabel='PSNR [dB]', title=title)
        axis.legend()
    figure.savefig(path, dpi=100)


def _plain(value: Any) -> Any:
    """Return None for NaN, which JSON and tables have no number for."""
    return None if isinstance(value, float) and math.isnan(value) else value
