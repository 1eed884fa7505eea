# SPDX-License-Identifier: Apache-2.0
"""Short pieces of the demonstrations that training held out, to measure a world model on."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from worldvla_ros.config import read_yaml
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.run_folder import CONFIG_FILE
from worldvla_ros.training.splits import SPLITS, Key, Recorded, split
from worldvla_ros.training.tokenise import checked_replays, filtered_episodes

GOLDEN_RATIO = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly however many are taken."""

Place = tuple[Key, int]  # an episode, and the step at which a clip of it starts


@dataclass(frozen=True, eq=False)
class Clip:
    """T steps of an episode: the frame before them and the one after each."""

    task: str
    episode: str  # 'demo_N'
    start: int  # step of the episode
    frames: NDArray[np.uint8]  # (T + 1, S, S, 3) RGB at the size of the model
    actions: NDArray[np.float64]  # (T, 7) controller input as executed: frame t to frame t + 1

    @property
    def title(self) -> str:
        """Where it comes from, in words."""
        return f'{self.task}, {self.episode}, from step {self.start}'


@dataclass(frozen=True, eq=False)
class ClipSet:
    """The clips of one measurement, and what they were taken from."""

    clips: tuple[Clip, ...]
    held_out_episodes: int
    too_short: int  # of these


def load_clips(folder: Path, *, image_size: int, steps: int, most: int, order: str,
               drop_no_ops: bool = False, only: Path | None = None) -> ClipSet:
    """Cut clips from the held-out episodes below a folder, at most so many.

    :param steps: length of each clip; episodes too short for it are left out and counted.
    :param order: of the split, see `splits`; must be that of training.
    :param drop_no_ops: as the training data were tokenised, or the split is another.
    :param only: file with the replays that they were filtered by, None for none.
    Raises DatasetError where no clip is left.
    """
    replays = checked_replays(folder, drop_no_ops, only)

    def episodes(doing: str) -> Iterator[Episode]:
        return iter(tqdm(filtered_episodes(folder, drop_no_ops, replays), desc=doing,
                         unit='episode', file=sys.stderr, dynamic_ncols=True))
    lengths = held_out_lengths(episodes('looking'), order)
    if not lengths:
        raise DatasetError(f'{folder}: no episode is held out by split {order}; give a task with '
                           'ten successful demonstrations or more, those that the checkpoint '
                           'was trained on')
    places = choose_places(lengths, steps, most)
    if not places:
        longest = max(lengths.values())
        raise DatasetError(f'{folder}: none of {len(lengths)} held-out episodes has '
                           f'{steps + 1} frames, the longest has {longest}; ask for horizons '
                           f'of at most {longest - 1} steps')
    # Read again, rather than to keep the frames of all: those of four suites would fill a machine.
    clips: dict[Place, Clip] = {}
    for episode in episodes('reading'):
        for place in places:
            if place[0] == (episode.task, episode.name):
                clips[place] = _cut(episode, place[1], steps, image_size)
        if len(clips) == len(places):
            break
    return ClipSet(tuple(clips[place] for place in places), len(lengths),
                   sum(length <= steps for length in lengths.values()))


def split_of_checkpoint(checkpoint: Path, given: str | None) -> str:
    """Return the split that a checkpoint was trained with.

    :param given: what the user says it was; None: nothing.
    Raises DatasetError where both differ, or neither is known.
    """
    path = checkpoint / CONFIG_FILE
    stored = (read_yaml(path).get('data') or {}).get('split') if path.exists() else None
    if stored is None and given is None:
        raise DatasetError(f'{path} does not say which demonstrations training held out; give '
                           f'--split ({", ".join(SPLITS)}), data.split of the training run')
    if None not in (stored, given) and stored != given:
        raise DatasetError(f'{path} says that training held out by split {stored}, and {given} is '
                           'asked for: training would have seen what is measured; leave out '
                           '--split')
    return str(stored or given)


def held_out_lengths(episodes: Iterable[Episode], order: str) -> dict[Key, int]:
    """Return the number of frames of each episode that `splits.split` holds out.

    :param episodes: each task's in numeric order, as files are read. They may be a stream: no
        frame is kept.
    """
    lengths: dict[Key, int] = {}
    recorded: dict[Key, Recorded] = {}
    for episode in episodes:
        key = (episode.task, episode.name)
        lengths[key] = len(episode.frames)
        recorded[key] = (episode.actions, episode.executed)
    return {key: lengths[key] for key in split(recorded, order)[1]}


def choose_places(lengths: Mapping[Key, int], steps: int, most: int) -> list[Place]:
    """Return where clips start: all tasks by turns, then all episodes, then other places.

    :param lengths: frames of each episode.
    """
    by_task: dict[str, list[Key]] = defaultdict(list)
    for key, length in lengths.items():
        if length > steps:
            by_task[key[0]].append(key)
    in_turn = [key for turn in zip_longest(*by_task.values()) for key in turn if key is not None]
    places: dict[Place, None] = {}  # in order, each once
    for number in range(most if in_turn else 0):
        key = in_turn[number % len(in_turn)]
        start = int((0.5 + number * GOLDEN_RATIO) % 1 * (lengths[key] - steps))
        places[key, start] = None
    return list(places)


def _cut(episode: Episode, start: int, steps: int, image_size: int) -> Clip:
    frames = np.stack([square_frame(frame, image_size)
                       for frame in episode.frames[start:start + steps + 1]])
    return Clip(episode.task, episode.name, start, frames, episode.executed[start:start + steps])
