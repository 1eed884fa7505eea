# SPDX-License-Identifier: Apache-2.0
"""Episodes tokenised once: code indices and actions in memory-mapped files, with fingerprints.

A store is a folder that is written whole or not at all:

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
from dataclasses import asdict, dataclass
import hashlib
import json
import math
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import ACTION_DIM, STATE_DIM
from worldvla_ros.errors import ConfigError
from worldvla_ros.model.image_preprocessing import square_frame
from worldvla_ros.model.image_tokenizer import ImageTokenizer
from worldvla_ros.policy.settings import IMAGE_BLOCK
from worldvla_ros.recording.demonstration_file import AIM_DIM
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.failures import DatasetError, TrainingError, explain_os_error
from worldvla_ros.training.splits import draw
from worldvla_ros.training.splits import split as split_keys
from worldvla_ros.whole_files import draft_folder, rename_whole

FORMAT = 2
"""Raised whenever what is written changes, so that an old store is not misread."""
HEADER_FILE = 'store.json'
ARRAYS = ('codes', 'actions', 'executed', 'states')
WRIST, CHUNKS, AIMS = 'wrist_codes', 'chunks', 'aims'  # more, in stores that have them
_SMALLEST_RANGE = 1e-3  # of a value of the state that never changes [m] or [rad]
FRAMES_PER_PASS = 32  # through the tokenizer at once: bounds the memory


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
        episodes = {(one.task, one.name): one for one in self.episodes}
        train, held_out = split_keys({
            key: draw(one.name, self.actions[one.steps], self.executed[one.steps])
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
        stored = next((one for one in self.episodes if (one.task, one.name) == (task, name)), None)
        if stored is None or not np.array_equal(self.executed[stored.steps],
                                                executed.astype(np.float32)):
            return None
        return stored

    def action_range(self, episodes: Iterable[StoredEpisode]
                     ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the smallest and largest action (7,) of some episodes, labels and executed."""
        rows = np.concatenate([array[episode.steps] for episode in episodes
                               for array in (self.actions, self.executed)]).astype(np.float64)
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


def write_store(folder: Path, episodes: Iterable[Episode], tokenizer: ImageTokenizer,
                image_size: int, reuse: TokenStore | None = None) -> TokenStore:
    """Tokenise episodes into a new folder, which appears complete or not at all.

    It has the wrist camera if the episodes have it: all of them, or none.

    :param reuse: earlier store of the same tokenizer and image size; what it has of an episode
        with the same actions and the same first picture is copied, not encoded again.
    Raises DatasetError when there is no episode, two have the same task and name, the folder
    exists or `reuse` is of another image size, ConfigError for a size that no prompt takes,
    TrainingError when the disk is full.
    """
    check_image_size(image_size, tokenizer.config.factor)
    if folder.exists():
        raise DatasetError(f'{folder} exists; give another name, or delete it first')
    if reuse is not None and reuse.header.image_size != image_size:
        raise DatasetError(f'the store to reuse has frames of {reuse.header.image_size} px, '
                           f'{image_size} px are asked for; give --image-size '
                           f'{reuse.header.image_size}, or leave out --reuse')
    stored: list[StoredEpisode] = []
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*ARRAYS, WRIST)}
    asked: list[NDArray[np.float64] | None] = []  # chunks of each episode
    aims: list[NDArray[np.float64] | None] = []
    start, known = 0, set[tuple[str, str]]()
    for episode in episodes:
        if (episode.task, episode.name) in known:
            raise DatasetError(f'two demonstrations are called {episode.task}, {episode.name}, so '
                               'they cannot be told apart; keep their files in separate folders')
        known.add((episode.task, episode.name))
        known_codes = {} if reuse is None else reuse.codes_of(episode)
        for array, frames in (('codes', episode.frames), (WRIST, episode.wrist)):
            if frames is not None:
                parts[array].append(_encode_or_copy(frames, known_codes.get(array), tokenizer,
                                                    image_size))
        parts['actions'].append(episode.actions.astype(np.float32))
        parts['executed'].append(episode.executed.astype(np.float32))
        states = episode.states
        parts['states'].append(np.full((len(episode.actions), STATE_DIM), np.nan, np.float32)
                               if states is None else states.astype(np.float32))
        asked.append(episode.chunks)
        aims.append(episode.aims)
        stored.append(StoredEpisode(episode.task, episode.name, episode.instruction, start,
                                    len(episode.actions)))
        start += len(episode.actions)
    if not stored:
        raise DatasetError('no episode is left to store: the demonstrations are empty, or the '
                           'filters drop them all')
    if 0 < len(parts[WRIST]) < len(stored):
        raise DatasetError(f'{len(stored) - len(parts[WRIST])} of {len(stored)} demonstrations '
                           'lack the wrist camera; record it in all of them, or leave it out')
    arrays = {name: np.concatenate(part) for name, part in parts.items() if part}
    if any(chunks is not None for chunks in asked):
        arrays[CHUNKS] = _joined_chunks(asked, stored)
    if any(part is not None for part in aims):
        arrays[AIMS] = _joined(aims, stored, (AIM_DIM,))
    header = StoreHeader(FORMAT, tokenizer_fingerprint(tokenizer), _fingerprint(arrays, stored),
                         image_size, tokenizer.config.n_embed, WRIST in arrays,
                         CHUNKS in arrays, AIMS in arrays)
    try:
        _write(folder, header, stored, arrays)
    except OSError as error:
        raise TrainingError(f'cannot write {folder}: {explain_os_error(error)}') from error
    return TokenStore.open(folder)


def _joined_chunks(chunks: Sequence[NDArray[np.float64] | None],
                   episodes: Sequence[StoredEpisode]) -> NDArray[np.float32]:
    """Return the labels of chunks of all episodes, NaN where there are none.

    Raises DatasetError where they are of several lengths.
    """
    lengths = {part.shape[1] for part in chunks if part is not None}
    if len(lengths) > 1:
        raise DatasetError(f'chunks of {" and ".join(map(str, sorted(lengths)))} actions were '
                           'recorded; tokenise the folders of each `collect --chunk` apart')
    return _joined(chunks, episodes, (lengths.pop(), ACTION_DIM))


def _joined(parts: Sequence[NDArray[np.float64] | None], episodes: Sequence[StoredEpisode],
            shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return what some episodes have, in the rows of the others NaN of this shape."""
    return np.concatenate([
        np.full((episode.length, *shape), np.nan, np.float32) if part is None
        else part.astype(np.float32) for part, episode in zip(parts, episodes, strict=True)])


def check_image_size(image_size: int, factor: int) -> None:
    """Refuse sides [px] that no prompt counts; ConfigError.

    :param factor: of the image tokenizer, pixels of a side for one code.
    """
    side = math.lcm(IMAGE_BLOCK, 2 * factor)
    if image_size % side:
        raise ConfigError(
            f'the image size is {image_size} px, expected a multiple of {side}: a prompt counts '
            f'the sides of an image in blocks of {IMAGE_BLOCK} px and 2 codes; take '
            f'{max(1, image_size // side) * side}')


def tokenizer_fingerprint(tokenizer: ImageTokenizer) -> str:
    """Return a short name of a tokenizer: a hash over its configuration and all its weights."""
    digest = hashlib.sha256(json.dumps(tokenizer.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f'sha256:{digest.hexdigest()[:12]}'


def _encode_or_copy(frames: NDArray[np.uint8], known: NDArray[np.uint16] | None,
                    tokenizer: ImageTokenizer, image_size: int) -> NDArray[np.uint16]:
    """Return the known codes of frames if their first has them still.

    Else they were recorded again, with other assets or another camera.
    """
    if known is not None and np.array_equal(known[:1], _encode(frames[:1], tokenizer, image_size)):
        return known
    return _encode(frames, tokenizer, image_size)


def _encode(frames: NDArray[np.uint8], tokenizer: ImageTokenizer, image_size: int
            ) -> NDArray[np.uint16]:
    codes = []
    for first in range(0, len(frames), FRAMES_PER_PASS):
        some = [square_frame(frame, image_size) for frame in frames[first:first + FRAMES_PER_PASS]]
        codes.append(tokenizer.encode(np.stack(some)).cpu().numpy().astype(np.uint16))
    return np.concatenate(codes)


def _fingerprint(arrays: dict[str, NDArray[Any]], episodes: list[StoredEpisode]) -> str:
    digest = hashlib.sha256(json.dumps([asdict(episode) for episode in episodes]).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    return f'sha256:{digest.hexdigest()[:12]}'


def _write(folder: Path, header: StoreHeader, episodes: list[StoredEpisode],
           arrays: dict[str, NDArray[Any]]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_folder(folder.parent, '.draft-')
    try:
        for name, array in arrays.items():
            np.save(draft / f'{name}.npy', array)
        entries = {**asdict(header), 'episodes': [asdict(episode) for episode in episodes]}
        (draft / HEADER_FILE).write_text(json.dumps(entries) + '\n')
        rename_whole(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
