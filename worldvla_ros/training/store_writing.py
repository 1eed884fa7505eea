# SPDX-License-Identifier: Apache-2.0
"""Write a token store: every frame through the image tokenizer once, or copied from before."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
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
from worldvla_ros.model.image_tokenizer import ImageTokenizer, tokenizer_fingerprint
from worldvla_ros.policy.settings import IMAGE_BLOCK
from worldvla_ros.recording.demonstration_file import AIM_DIM
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.failures import DatasetError, TrainingError, explain_os_error
from worldvla_ros.training.store import (
    AIMS,
    ARRAYS,
    CHUNKS,
    FORMAT,
    HEADER_FILE,
    WRIST,
    StoredEpisode,
    StoreHeader,
    TokenStore,
)
from worldvla_ros.whole_files import draft_folder, rename_whole

FRAMES_PER_PASS = 32  # through the tokenizer at once: bounds the memory


def write_store(folder: Path, episodes: Iterable[Episode], tokenizer: ImageTokenizer,
                image_size: int, reuse: TokenStore | None = None) -> TokenStore:
    """Tokenise episodes into a new folder, which appears complete or not at all.

    It has the wrist camera if the episodes have it: all of them, or none.

    :param reuse: earlier store of the same tokenizer and image size; what it has of an episode
        with the same actions and the same first picture is copied; that picture alone is encoded
        again, to compare.
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
    content = _Content(tokenizer, image_size, reuse)
    for episode in episodes:
        content.add(episode)
    arrays = content.arrays()
    header = StoreHeader(FORMAT, tokenizer_fingerprint(tokenizer),
                         _fingerprint(arrays, content.stored), image_size,
                         tokenizer.config.n_embed, WRIST in arrays, CHUNKS in arrays,
                         AIMS in arrays)
    try:
        _write(folder, header, content.stored, arrays)
    except OSError as error:
        raise TrainingError(f'cannot write {folder}: {explain_os_error(error)}') from error
    return TokenStore.open(folder)


class _Content:
    """What a store will hold, gathered episode by episode."""

    def __init__(self, tokenizer: ImageTokenizer, image_size: int, reuse: TokenStore | None
                 ) -> None:
        self._tokenizer, self._image_size, self._reuse = tokenizer, image_size, reuse
        self.stored: list[StoredEpisode] = []
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*ARRAYS, WRIST)}
        self._chunks: list[NDArray[np.float64] | None] = []  # of each episode
        self._aims: list[NDArray[np.float64] | None] = []
        self._known = set[tuple[str, str]]()

    def add(self, episode: Episode) -> None:
        """Append an episode; DatasetError where one of this task and name is there already."""
        if (episode.task, episode.name) in self._known:
            raise DatasetError(f'two demonstrations are called {episode.task}, {episode.name}, so '
                               'they cannot be told apart; keep their files in separate folders')
        self._known.add((episode.task, episode.name))
        known_codes = {} if self._reuse is None else self._reuse.codes_of(episode)
        for array, frames in (('codes', episode.frames), (WRIST, episode.wrist)):
            if frames is not None:
                self._parts[array].append(_encode_or_copy(
                    frames, known_codes.get(array), self._tokenizer, self._image_size))
        length, states = len(episode.actions), episode.states
        self._parts['actions'].append(episode.actions.astype(np.float32))
        self._parts['executed'].append(episode.executed.astype(np.float32))
        self._parts['states'].append(np.full((length, STATE_DIM), np.nan, np.float32)
                                     if states is None else states.astype(np.float32))
        self._chunks.append(episode.chunks)
        self._aims.append(episode.aims)
        start = self.stored[-1].steps.stop if self.stored else 0
        self.stored.append(StoredEpisode(episode.task, episode.name, episode.instruction, start,
                                         length))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of all episodes by name.

        Raises DatasetError where there is no episode, or only some have the wrist camera.
        """
        if not self.stored:
            raise DatasetError('no episode is left to store: the demonstrations are empty, or the '
                               'filters drop them all')
        lacking = len(self.stored) - len(self._parts[WRIST])
        if 0 < lacking < len(self.stored):
            raise DatasetError(f'{lacking} of {len(self.stored)} demonstrations lack the wrist '
                               'camera; record it in all of them, or leave it out')
        arrays = {name: np.concatenate(part) for name, part in self._parts.items() if part}
        if any(chunks is not None for chunks in self._chunks):
            arrays[CHUNKS] = _joined_chunks(self._chunks, self.stored)
        if any(part is not None for part in self._aims):
            arrays[AIMS] = _joined(self._aims, self.stored, (AIM_DIM,))
        return arrays


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
    if image_size < side or image_size % side:
        raise ConfigError(
            f'the image size is {image_size} px, expected a multiple of {side}: a prompt counts '
            f'the sides of an image in blocks of {IMAGE_BLOCK} px and 2 codes; take '
            f'{max(1, image_size // side) * side}')


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
