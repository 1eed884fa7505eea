# SPDX-License-Identifier: Apache-2.0
"""The state of the arm at the stamp of a frame, from two topics that make one state.

Topics have no order among each other: a state may come before or after its frame, and the pose
before or after the gripper. So each is kept by stamp, and the one nearest to the frame counts; it
must be near enough for both. Not thread-safe: one thread pushes and asks.
"""

from collections import deque
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.arm_state import arm_state
from worldvla_ros.errors import ConfigError

T = TypeVar('T')
_LENGTH = 1000
"""Entries that are kept: an arm at 1 kHz has one second, more than a frame's usual max_age."""

RESET_JUMP_NS = 1_000_000_000  # of the cameras' histories, too: `Sensing` gives it to them


class StateHistory(Generic[T]):
    """
    The last values of one topic, by stamp.

    :param length: values that are kept
    :param reset_jump_ns: a jump back by more than this [ns] is a new clock and clears the history;
        a smaller one is a late or repeated value and drops it
    """

    def __init__(self, length: int = _LENGTH, *, reset_jump_ns: int = RESET_JUMP_NS) -> None:
        if length < 1 or reset_jump_ns < 0:
            raise ConfigError(f'length must be at least 1 and reset_jump_ns at least 0, got '
                              f'{length} and {reset_jump_ns}')
        self._entries: deque[tuple[int, T]] = deque(maxlen=length)  # strictly increasing stamps
        self._reset_jump_ns = reset_jump_ns

    def __len__(self) -> int:
        """Return the number of values kept."""
        return len(self._entries)

    def push(self, stamp_ns: int, value: T) -> bool:
        """Take a value, or drop it if it is not newer than the newest; say which."""
        if self._entries and stamp_ns <= self._entries[-1][0]:
            if self._entries[-1][0] - stamp_ns <= self._reset_jump_ns:
                return False
            self.clear()
        self._entries.append((stamp_ns, value))
        return True

    def nearest(self, stamp_ns: int, tolerance_ns: int) -> T | None:
        """Return the value nearest to a stamp; None if there is none within the tolerance [ns]."""
        best: tuple[int, T] | None = None
        for entry in reversed(self._entries):  # the frame that asks is among the newest
            if best is None or abs(entry[0] - stamp_ns) < abs(best[0] - stamp_ns):
                best = entry
            if entry[0] <= stamp_ns:
                break
        if best is None or abs(best[0] - stamp_ns) > tolerance_ns:
            return None
        return best[1]

    def forget_after(self, now_ns: int) -> None:
        """Forget all values if one is of later than now [ns]."""
        if self._entries and self._entries[-1][0] > now_ns:
            self.clear()

    def clear(self) -> None:
        """Forget all values."""
        self._entries.clear()


class ArmHistory:
    """
    Poses and gripper positions, paired by the stamp of a frame; the slower of them counts.

    :param tolerance_ns: how far each may be from the frame [ns]
    """

    def __init__(self, tolerance_ns: int) -> None:
        if tolerance_ns < 0:
            raise ConfigError(f'tolerance_ns must be at least 0, got {tolerance_ns}')
        self._tolerance_ns = tolerance_ns
        self._poses: StateHistory[tuple[NDArray[np.float64], Rotation]] = StateHistory()
        self._fingers: StateHistory[NDArray[np.float64]] = StateHistory()

    def push_pose(self, stamp_ns: int, position: NDArray[np.float64], rotation: Rotation) -> None:
        """Take the end effector's position (3,) [m] and rotation in the base frame."""
        self._poses.push(stamp_ns, (position, rotation))

    def push_fingers(self, stamp_ns: int, fingers: NDArray[np.float64]) -> None:
        """Take the positions of the gripper's joints (n,) [m]."""
        self._fingers.push(stamp_ns, fingers)

    def state(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """Return the state (7,) at a stamp, see `arm_state`; None without one."""
        pose = self._poses.nearest(stamp_ns, self._tolerance_ns)
        fingers = self._fingers.nearest(stamp_ns, self._tolerance_ns)
        return None if pose is None or fingers is None else arm_state(*pose, fingers)

    def forget_after(self, now_ns: int) -> None:
        """Forget the poses, or the fingers, if one is of later than now [ns]."""
        self._poses.forget_after(now_ns)
        self._fingers.forget_after(now_ns)

    def clear(self) -> None:
        """Forget all."""
        self._poses.clear()
        self._fingers.clear()
