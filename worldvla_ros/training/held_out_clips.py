# SPDX-License-Identifier: Apache-2.0
"""Short pieces of the demonstrations that training held out, to measure a world model on."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from worldvla_ros.config import read_yaml
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.libero_hdf5 import Episode
from worldvla_ros.training.run_folder import CONFIG_FILE
from worldvla_ros.training.splits import SPLITS, Key, draw, split
from worldvla_ros.training.tokenise import checked_replays, filtered_episodes

GOLDEN_RATIO = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly however many are taken."""


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
    episodes = tqdm(filtered_episodes(folder, drop_no_ops, replays), desc='reading',
                    unit='episode', file=sys.stderr, dynamic_ncols=True)
    measured = held_out_episodes(episodes, order)
    if not measured:
        raise DatasetError(f'{folder}: no episode is held out by split {order}; give a task with '
                           'ten successful demonstrations or more, those that the checkpoint '
                           'was trained on')
    places = choose_places(measured, steps, most)
    if not places:
        longest = max(len(episode.frames) for episode in measured)
        raise DatasetError(f'{folder}: none of {len(measured)} held-out episodes has '
                           f'{steps + 1} frames, the longest has {longest}; ask for horizons '
                           f'of at most {longest - 1} steps')
    return ClipSet(tuple(_cut(episode, start, steps, image_size) for episode, start in places),
                   len(measured), sum(len(episode.frames) <= steps for episode in measured))


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


def held_out_episodes(episodes: Iterable[Episode], order: str) -> list[Episode]:
    """Return the episodes that `splits.split` holds out.

    :param episodes: each task's in numeric order, as files are read. They may be a stream: an
        episode is let go once it is known to be for training.
    """
    draws: dict[str, dict[Key, float]] = defaultdict(dict)  # by task
    kept: dict[Key, Episode] = {}
    for episode in episodes:
        key, of_task = (episode.task, episode.name), draws[episode.task]
        of_task[key] = draw(episode.name, episode.actions, episode.executed)
        kept[key] = episode
        if order != 'published':  # in the others one that is for training stays so
            for trained in split(of_task, order)[0]:
                kept.pop(trained, None)
    return [kept[key] for of_task in draws.values() for key in split(of_task, order)[1]]


def choose_places(episodes: Sequence[Episode], steps: int, most: int
                  ) -> list[tuple[Episode, int]]:
    """Return where clips start: all tasks by turns, then all episodes, then other places."""
    by_task: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        if len(episode.frames) > steps:
            by_task[episode.task].append(episode)
    in_turn = [episode for turn in zip_longest(*by_task.values()) for episode in turn
               if episode is not None]
    places: dict[tuple[str, str, int], tuple[Episode, int]] = {}
    for number in range(most if in_turn else 0):
        episode = in_turn[number % len(in_turn)]
        choices = len(episode.frames) - steps
        start = int((0.5 + number * GOLDEN_RATIO) % 1 * choices)
        places.setdefault((episode.task, episode.name, start), (episode, start))
    return list(places.values())


def _cut(episode: Episode, start: int, steps: int, image_size: int) -> Clip:
    frames = np.stack([square_frame(frame, image_size)
                       for frame in episode.frames[start:start + steps + 1]])
    return Clip(episode.task, episode.name, start, frames, episode.executed[start:start + steps])
