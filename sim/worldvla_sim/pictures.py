# SPDX-License-Identifier: Apache-2.0
"""Videos and contact sheets of rollouts: for people, who would rather look than read."""

from collections.abc import Sequence
import errno
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import imageio_ffmpeg
import numpy as np

_INK, _PAPER = (235, 235, 235), 24  # text and bar of a caption
_BAR_HEIGHT = 22  # [px]
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


class VideoWriter:
    """
    Writes frames of one size to an mp4 file that browsers play (H.264).

    :param path: written whole or not at all: a temporary file becomes it on `close`
    :param size: (height, width) [px]; odd sizes are cropped by a pixel, as H.264 needs even ones
    :param fps: frames per second
    :raises OSError: when a frame is added or at the end, if it cannot be written
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self._path = path
        self._partial = path.with_name(f'.{path.stem}.part.mp4')
        self._frames = 0
        self._height, self._width = (side - side % 2 for side in size)
        self._sink: Any = imageio_ffmpeg.write_frames(
            str(self._partial), (self._width, self._height), fps=fps, codec='libx264',
            quality=7, macro_block_size=2, ffmpeg_log_level='error')
        self._sink.send(None)

    def add(self, frame: np.ndarray) -> None:
        """Append one frame, (H, W, 3) uint8 RGB."""
        self._sink.send(np.ascontiguousarray(frame[:self._height, :self._width]))
        self._frames += 1

    def close(self) -> None:
        """Finish the file; safe to repeat."""
        if self._sink is None:
            return
        sink, self._sink = self._sink, None
        sink.close()
        # The program that encodes may die after the last frame, and nothing tells of its status.
        if int(cv2.VideoCapture(str(self._partial)).get(cv2.CAP_PROP_FRAME_COUNT)) < self._frames:
            self._discard()
            raise OSError(errno.EIO, 'the video was not written to its end', str(self._path))
        self._partial.replace(self._path)

    def _discard(self) -> None:
        """Leave no file behind; safe to repeat."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> 'VideoWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._discard()


def captioned(frame: np.ndarray, text: str, scale: int = 1) -> np.ndarray:
    """Return a frame (H, W, 3) enlarged by a whole number, with a bar of text below it."""
    enlarged = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    bar = np.full((_BAR_HEIGHT, enlarged.shape[1], 3), _PAPER, np.uint8)
    cv2.putText(bar, text, (6, _BAR_HEIGHT - 7), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    return np.vstack([enlarged, bar])


def evenly_spaced(frames: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Pick frames from first to last; fewer than `count` if there are fewer."""
    if not frames:
        return []
    indices = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    return [frames[i] for i in indices]


def save_contact_sheet(path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """
    Save rows of frames, each under its title, as one PNG.

    :param rows: (title, frames of one size), at least one row with a frame
    """
    gap = 4
    height, width, _ = next(frames[0] for _, frames in rows if frames).shape
    columns = max(len(frames) for _, frames in rows)
    sheet = np.full((len(rows) * (height + _BAR_HEIGHT), columns * (width + gap) - gap, 3), _PAPER,
                    np.uint8)
    for row, (title, frames) in enumerate(rows):
        top = row * (height + _BAR_HEIGHT)
        cv2.putText(sheet, title, (6, top + _BAR_HEIGHT - 7), _FONT, _FONT_SCALE, _INK, 1,
                    cv2.LINE_AA)
        for column, frame in enumerate(frames):
            left = column * (width + gap)
            sheet[top + _BAR_HEIGHT:top + _BAR_HEIGHT + height, left:left + width] = frame
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise OSError(f'cannot write {path}')
