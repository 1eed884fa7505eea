# SPDX-License-Identifier: Apache-2.0
"""Episodes tokenised once: code indices and actions in memory-mapped files, with fingerprints.

A store is a folder that `store_writing` writes whole or not at all:

    codes.npy      uint16  [F, 2h, 2w]  code indices of all frames, episode after episode
    actions.npy    float32 [F, 7]       labels, controller input
    executed.npy   float32 [F, 7]       what moved the robot; differs where noise was injected
    states.npy     float32 [F, 7]       of the arm, see `arm_state`; NaN where not recorded
    wrist_codes.npy  as codes.npy       of the wrist camera; only where it was asked for
    chunks.npy   float32 [F, K, 7]      what the expert would have done in K steps from a frame at
                                        which a policy had the arm; NaN where it was not asked;
                                        only if it ever was
    aims.npy     float32 [F, 5]         what the action is for, in the picture and from the hand,
                                        see `recording.demonstration_file`; NaN where not
                                        recorded; only if it ever was
    store.json     episodes (task, name, instruction, start, length) and fingerprints

212 bytes per frame at 128 px, 596 at 256 px: 200,000 frames are 42 or 119 MB.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.errors import ConfigError
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.splits import split as split_keys

FORMAT = 2
"""Raised whenever what is written changes, so that an old store is not misread."""
HEADER_FILE = 'store.json'
ARRAYS = ('codes', 'actions', 'executed', 'states')
WRIST, CHUNKS, AIMS = 'wrist_codes', 'chunks', 'aims'  # more, in stores that have them
_SMALLEST_RANGE = 1e-3  # of a value of the state that never changes [m] or [rad]


@dataclass(frozen=True)
class StoredEpisode:
    """Where one episode lies in the arrays."""

    task: str
    name: str  # 'demo_N'
    instruction: str
    start: int  # first frame
    length: int  # frames, and actions

    @property
    def steps(self) -> slice:
        """Its rows of the arrays."""
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class StoreHeader:
    """What the arrays of a store mean."""

    format: int
    tokenizer: str  # fingerprint of the image tokenizer
    data: str  # fingerprint of arrays and episodes
    image_size: int  # [px]
    num_codes: int
    wrist: bool = False  # whether the wrist camera is in it
    chunks: bool = False  # whether labels of chunks are in it
    aims: bool = False  # whether aims are in it

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its arrays."""
        return (*ARRAYS, *([WRIST] * self.wrist), *([CHUNKS] * self.chunks),
                *([AIMS] * self.aims))


class TokenStore:
    """A tokenised data set, read through memory maps."""

    def __init__(self, header: StoreHeader, episodes: tuple[StoredEpisode, ...],
                 arrays: dict[str, NDArray[Any]]) -> None:
        self.header = header
        self.episodes = episodes
        self._by_name = {(one.task, one.name): one for one in episodes}
        self.codes: NDArray[np.uint16] = arrays['codes']
        self.actions: NDArray[np.float32] = arrays['actions']
        self.executed: NDArray[np.float32] = arrays['executed']
        self.states: NDArray[np.float32] = arrays['states']
        self.wrist_codes: NDArray[np.uint16] | None = arrays.get(WRIST)
        self.chunks: NDArray[np.float32] | None = arrays.get(CHUNKS)
        self.aims: NDArray[np.float32] | None = arrays.get(AIMS)

    @classmethod
    def open(cls, folder: str | Path, tokenizer: str | None = None) -> 'TokenStore':
        """Open a store.

        :param tokenizer: fingerprint that the store must have been made with; None takes any.
        Raises DatasetError for a store that is missing, damaged, empty or of another tokenizer.
        """
        folder = Path(folder)
        header, episodes = _read_header(folder)
        if tokenizer is not None and header.tokenizer != tokenizer:
            raise DatasetError(
                f'{folder} was tokenised with {header.tokenizer}, and the image tokenizer given '
                f'is {tokenizer}: its codes mean other pictures. Give the tokenizer of the '
                f'store, or make the store again with `python -m worldvla_ros.training.tokenise`')
        frames = sum(episode.length for episode in episodes)
        arrays = {}
        for name in header.arrays:
            path = folder / f'{name}.npy'
            try:
                arrays[name] = np.load(path, mmap_mode='r')
            except (OSError, ValueError) as error:
                raise DatasetError(f'{path} is missing or truncated: {error}; make the store '
                                   'again') from error
            if len(arrays[name]) != frames:
                raise DatasetError(f'{path} has {len(arrays[name])} frames, the episodes have '
                                   f'{frames}; make the store again')
        return cls(header, episodes, arrays)

    def split(self, order: str) -> tuple[list[StoredEpisode], list[StoredEpisode]]:
        """Return the episodes for training and those held out, see `splits`.

        Raises DatasetError where none is left for training.
        """
        episodes = self._by_name
        train, held_out = split_keys({
            key: (self.actions[one.steps], self.executed[one.steps])
            for key, one in episodes.items()}, order)
        if not train:
            raise DatasetError(f'data.split {order} holds out all {len(held_out)} episodes; '
                               'record more demonstrations, or give data.split numeric')
        return [episodes[key] for key in train], [episodes[key] for key in held_out]

    def codes_of(self, episode: Episode) -> dict[str, NDArray[np.uint16]]:
        """Return the codes of an episode by array; none if it is not here with equal actions."""
        stored = self.find(episode.task, episode.name, episode.executed)
        cameras = {'codes': self.codes, WRIST: self.wrist_codes}
        return {} if stored is None else {
            name: codes[stored.steps] for name, codes in cameras.items() if codes is not None}

    def find(self, task: str, name: str, executed: NDArray[np.floating]) -> StoredEpisode | None:
        """Return the episode of this name if just these actions (T, 7) moved the robot in it."""
        stored = self._by_name.get((task, name))
        if stored is None or not np.array_equal(self.executed[stored.steps],
                                                executed.astype(np.float32)):
            return None
        return stored

    def labels_of(self, episodes: Sequence[StoredEpisode], horizon: int) -> NDArray[np.float32]:
        """Return the labels (N, 7) of some episodes, and those of chunks up to the horizon."""
        labels = [self.actions[episode.steps] for episode in episodes]
        if self.chunks is not None:
            chunks = np.concatenate([self.chunks[episode.steps, :horizon] for episode in episodes])
            labels.append(chunks[np.isfinite(chunks[:, 0, 0])].reshape(-1, chunks.shape[2]))
        return np.concatenate(labels)

    def action_range(self, episodes: Sequence[StoredEpisode], horizon: int
                     ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the smallest and largest action (7,) of some episodes, labels and executed.

        :param horizon: of `labels_of`.
        """
        rows = np.concatenate([self.labels_of(episodes, horizon), *(
            self.executed[episode.steps] for episode in episodes)]).astype(np.float64)
        low, high = rows.min(0), rows.max(0)
        if (low == high).any():
            raise ConfigError(f'action values {np.flatnonzero(low == high).tolist()} never '
                              'change in the data, so they have no range; use the LIBERO range')
        return low, high

    def state_range(self, episodes: Iterable[StoredEpisode]
                    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the smallest and largest state (7,) of the arm in some episodes.

        Raises DatasetError where an episode has no states.
        """
        rows = self._states_of(episodes)
        low, high = rows.min(0).astype(np.float64), rows.max(0).astype(np.float64)
        return low, np.where(high > low, high, low + _SMALLEST_RANGE)

    def require_states(self) -> None:
        """Raise DatasetError where an episode has no states of the arm."""
        self._states_of(self.episodes)

    def _states_of(self, episodes: Iterable[StoredEpisode]) -> NDArray[np.float32]:
        rows = np.concatenate([self.states[episode.steps] for episode in episodes])
        if np.isnan(rows).any():
            raise DatasetError(
                f'{int(np.isnan(rows).any(1).sum())} of {len(rows)} frames have no state of the '
                'arm: their demonstrations were recorded without it; set data.state to false, or '
                'record them again')
        return rows


def _read_header(folder: Path) -> tuple[StoreHeader, tuple[StoredEpisode, ...]]:
    path = folder / HEADER_FILE
    try:
        entries = json.loads(path.read_text())
        episodes = tuple(StoredEpisode(**entry) for entry in entries.pop('episodes'))
        header = StoreHeader(**entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f'{folder} is no token store: {error!r}; make one with '
                           '`python -m worldvla_ros.training.tokenise`') from error
    if header.format != FORMAT:
        raise DatasetError(f'{folder} has format {header.format}, this version reads {FORMAT}; '
                           'make the store again')
    if not episodes:
        raise DatasetError(f'{folder} holds no episode')
    return header, episodes
