# SPDX-License-Identifier: Apache-2.0
"""Frames of demonstrations in memory, and which of their pixels move."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.libero_hdf5 import demonstration_files, read_episodes
from worldvla_ros.training.samples import split_names

MOVING_DIFFERENCE = 12  # of 255 in any channel: above what shading flickers by


@dataclass(frozen=True, eq=False)
class FrameSet:
    """The frames of some episodes, one episode after the other."""

    frames: NDArray[np.uint8]  # (F, H, W, 3) RGB
    neighbours: NDArray[np.int64]  # (F,) the frame before, or after the first of an episode

    def moving(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the pixels (N, H, W) that differ between these frames and their neighbours."""
        here = self.frames[indices].astype(np.int16)
        difference = np.abs(here - self.frames[self.neighbours[indices]])
        return np.asarray(difference.max(-1) > MOVING_DIFFERENCE)

    def __len__(self) -> int:
        return len(self.frames)


def load_frames(folder: Path, image_size: int) -> tuple[FrameSet, FrameSet]:
    """Return the frames for training and the held-out ones, 90 to 10 episodes within each task.

    All are held in memory: 49 kB each at 128 px, 197 kB at 256 px.
    """
    by_task: dict[str, dict[str, NDArray[np.uint8]]] = defaultdict(dict)
    for path in demonstration_files(folder):
        for episode in read_episodes(path, folder if folder.is_dir() else None):
            by_task[episode.task][episode.name] = np.stack(
                [square_frame(frame, image_size) for frame in episode.frames])
    train, held_out = [], []
    for named in by_task.values():
        chosen, rest = split_names(list(named))
        train += [named[name] for name in chosen]
        held_out += [named[name] for name in rest]
    if not held_out:
        raise DatasetError(f'{folder}: no episode can be held out to measure on; give a task '
                           'with ten demonstrations or more')
    return frame_set(train), frame_set(held_out)


def frame_set(episodes: list[NDArray[np.uint8]]) -> FrameSet:
    """Join the frames (T, H, W, 3) of episodes; in one of a single frame nothing moves."""
    neighbours, start = [], 0
    for frames in episodes:
        before = np.arange(len(frames)) - 1
        before[0] = min(1, len(frames) - 1)
        neighbours.append(before + start)
        start += len(frames)
    return FrameSet(np.concatenate(episodes), np.concatenate(neighbours))
