# SPDX-License-Identifier: Apache-2.0
"""Which samples make which batch, and their tensors: ids, labels and who may attend to whom.

The order is a function of the seed and the step alone, so a run that is resumed at a step goes on
with exactly the batch that an uninterrupted run would have taken.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
import functools
import math

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from worldvla_ros.tokens.action_tokenizer import ActionTokenizer
from worldvla_ros.tokens.state_tokenizer import StateTokenizer
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.training.aims import UNKNOWN
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.losses import IGNORED, Targets, find_targets, rows_before_labels
from worldvla_ros.training.samples import Sample, SampleBuilder, labels_that_hold
from worldvla_ros.training.store import StoredEpisode, TokenStore

PADDING_ID = 0  # of the public implementation; no token that counts ever sees it


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences."""

    input_ids: Tensor  # int64 [B, S]
    labels: Tensor  # int64 [B, S], IGNORED where nothing is learned
    targets: Targets  # the N tokens that are learned
    target_is_world: Tensor  # bool [N]: of the world (or video) branch
    begins: Tensor  # int64 [B], token at which the first action begins that is learned
    num_actions: Tensor  # int64 [B]; 0: of another branch
    aims: Tensor  # int64 [B], token to look at there, see `aims`; UNKNOWN where there is none
    away: Tensor  # float32 [B, 3], of the aim from the hand [m]; NaN where not known

    def to(self, device: torch.device | str) -> 'Batch':
        """Return what the loss reads on a device; `labels` stay."""
        return replace(self, input_ids=self.input_ids.to(device, non_blocking=True),
                       targets=self.targets.to(device),
                       target_is_world=self.target_is_world.to(device, non_blocking=True),
                       begins=self.begins.to(device, non_blocking=True),
                       num_actions=self.num_actions.to(device, non_blocking=True),
                       aims=self.aims.to(device, non_blocking=True),
                       away=self.away.to(device, non_blocking=True))


class SampleTable:
    """All samples of some episodes, branch after branch; each is built when it is asked for."""

    def __init__(self, store: TokenStore, episodes: Sequence[StoredEpisode],
                 branches: Sequence[str], builder: SampleBuilder,
                 action_tokenizer: ActionTokenizer,
                 state_tokenizer: StateTokenizer | None = None, wrist: bool = False,
                 label_tolerance: float | None = None, whole_chunks: bool = False,
                 asked_repeats: int = 1) -> None:
        """Take what the samples are built from.

        :param wrist: show the wrist camera, too.
        :param label_tolerance: of `labels_that_hold`; None: all are learned.
        :param whole_chunks: leave out samples of actions that are not learned to their end.
        :param asked_repeats: how often each chunk that the expert was asked for is in the table.
        :raises DatasetError: no sample in these episodes, or no wrist camera in the store. Where
            only some branches have none, `lacking` says so.
        """
        if wrist and store.wrist_codes is None:
            raise DatasetError('data.wrist is true, and the store lacks the wrist camera; make it '
                               'with `python -m worldvla_ros.training.tokenise --wrist`')
        self._store, self._episodes = store, tuple(episodes)
        self._branches, self._builder = tuple(branches), builder
        # The action branch learns the expert's label; the next frame follows from what was done.
        self._expert_ids = action_tokenizer.encode(store.actions).astype(np.int32)
        self._executed_ids = action_tokenizer.encode(store.executed).astype(np.int32)
        self._learned = (np.full(len(store.actions), builder.horizon) if label_tolerance is None
                         else labels_that_hold(store.actions, store.executed, builder.horizon,
                                               label_tolerance))
        self._chunk_ids = _chunk_ids(store, builder.horizon, action_tokenizer)
        left = np.zeros(len(store.actions), dtype=np.int64)  # steps to the end of the episode
        for episode in self._episodes:
            left[episode.steps] = np.arange(episode.length, 0, -1)
        self._whole = np.minimum(left, builder.horizon)
        self._whole[list(self._chunk_ids)] = builder.horizon  # also where the episode ends
        self._learned = np.minimum(self._learned, self._whole)
        self._learned[list(self._chunk_ids)] = builder.horizon
        self._states = (None if state_tokenizer is None
                        else state_tokenizer.encode(store.states).astype(np.int32))
        self._wrist_codes = store.wrist_codes if wrist else None
        self._rows = np.array(
            [(b, e, start, stride) for b, branch in enumerate(self._branches)
             for e, episode in enumerate(self._episodes)
             for start in builder.starts(branch, episode.length)
             for stride in builder.strides(branch)
             if start in builder.starts(branch, episode.length, stride)],
            dtype=np.int32).reshape(-1, 4)
        if asked_repeats > 1:
            asked = self._are_actions() & np.isin(self._frames_of(self._rows),
                                                  list(self._chunk_ids))
            self._rows = self._rows.repeat(np.where(asked, asked_repeats, 1), axis=0)
        if whole_chunks:
            whole = self._whole[self._frames_of(self._rows)]
            left_out = self._are_actions() & (self._learned_of(self._rows) < whole)
            self._rows = self._rows[~left_out]
        self.lacking = '; '.join(
            f'no sample of the branch {branch} in {len(self._episodes)} episodes: '
            f'{self._why_none(branch)}' for b, branch in enumerate(self._branches)
            if b not in self._rows[:, 0])
        if not len(self._rows):
            raise DatasetError(self.lacking)

    def __len__(self) -> int:
        return len(self._rows)

    def _why_none(self, branch: str) -> str:
        """Say what leaves a branch without a sample."""
        builder = self._builder
        if branch != 'action':
            return (f'each is shorter than data.world_rounds ({builder.world_rounds} of '
                    f'{builder.strides(branch)[0]} steps or more)')
        if any(builder.starts(branch, episode.length) for episode in self._episodes):
            return ('no chunk holds to its end; raise data.label_tolerance, or leave '
                    'data.whole_chunks out')
        return f'each is shorter than data.horizon ({builder.horizon})'

    @property
    def learned_share(self) -> float:
        """Share of the labels of the action branch that are learned; NaN without such samples."""
        rows = self._rows[self._are_actions()]
        if not len(rows):
            return float('nan')
        return float(self._learned_of(rows).sum() / self._whole[self._frames_of(rows)].sum())

    def _are_actions(self) -> NDArray[np.bool_]:
        """Return which rows are of the action branch."""
        are_actions = np.array([branch == 'action' for branch in self._branches])
        of_rows: NDArray[np.bool_] = are_actions[self._rows[:, 0]]
        return of_rows

    def _frames_of(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the frame of the store at which each of these rows starts."""
        begins = np.array([episode.start for episode in self._episodes])
        frames: NDArray[np.int64] = begins[rows[:, 1]] + rows[:, 2]
        return frames

    def _learned_of(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return how many labels of a chunk at each of these rows are learned."""
        learned: NDArray[np.int64] = self._learned[self._frames_of(rows)]
        return learned

    def batch(self, size: int, world_share: float | None, seed: int, step: int
              ) -> NDArray[np.int64]:
        """Return the samples of the batch of this step; a function of the arguments alone.

        :param world_share: of the batch that is not of the first branch. None mixes all samples
            alike, as in the public implementation: about one of the world per action sample. So
            are those of a table that lacks the first branch, or the others. A share that rounds
            to no sample, or to all, has some of the batches take one of the rare branch.
        """
        first = int((self._rows[:, 0] == 0).sum())
        if world_share is None or first in (0, len(self)):
            return batch_indices(len(self), size, seed, step)
        rest, others = len(self) - first, round(world_share * size)
        indices = np.concatenate([batch_indices(first, size - others, seed, step),
                                  first + batch_indices(rest, others, seed, step)])
        if others == 0 and (turn := _turn(world_share * size, step)) is not None:
            indices[-1] = first + batch_indices(rest, 1, seed, turn)[0]
        if others == size and (turn := _turn((1 - world_share) * size, step)) is not None:
            indices[0] = batch_indices(first, 1, seed, turn)[0]
        return indices

    def evenly(self, branch: str, count: int) -> list[Sample]:
        """Build up to `count` samples of one branch, evenly spread over its episodes."""
        if branch not in self._branches:
            return []
        there = np.flatnonzero(self._rows[:, 0] == self._branches.index(branch))
        chosen = np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int)
        return [self[index] for index in there[chosen]]

    def __getitem__(self, index: int) -> Sample:
        """Build one sample."""
        branch_index, episode_index, start, stride = self._rows[index]
        branch, episode = self._branches[branch_index], self._episodes[episode_index]
        action_ids = self._expert_ids if branch == 'action' else self._executed_ids
        states = None if self._states is None else self._states[episode.steps]
        wrist = None if self._wrist_codes is None else self._wrist_codes[episode.steps]
        learned = int(self._learned[episode.steps][start])
        chunk = self._chunk_ids.get(episode.start + int(start)) if branch == 'action' else None
        of_episode = action_ids[episode.steps]
        if chunk is not None:
            of_episode = np.concatenate([of_episode[:start], chunk])
        aims = self._store.aims
        aim = None if aims is None else aims[episode.start + int(start)]
        return self._builder.build(branch, episode.instruction, self._store.codes[episode.steps],
                                   of_episode, int(start), states, wrist,
                                   int(stride), learned, aim)


def _chunk_ids(store: TokenStore, horizon: int, tokenizer: ActionTokenizer
               ) -> dict[int, NDArray[np.int32]]:
    """Return the action tokens (K, 7) of chunks that the expert was asked for, by their frame."""
    if store.chunks is None:
        return {}
    recorded = store.chunks.shape[1]
    if recorded < horizon:
        raise DatasetError(f'the store has labels of chunks of {recorded} actions, and '
                           f'data.horizon is {horizon}; record them with `collect --chunk '
                           f'{horizon}`, or take a horizon of {recorded}')
    frames = np.flatnonzero(np.isfinite(store.chunks[:, 0, 0]))
    ids = tokenizer.encode(store.chunks[frames, :horizon]).astype(np.int32)
    return dict(zip(frames.tolist(), ids, strict=True))


def batch_indices(num_samples: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Return the samples of the batch of this step, from 0: shuffled epochs, the rest dropped.

    Raises DatasetError when there are fewer samples than a batch takes.
    """
    if batch_size == 0:
        return np.zeros(0, np.int64)
    per_epoch = num_samples // batch_size
    if per_epoch == 0:
        raise DatasetError(f'{num_samples} samples do not fill one batch of {batch_size}; lower '
                           'the batch size or record more demonstrations')
    epoch, position = divmod(step, per_epoch)
    order = _epoch_order(num_samples, seed, epoch)
    return order[position * batch_size:(position + 1) * batch_size]


@functools.lru_cache(maxsize=2)  # of both parts of a batch: millions of samples take a while
def _epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    order.setflags(write=False)
    return order


def _turn(per_step: float, step: int) -> int | None:
    """Return how many steps before this one took a sample, None where it takes none itself.

    :param per_step: samples that a step takes on average, at most one; the first step takes one.
    """
    before, after = (math.ceil(steps * per_step) for steps in (step, step + 1))
    return before if before < after else None


def fitting_batch(table: SampleTable, world_share: float | None, most: int) -> int:
    """Return the size of the largest batch, up to `most`, that every branch can fill."""
    for size in range(most, 1, -1):
        with suppress(DatasetError):
            table.batch(size, world_share, 0, 0)
            return size
    return 1


def collate(samples: Sequence[Sample], length: int | None = None, multiple: int = 1) -> Batch:
    """Put samples into one batch.

    :param length: tokens of every row, for devices that want one shape; None: the longest sample.
    :param multiple: that the length is rounded up to.
    Raises DatasetError for a sample that is longer; it is never cut.
    """
    longest = max(len(sample.ids) for sample in samples)
    if length is not None and longest > length:
        raise DatasetError(f'a sample has {longest} tokens, more than the fixed length {length}; '
                           'raise the length, or lower history_length, world_rounds or '
                           'world_stride')
    ids = torch.full((len(samples), -(-(length or longest) // multiple) * multiple), PADDING_ID)
    labels = torch.full_like(ids, IGNORED)
    for row, sample in enumerate(samples):
        tokens = torch.from_numpy(sample.ids)
        ids[row, :len(tokens)] = tokens
        labels[row, :len(tokens)] = tokens.where(torch.from_numpy(sample.labelled), IGNORED)
    targets = find_targets(labels, rows_before_labels(labels))
    is_world = torch.tensor([sample.branch != 'action' for sample in samples])
    learned = torch.tensor([int(sample.labelled[1:].sum()) for sample in samples])
    begins = torch.tensor([int(sample.labelled.argmax()) for sample in samples])
    num_actions = torch.tensor([sample.num_actions for sample in samples])
    aims = torch.tensor([UNKNOWN if sample.aim is None else sample.aim for sample in samples])
    unknown = np.full(3, np.nan)
    away = np.stack([unknown if sample.away is None else sample.away for sample in samples])
    return Batch(ids, labels, targets, is_world.repeat_interleave(learned), begins, num_actions,
                 aims, torch.from_numpy(away.astype(np.float32)))


def collate_by_branch(samples: Sequence[Sample], multiple: int = 1) -> tuple[Batch, ...]:
    """Put samples into one batch per branch: a world sample has more tokens, all to be padded."""
    branches = dict.fromkeys(sample.branch for sample in samples)
    return tuple(collate([sample for sample in samples if sample.branch == branch],
                         multiple=multiple)
                 for branch in branches)


def with_noise(batch: Batch, vocabulary: Vocabulary, codes: float, actions: float,
               rng: np.random.Generator) -> Batch:
    """Return the batch with some of the tokens that it shows replaced by random ones of a kind.

    Tokens to be learned stay as labels.

    :param codes: share of the image codes that are not learned. It keeps a network from
        recognising a training episode by a few codes, and from trusting a single one, as dropout
        of pixels would.
    :param actions: share of the learned values of actions. In training the values of an action
        are told by the expert's earlier ones, which the policy does not have: it has its own.
        With this noise the network learns to tell each value from the prompt.
    """
    shown = batch.input_ids.numpy()
    learned = batch.labels.numpy() != IGNORED
    ids = shown
    for kind, share, eligible in ((vocabulary.codes, codes, ~learned),
                                  (vocabulary.bins, actions, learned)):
        if share > 0:
            replaced = (eligible & (shown >= kind.start) & (shown < kind.stop)
                        & (rng.random(shown.shape) < share))
            ids = np.where(replaced, rng.integers(kind.start, kind.stop, shown.shape), ids)
    return batch if ids is shown else replace(batch, input_ids=torch.from_numpy(ids))


def batch_mask(ids: Tensor, vocabulary: Vocabulary, chunk_mask: bool = True) -> Tensor:
    """Return the published mask, bool [B, S, S], of complete sequences [B, S].

    Equal to `model.attention_mask.action_chunk_mask` of each row, which also takes sequences that
    are cut within a block; here all rows are done at once, on their device.
    :param chunk_mask: False hides no earlier action, for the ablation.
    """
    position = torch.arange(ids.shape[1], device=ids.device)
    mask = (position <= position[:, None]).expand(len(ids), -1, -1)
    if not chunk_mask:
        return mask
    begins = ids == vocabulary.boa
    number = begins.cumsum(1)  # of the block that began last, from 1
    ended = (ids == vocabulary.eoa).cumsum(1) - (ids == vocabulary.eoa).long()
    number = number.where(number > ended, 0)  # 0 outside of every action block
    images_end = torch.where(ids == vocabulary.eoi, position, -1).amax(1, keepdim=True)
    restricted = number.where(position > images_end, 0)[:, :, None]
    earlier = number[:, None, :]
    return mask & ~((earlier > 0) & (earlier < restricted))
