# SPDX-License-Identifier: Apache-2.0
"""What is learned from: one demonstration in memory, and the pieces that filters leave of it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.datatypes import ACTION_DIM, STATE_DIM
from worldvla_ros.recording.demonstration_file import AIM_DIM
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.splits import PIECE


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration of T control steps.

    CHUNKS, MOVED and AIMS are of `worldvla_ros.recording.demonstration_file`.
    """

    name: str  # 'demo_N'
    task: str  # path of its file without the ending: what splits and tables go by
    instruction: str
    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB before each action, as policies see them
    actions: NDArray[np.float64]  # (T, 7) controller input: the labels
    executed: NDArray[np.float64]  # (T, 7) controller input: what moved the robot
    success: bool
    states: NDArray[np.float64] | None = None  # (T, 7) of `arm_state`; None: not recorded
    wrist: NDArray[np.uint8] | None = None  # (T, H, W, 3) RGB of the wrist camera; None: not read
    chunks: NDArray[np.float64] | None = None  # (T, K, 7), see CHUNKS; None: not recorded
    moved: NDArray[np.bool_] | None = None  # (T,), see MOVED; None: never
    aims: NDArray[np.float64] | None = None  # (T, 5), see AIMS; None: not recorded

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        steps = len(self.actions)
        wrist = () if self.wrist is None else (*self.wrist.shape[1:3], 3)
        chunk = () if self.chunks is None else (*self.chunks.shape[1:2], ACTION_DIM)
        for what, array, tail in (('frames', self.frames, (*self.frames.shape[1:3], 3)),
                                  ('wrist frames', self.wrist, wrist),
                                  ('actions', self.actions, (ACTION_DIM,)),
                                  ('executed actions', self.executed, (ACTION_DIM,)),
                                  ('states', self.states, (STATE_DIM,)),
                                  ('chunk labels', self.chunks, chunk),
                                  ('aims', self.aims, (AIM_DIM,))):
            if array is not None and (steps == 0 or array.shape != (steps, *tail)):
                raise DatasetError(f'{self.task}, {self.name}: expected {what} of shape '
                                   f'{(steps, *tail)} with at least one step, got {array.shape}')
        if not (np.isfinite(self.actions).all() and np.isfinite(self.executed).all()):
            raise DatasetError(f'{self.task}, {self.name}: an action is NaN or infinite; '
                               'record the demonstration again')
        if self.chunks is not None:
            asked = ~np.isnan(self.chunks).all((1, 2))
            if not np.isfinite(self.chunks[asked]).all():
                raise DatasetError(f'{self.task}, {self.name}: a chunk label is NaN in part, or '
                                   'infinite; record the demonstration again')

    def kept(self, steps: NDArray[np.bool_]) -> 'Episode':
        """Return the episode without the steps that a filter drops."""
        arrays: dict[str, Any] = {
            field.name: array[steps] for field in fields(self)
            if isinstance(array := getattr(self, field.name), np.ndarray)}
        return replace(self, **arrays)

    def pieces(self, steps: NDArray[np.bool_]) -> Iterator['Episode']:
        """Yield what a filter keeps of the episode, cut where objects were moved by hand."""
        if self.moved is None:
            if steps.any():
                yield self if steps.all() else self.kept(steps)
            return
        numbers = self.moved.cumsum()
        for number in np.unique(numbers[steps]):
            piece = self.kept(steps & (numbers == number))
            yield replace(piece, name=f'{self.name}{PIECE}{number}', moved=None)
