# SPDX-License-Identifier: Apache-2.0
"""One demonstration out of what came on topics, put in step by the stamps.

A control step begins with a command. It belongs to the newest frame of before, which is what its
giver could have seen, and to the state of the arm, and the wrist camera's picture, nearest to that
frame: as the policy node puts its observations together.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.datatypes import NO_OP_NORM, Frame
from worldvla_ros.errors import RecordingError

T = TypeVar('T')
_NS = 1e9
_NEW_CLOCK_NS = 1_000_000_000  # a jump back by more is another clock, by less a late message
LONGEST_PAUSE = 60.0  # [s] between two commands; a longer one is a jump of their clock


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """What was seen and felt before each of T control steps, and what the arm was told then."""

    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB
    actions: NDArray[np.float64]  # (T, 7) controller input
    wrist: NDArray[np.uint8] | None  # (T, h, w, 3) RGB; None: no wrist camera was heard
    positions: NDArray[np.float64] | None  # (T, 3) [m] of the end effector in the base frame
    quaternions: NDArray[np.float64] | None  # (T, 4) xyzw of the end effector in the base frame
    fingers: NDArray[np.float64] | None  # (T, n) [m] of the gripper's joints
    repeats: int = 0  # steps whose frame is that of the step before

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Pace:
    """How steps follow each other in time, and how far apart in time belongs together [ns]."""

    period_ns: int  # of control
    max_age_ns: int  # of a frame at its command
    state_tolerance_ns: int  # of the arm's state from its frame
    wrist_tolerance_ns: int  # of the wrist camera's picture from its frame


class Track(Generic[T]):
    """The values of one topic, by strictly increasing stamps."""

    def __init__(self, what: str) -> None:
        """Take what the values are, for errors."""
        self.what = what
        self.stamps: list[int] = []
        self.values: list[T] = []
        self.clock_was_set_back = False

    def __bool__(self) -> bool:
        return bool(self.stamps)

    def push(self, stamp_ns: int, value: T) -> None:
        """Take a value; one that is not newer than the newest is late or repeated, and dropped."""
        if self.stamps and stamp_ns <= self.stamps[-1]:
            self.clock_was_set_back |= self.stamps[-1] - stamp_ns > _NEW_CLOCK_NS
            return
        self.stamps.append(stamp_ns)
        self.values.append(value)

    def forget_before(self, stamp_ns: int) -> None:
        """Drop the values of before a stamp."""
        count = bisect_left(self.stamps, stamp_ns)
        del self.stamps[:count], self.values[:count]

    def before(self, stamp_ns: int, max_age_ns: int) -> int | None:
        """Return the index of the newest value of no later than a stamp; None if it is too old."""
        index = bisect_right(self.stamps, stamp_ns) - 1
        return None if index < 0 or stamp_ns - self.stamps[index] > max_age_ns else index

    def nearest(self, stamp_ns: int, tolerance_ns: int) -> int | None:
        """Return the index of the value nearest to a stamp; None if it is too far away."""
        after = bisect_right(self.stamps, stamp_ns)
        index = min((i for i in (after - 1, after) if 0 <= i < len(self.stamps)),
                    key=lambda i: abs(self.stamps[i] - stamp_ns), default=None)
        if index is None or abs(self.stamps[index] - stamp_ns) > tolerance_ns:
            return None
        return index


class Timeline:
    """Collects one demonstration. Not thread-safe: one thread pushes and asks."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._frames: Track[NDArray[np.uint8]] = Track('frame')
        self._wrist: Track[NDArray[np.uint8]] = Track('picture of the wrist camera')
        self._poses: Track[tuple[NDArray[np.float64], Rotation]] = Track('ee_pose')
        self._fingers: Track[NDArray[np.float64]] = Track('joint_states of the gripper')
        self._commands: Track[NDArray[np.float64]] = Track('command')

    @property
    def frames(self) -> int:
        """How many frames came."""
        return len(self._frames.stamps)

    @property
    def commands(self) -> int:
        """How many commands came."""
        return len(self._commands.stamps)

    def push_frame(self, frame: Frame) -> None:
        """Take a frame of the third-person camera."""
        self._frames.push(frame.stamp_ns, frame.image)

    def push_wrist_frame(self, frame: Frame) -> None:
        """Take a frame of the wrist camera."""
        self._wrist.push(frame.stamp_ns, frame.image)

    def push_pose(self, stamp_ns: int, position: NDArray[np.float64], rotation: Rotation) -> None:
        """Take the end effector's position (3,) [m] and rotation in the base frame."""
        self._poses.push(stamp_ns, (position, rotation))

    def push_fingers(self, stamp_ns: int, fingers: NDArray[np.float64]) -> None:
        """Take the positions of the gripper's joints (n,) [m]."""
        self._fingers.push(stamp_ns, fingers)

    def push_command(self, stamp_ns: int, action: NDArray[np.float64]) -> None:
        """Take controller input (7,); gripper 0: as before."""
        self._commands.push(stamp_ns, action)

    def forget_pictures_before(self, stamp_ns: int) -> None:
        """Drop the pictures that no command can refer to any more, and their memory."""
        self._frames.forget_before(stamp_ns)
        self._wrist.forget_before(stamp_ns)

    def episode(self) -> RecordedEpisode:
        """Put everything in step, without what was still at the beginning and at the end.

        :raises RecordingError: nothing moved, or a step lacks its frame or its state.
        """
        for track in (self._frames, self._wrist, self._poses, self._fingers, self._commands):
            if track.clock_was_set_back:
                raise RecordingError(f'the stamps of {track.what} were set back by more than a '
                                     'second; record again, on one clock')
        stamps, actions = self._steps()
        kept = _from_first_to_last_motion(actions)
        stamps, actions = stamps[kept], actions[kept]
        seen = self._aligned(self._frames, stamps, self._pace.max_age_ns, self._frames.before)
        at = [self._frames.stamps[index] for index in seen]
        has_state = bool(self._poses and self._fingers)
        poses = self._at(self._poses, at, self._pace.state_tolerance_ns) if has_state else None
        fingers = self._at(self._fingers, at, self._pace.state_tolerance_ns) if has_state else None
        wrist = self._at(self._wrist, at, self._pace.wrist_tolerance_ns) if self._wrist else None
        return RecordedEpisode(
            frames=_stacked([self._frames.values[index] for index in seen]), actions=actions,
            wrist=None if wrist is None else _stacked(wrist),
            positions=None if poses is None else np.stack([place for place, _ in poses]),
            quaternions=None if poses is None else np.stack([turn.as_quat() for _, turn in poses]),
            fingers=None if fingers is None else np.stack(fingers),
            repeats=sum(one == other for one, other in pairwise(seen)))

    def _steps(self) -> tuple[list[int], NDArray[np.float64]]:
        """Return the stamps (T,) [ns] and actions (T, 7) of all control steps.

        They lie one period apart from the first command on, whatever the rate of the commands is.
        Each takes the command that is nearest, and its stamp; where there was none for a period
        the arm was told nothing, which is zero motion.
        """
        if not self._commands:
            raise RecordingError('no command came, so there is nothing to learn; check the topic '
                                 'of the commands')
        given = self._commands
        stamps, actions = [], []
        pause_ns = max(np.diff(given.stamps), default=0)
        if pause_ns > LONGEST_PAUSE * _NS:
            raise RecordingError(f'{pause_ns / _NS:.0f} s lie between two commands; record again '
                                 'without that pause, or look at the clock that stamps them')
        gripper = next((float(one[6]) for one in given.values if one[6] != 0.0), None)
        if gripper is None:
            raise RecordingError('no command says what the gripper shall do; publish gripper -1 '
                                 '(open) or 1 (close) with each')
        for stamp in range(given.stamps[0], given.stamps[-1] + 1, self._pace.period_ns):
            index = given.nearest(stamp, self._pace.period_ns)
            action = np.zeros(7) if index is None else given.values[index].copy()
            gripper = action[6] = float(action[6]) or gripper
            stamps.append(stamp if index is None else given.stamps[index])
            actions.append(action)
        return stamps, np.stack(actions)

    def _at(self, track: Track[T], stamps: list[int], tolerance_ns: int) -> list[T]:
        """Return what was nearest to each stamp; RecordingError where nothing was near."""
        indices = self._aligned(track, stamps, tolerance_ns, track.nearest)
        return [track.values[index] for index in indices]

    def _aligned(self, track: Track[T], stamps: list[int], tolerance_ns: int,
                 find: Callable[[int, int], int | None]) -> list[int]:
        indices = []
        for stamp in stamps:
            if (index := find(stamp, tolerance_ns)) is None:
                raise RecordingError(
                    f'no {track.what} within {tolerance_ns / _NS:g} s of the step '
                    f'{(stamp - self._commands.stamps[0]) / _NS:.2f} s after the first command; '
                    'check that its topic comes at the control rate or faster and is stamped on '
                    'the clock of the commands')
            indices.append(index)
        return indices


def _stacked(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise RecordingError(f'pictures of {len(sizes)} sizes came, such as {sizes[0]} and '
                             f'{sizes[1]} px; keep the camera at one, or set image_size')
    return np.stack(pictures)


def _from_first_to_last_motion(actions: NDArray[np.float64]) -> slice:
    """Return the steps from the first to the last that moves the hand or changes the gripper.

    Who demonstrates begins a little after, and ends a little before, the recording. A policy that
    learned to wait there would wait for ever.
    """
    moves = np.linalg.norm(actions[:, :6], axis=1) >= NO_OP_NORM
    moves[1:] |= actions[1:, 6] != actions[:-1, 6]
    steps = np.flatnonzero(moves)
    if not len(steps):
        raise RecordingError(f'none of {len(actions)} commands moves anything, so there is '
                             'nothing to learn')
    return slice(int(steps[0]), int(steps[-1]) + 1)
