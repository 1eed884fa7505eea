# SPDX-License-Identifier: Apache-2.0
"""Where the end effector is between two of its poses, for the walls of the workspace."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.policy.state_history import StateHistory


class PositionEstimate:
    """
    What the last pose says, and the way that the commands since its stamp led.

    A command counts evenly over its control period, so a pose that is stamped within one has seen
    a part of it.

    :param gain: share of a commanded translation that the arm covers within its control period
    :param period_ns: control period [ns]
    """

    def __init__(self, gain: float, period_ns: int) -> None:
        self._gain = gain
        self._period_ns = period_ns
        self._poses: StateHistory[tuple[int, NDArray[np.float64]]] = StateHistory(length=1)
        self._sent: deque[tuple[int, NDArray[np.float64]]] = deque()  # (time [ns], (3,) [m])

    def push(self, stamp_ns: int, position: NDArray[np.float64]) -> None:
        """Take a position (3,) [m] in the base frame."""
        self._poses.push(stamp_ns, (stamp_ns, position))

    def sent(self, now_ns: int, translation: NDArray[np.float64], tolerance_ns: int) -> None:
        """
        Take a translation (3,) [m] that is commanded now, and forget those that no pose needs.

        :param tolerance_ns: as for `at`
        """
        if self._sent and self._sent[-1][0] > now_ns:  # the clock jumped back
            self._sent.clear()
        while self._sent and self._sent[0][0] + self._period_ns <= now_ns - tolerance_ns:
            self._sent.popleft()
        self._sent.append((now_ns, translation))

    def at(self, now_ns: int, tolerance_ns: int) -> NDArray[np.float64] | None:
        """Return the position (3,) [m]; None if no pose is within the tolerance [ns] of now."""
        pose = self._poses.nearest(now_ns, tolerance_ns)
        if pose is None:
            return None
        stamp_ns, position = pose
        moved = sum((self._share_after(stamp_ns, sent_ns) * translation
                     for sent_ns, translation in self._sent), np.zeros(3))
        return position + self._gain * moved

    def clear(self) -> None:
        """Forget pose and commands."""
        self._poses.clear()
        self._sent.clear()

    def forget_after(self, now_ns: int) -> None:
        """Forget all if the pose or a command is of later than now [ns]."""
        self._poses.forget_after(now_ns)
        if self._sent and self._sent[-1][0] > now_ns:
            self.clear()

    def _share_after(self, stamp_ns: int, sent_ns: int) -> float:
        """Return which share of a command's period lies after a stamp, 0 to 1."""
        return min(max((sent_ns + self._period_ns - stamp_ns) / self._period_ns, 0.0), 1.0)
