# SPDX-License-Identifier: Apache-2.0
"""From episodes to training sequences: which steps make a sample, and which tokens are learned.

    action:  BOS text IMAGE(t-M+1)..IMAGE(t) [STATE(t)] SEP | (BOA a EOA)(t) .. (t+K-1) SEP
             each IMAGE followed by that of the wrist camera, for models that read it
    world:   BOS text IMAGE(t) (BOA a EOA)(t) .. (t+D-1) SEP | IMAGE(t+D) SEP, and for each
             further round (BOA a EOA).. SEP | IMAGE SEP, with every D up to the world stride
    video:   like world without the actions, for the ablation; D is the world stride

Only what stands behind a bar, up to the next prompt, is labelled. Layout and rules are those of
the public implementation, which has one round and D = 1; frames before the start of an episode
are left out, so the first sample of an episode has one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldvla_ros.datatypes import NO_OP_NORM
from worldvla_ros.tokens.sequence import PromptBuilder, TokenIds, action_block, image_block
from worldvla_ros.tokens.vocab import IMAGE_HEAD_LENGTH

BRANCHES = ('action', 'world', 'video')
VIDEO_PROMPT = 'Generate the next image based on the provided sequence of historical images.'
"""Ours: the public code has no video prediction. The world prompt without its actions."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sequence."""

    ids: TokenIds  # [S]
    labelled: NDArray[np.bool_]  # [S], True where the token is learned
    branch: str
    aim: int | None = None  # token of `ids` to look at, see `aims`; None: not known
    away: NDArray[np.floating] | None = None  # (3,) of the aim from the hand [m]; None: not known
    num_actions: int = 0  # of the action branch


def aim_cell(aim: NDArray[np.floating], grid: tuple[int, int]) -> tuple[int, int] | None:
    """Return row and column of the code that a place in the picture is in; None outside of it.

    :param aim: shares of width and height from the upper left corner, NaN where not known.
    :param grid: rows and columns of codes.
    """
    across, down = aim
    if not (0 <= across < 1 and 0 <= down < 1):
        return None
    return int(down * grid[0]), int(across * grid[1])


@dataclass(frozen=True)
class SampleBuilder:
    """Builds samples from the tokens of an episode.

    These are code indices [T, 2h, 2w], action tokens [T, 7] and, for models that read the arm's
    state, state tokens [T, 7]; for those that read the wrist camera, its code indices [T, 2h, 2w].
    """

    prompts: PromptBuilder
    history_length: int  # M, frames of the action branch
    horizon: int  # K, actions of the action branch
    world_rounds: int = 1  # N, frames predicted in one sample of the world and video branches
    world_stride: int = 1  # most steps between these frames
    short_chunks: bool = False  # at the end of an episode, too, with the actions that are left

    def strides(self, branch: str) -> range:
        """Return the steps between the frames of a sample: of the world branch, all there are.

        Without its actions nothing tells how far ahead a frame is, so video has the longest.
        """
        if branch == 'action':
            return range(1, 2)
        return range(1 if branch == 'world' else self.world_stride, self.world_stride + 1)

    def starts(self, branch: str, num_steps: int, stride: int = 1) -> range:
        """Return the steps of an episode at which a sample of this branch can start."""
        needed = self.world_rounds * stride + 1
        if branch == 'action':
            needed = 1 if self.short_chunks else self.horizon
        return range(max(0, num_steps - needed + 1))

    def build(self, branch: str, instruction: str, codes: NDArray[np.integer],
              action_ids: NDArray[np.integer], start: int,
              state_ids: NDArray[np.integer] | None = None,
              wrist_codes: NDArray[np.integer] | None = None, stride: int = 1,
              learned: int | None = None, aim: NDArray[np.floating] | None = None) -> Sample:
        """Return the sample of one branch that starts at this step.

        :param learned: and `aim`: of the action branch, see `action`.
        """
        if branch == 'action':
            return self.action(instruction, codes, action_ids, start, state_ids, wrist_codes,
                               learned, aim)
        actions = None if branch == 'video' else action_ids
        return self._rounds(branch, codes, actions, start, stride)

    def action(self, instruction: str, codes: NDArray[np.integer],
               action_ids: NDArray[np.integer], start: int,
               state_ids: NDArray[np.integer] | None = None,
               wrist_codes: NDArray[np.integer] | None = None, learned: int | None = None,
               aim: NDArray[np.floating] | None = None) -> Sample:
        """
        Return the sample whose newest frame is `start`, with the actions from there on.

        :param learned: how many of these are labelled, from the first on; None: all.
        :param aim: (5,), what the action is for, see `AIMS`; NaN or None: not known.
        """
        cameras = [codes] if wrist_codes is None else [codes, wrist_codes]
        seen = range(max(0, start - self.history_length + 1), start + 1)
        images = [camera[step] for step in seen for camera in cameras]
        vocabulary = self.prompts.vocabulary
        blocks = [action_block(ids, vocabulary)
                  for ids in action_ids[start:start + self.horizon]]
        state = None if state_ids is None else state_ids[start]
        prompt = self.prompts.action(instruction, images, state)
        count = self.horizon if learned is None else learned
        # The separator ends a whole chunk; where an episode ends, nothing says that it would.
        end = [vocabulary.separator][:len(blocks) // self.horizon]
        sample = replace(_joined('action', [(prompt, _concatenate(blocks[:count])),
                                            (_concatenate(blocks[count:]), np.array(end))]),
                         num_actions=len(blocks))
        if aim is None:
            return sample
        sample = replace(sample, away=aim[2:])
        rows, columns = codes.shape[1:]
        if (cell := aim_cell(aim[:2], (rows, columns))) is None:
            return sample
        row, column = cell
        begin = np.flatnonzero(prompt == vocabulary.boi)[-len(cameras)]  # of the newest frame
        return replace(sample, aim=int(begin) + IMAGE_HEAD_LENGTH + row * (columns + 1) + column)

    def _rounds(self, branch: str, codes: NDArray[np.integer],
                action_ids: NDArray[np.integer] | None, start: int, stride: int) -> Sample:
        vocabulary = self.prompts.vocabulary
        separator = [vocabulary.separator]
        turns: list[tuple[TokenIds, TokenIds]] = []
        for step in range(start, start + self.world_rounds * stride, stride):
            asked: list[ArrayLike] = [] if step > start else [self._opening(branch, codes[step])]
            if action_ids is not None:
                asked += [action_block(ids, vocabulary)
                          for ids in action_ids[step:step + stride]]
                asked += [separator]
            elif step == start:
                asked += [separator]
            target = _concatenate([image_block(codes[step + stride], vocabulary), separator])
            turns.append((_concatenate(asked), target))
        return _joined(branch, turns)

    def _opening(self, branch: str, image: NDArray[np.integer]) -> TokenIds:
        prompts = (self.prompts if branch == 'world'
                   else replace(self.prompts, world_prompt=VIDEO_PROMPT))
        return _concatenate([prompts.world_prefix(), image_block(image, prompts.vocabulary)])


def _joined(branch: str, turns: Sequence[tuple[TokenIds, TokenIds]]) -> Sample:
    """Concatenate turns of (asked, learned) tokens."""
    parts = [part for turn in turns for part in turn]
    labelled = [np.full(len(part), i % 2 == 1) for i, part in enumerate(parts)]
    return Sample(_concatenate(parts), np.concatenate(labelled), branch)


def _concatenate(parts: Sequence[ArrayLike]) -> TokenIds:
    return np.concatenate([np.zeros(0, np.int64), *(np.asarray(p, np.int64) for p in parts)])


def labels_that_hold(labels: NDArray[np.floating], executed: NDArray[np.floating], horizon: int,
                     tolerance: float) -> NDArray[np.int64]:
    """Return how many labels, from each step on [T], are those of a chunk that begins there.

    A label says what the expert would do where the robot is at its step. A chunk brings the robot
    where its own earlier actions do. Where something else was executed, as in a learner's turn of
    DAgger, the later labels are of other places: a hand that the learner held still is told the
    same step again and again, and a chunk of them goes many times too far. The first always holds.

    :param labels: and `executed` [T, 7], controller input.
    :param tolerance: how far what was executed may be off, per step, on each axis of the motion;
        the gripper must be told the same.
    """
    off = np.zeros((len(labels) + horizon, 6))
    other_gripper = (executed[:, 6:] > 0) != (labels[:, 6:] > 0)
    off[:len(labels)] = np.where(other_gripper, np.inf, executed[:, :6] - labels[:, :6])
    away, holds = np.zeros((len(labels), 6)), np.ones(len(labels), dtype=bool)
    count = np.ones(len(labels), dtype=np.int64)
    for step in range(1, horizon):
        away += off[step - 1:step - 1 + len(labels)]
        holds &= np.abs(away).max(1) <= tolerance * step
        count += holds
    return count


def moving_steps(actions: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which of the actions [T, 7] the published no-op filter keeps.

    A step is dropped when it moves nothing and does not change the gripper command of the last
    step that was kept. What is kept of a demonstration need not replay to success: fingers take
    time to close, and waiting for them is a no-op.
    """
    still = np.linalg.norm(actions[:, :6], axis=1) < NO_OP_NORM
    kept = np.zeros(len(actions), dtype=bool)
    gripper: float | None = None  # command of the last kept step
    for step, (action, is_still) in enumerate(zip(actions, still, strict=True)):
        if is_still and (gripper is None or action[6] == gripper):
            continue
        kept[step] = True
        gripper = float(action[6])
    return kept
