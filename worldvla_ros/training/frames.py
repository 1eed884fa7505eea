# SPDX-License-Identifier: Apache-2.0
"""Frames of demonstrations in memory, and which of their pixels move."""

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
import re

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.libero_hdf5 import (
    FRAMES,
    WRIST_FRAMES,
    demonstration_files,
    episode_actions,
    first_frames,
    read_episodes,
    task_name,
)
from worldvla_ros.training.replay_list import ReplayList, actions_digest, trained_steps
from worldvla_ros.training.splits import Key, SplitCounts
from worldvla_ros.training.splits import split as split_keys

MOVING_DIFFERENCE = 12  # of 255 in any channel: above what shading flickers by
# The first kind named neither actions nor frames, the second no frames of the wrist camera.
DIGEST_KIND, WRIST_DIGEST_KIND = 'sha256-2:', 'sha256-3:'
MEMORY_SHARE = 0.8  # of what is available that frames may fill; training needs some, too

Span = tuple[int, int]  # frames [start, stop) of an episode
_View = tuple[Key, str]  # an episode, and the camera that saw it


@dataclass(frozen=True, eq=False)
class FrameSet:
    """The frames of some episodes, one episode after the other."""

    frames: NDArray[np.uint8]  # (F, H, W, 3) RGB
    neighbours: NDArray[np.int64]  # (F,) the frame before, or after the first of an episode

    def moving(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the pixels (N, H, W) that differ between these frames and their neighbours."""
        return differing(self.frames[indices], self.frames[self.neighbours[indices]])

    def __len__(self) -> int:
        return len(self.frames)


def differing(frames: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pixels (N, H, W) in which frames (N, H, W, 3) differ by more than shading."""
    difference = np.abs(frames.astype(np.int16) - others)
    return np.asarray(difference.max(-1) > MOVING_DIFFERENCE)


@dataclass(frozen=True, eq=False)
class LoadedFrames:
    """The frames of a folder of demonstrations."""

    train: FrameSet
    held_out: FrameSet
    counts: SplitCounts  # of their episodes


def load_frames(folder: Path, image_size: int, most: int, split: str, *, wrist: bool = False,
                only: Path | None = None) -> LoadedFrames:
    """Return the frames for training and the held-out ones, 90 to 10 episodes.

    Failed episodes are left out, as `tokenise` leaves them out: else the same split would hold
    out others than in the store.

    All are held in memory: 49 kB each at 128 px, 197 kB at 256 px. Where there are more than
    `most` frames, pairs of neighbours are taken evenly from all episodes.

    :param split: see `splits`; that of the policy, or the tokenizer has seen what that is
        measured on.
    :param wrist: those of the wrist camera, too.
    :param only: list of replays that the store was filtered by, see `tokenise`; None for none.
    :raises DatasetError: too few demonstrations, or their frames do not fit into memory.
    """
    actions = _chosen_actions(folder, only)
    lengths = {key: len(labels) for key, (labels, _) in actions.items()}
    sides = split_keys(actions, split)
    if not all(sides):
        raise DatasetError(f'{folder}: split {split} leaves {len(sides[0])} episodes to learn '
                           f'from and {len(sides[1])} held out; give more demonstrations, or '
                           'split: numeric and a task with ten or more')
    cameras = _cameras(wrist)
    share = min(1.0, most / (len(cameras) * sum(lengths.values())))
    parts = [_Part({(key, camera): lengths[key] for key in keys for camera in cameras}, share)
             for keys in sides]
    _require_memory(sum(part.num_frames for part in parts), image_size, folder)
    for part in parts:
        part.allocate(image_size)
    for path in demonstration_files(folder):
        for episode in read_episodes(path, folder, wrist=wrist):
            key = (episode.task, episode.name)
            for part in parts:
                part.take((key, FRAMES), episode.frames)
                if episode.wrist is not None:
                    part.take((key, WRIST_FRAMES), episode.wrist)
    return LoadedFrames(parts[0].frame_set, parts[1].frame_set, SplitCounts.of(
        split, *([Path(task).name for task, _ in keys] for keys in sides)))


def episodes_digest(folder: Path, only: Path | None = None, *, wrist: bool = False) -> str:
    """Return a short name of what `load_frames` reads: tasks, names, actions and first frames.

    It begins with DIGEST_KIND, with the wrist camera with WRIST_DIGEST_KIND.
    """
    actions = _chosen_actions(folder, only)
    pictures = [{(task_name(path, folder), name):
                 f'{frame.shape} {hashlib.sha256(frame.tobytes()).hexdigest()}'
                 for path in demonstration_files(folder)
                 for name, frame in first_frames(path, camera).items()}
                for camera in _cameras(wrist)]
    listed = [(*key, actions_digest(*actions[key]), *(of_camera[key] for of_camera in pictures))
              for key in sorted(actions)]
    kind = WRIST_DIGEST_KIND if wrist else DIGEST_KIND
    return f'{kind}{hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]}'


def _cameras(wrist: bool) -> tuple[str, ...]:
    return (FRAMES, WRIST_FRAMES) if wrist else (FRAMES,)


def _chosen_actions(folder: Path, only: Path | None
                    ) -> dict[Key, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the actions of the demonstrations that `tokenise.filtered_episodes` yields."""
    replays = None if only is None else ReplayList.load(only)
    drop_no_ops = replays is not None and replays.drop_no_ops
    chosen = {}
    for path in demonstration_files(folder):
        task = task_name(path, folder)
        for name, recorded in episode_actions(path, failed=False).items():
            if trained_steps(task, name, *recorded, replays, drop_no_ops).any():
                chosen[task, name] = recorded
    return chosen


class _Part:
    """The frames of one part of the split, filled in episode by episode.

    Joined in the end, they would take twice the memory.
    """

    def __init__(self, lengths: dict[_View, int], share: float) -> None:
        spans = choose_spans(list(lengths.values()), share)
        self._spans = dict(zip(lengths, spans, strict=True))
        self._lengths = [stop - start for kept in spans for start, stop in kept]
        self.num_frames = sum(self._lengths)

    def allocate(self, image_size: int) -> None:
        """Take the memory for all frames."""
        self.frame_set = FrameSet(
            np.empty((self.num_frames, image_size, image_size, 3), np.uint8),
            neighbours(self._lengths))
        self._offsets, offset = {}, 0
        for view, kept in self._spans.items():
            self._offsets[view] = offset
            offset += sum(stop - start for start, stop in kept)

    def take(self, view: _View, frames: NDArray[np.uint8]) -> None:
        """Keep what is chosen of the frames (T, H, W, 3) of a camera, if it is of this part."""
        size = self.frame_set.frames.shape[1]
        kept = (frame for start, stop in self._spans.get(view, ()) for frame in frames[start:stop])
        for index, frame in enumerate(kept, self._offsets.get(view, 0)):
            self.frame_set.frames[index] = square_frame(frame, size)


def choose_spans(lengths: Sequence[int], share: float) -> list[list[Span]]:
    """Return which frames of each episode are kept: all, or pairs spread evenly over all.

    Pairs, so that every frame has the neighbour that tells which of its pixels move.
    """
    if share >= 1:
        return [[(0, length)] for length in lengths]
    pairs = [(episode, start, min(start + 2, length)) for episode, length in enumerate(lengths)
             for start in range(0, max(1, length - 1), 2)]
    count = min(len(pairs), max(1, int(share * sum(lengths) / 2)))
    spans: list[list[Span]] = [[] for _ in lengths]
    for index in range(count):
        episode, start, stop = pairs[index * len(pairs) // count]
        spans[episode].append((start, stop))
    return spans


def _require_memory(num_frames: int, image_size: int, folder: Path) -> None:
    """Refuse frames that do not fit: the system would end the process without a word."""
    available = available_memory()
    needed = num_frames * image_size * image_size * 3
    if available is not None and needed > MEMORY_SHARE * available:
        fitting = int(MEMORY_SHARE * available) // (image_size * image_size * 3)
        raise DatasetError(
            f'{folder}: {num_frames} frames of {image_size} px take {needed / 1e9:.1f} GB of '
            f'memory, {available / 1e9:.1f} GB are available; lower most_frames to {fitting}, or '
            'image_size')


def available_memory() -> int | None:
    """Return the memory [byte] that programs can still take; None where Linux does not tell."""
    try:
        found = re.search(r'^MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text(), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def neighbours(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return `FrameSet.neighbours` of joined episodes; in one of a single frame nothing moves."""
    joined, start = [], 0
    for length in lengths:
        before = np.arange(length) - 1
        before[:1] = min(1, length - 1)
        joined.append(before + start)
        start += length
    return np.concatenate(joined)
