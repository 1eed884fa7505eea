# SPDX-License-Identifier: Apache-2.0
"""The frames that the policy sees: the newest and those whole control periods before it.

A policy trained on frames one control period apart must get them that far apart, whatever the
rate of the camera, so frames are chosen by stamp and not by arrival. Where a frame is missing (at
the start of an episode, after a gap) the history is shorter, as it was in training; a frame is
never shown twice. Not thread-safe: one thread pushes and asks.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import ConfigError

_SAMPLE_STRIDE = 16
"""Every 16th row and column decides most comparisons of two images: 1/256 of the bytes."""

_SECOND_NS = 1_000_000_000


class PushResult(Enum):
    """What became of a pushed frame."""

    ACCEPTED = 'accepted'
    ACCEPTED_AFTER_CLOCK_RESET = 'accepted; the stamps jumped back, so the history was cleared'
    DUPLICATE = 'dropped: the same stamp as the newest frame'
    OUT_OF_ORDER = 'dropped: older than the newest frame'
    OLD_CLOCK = 'dropped: on its way while the clock was set back, and so ahead of it'
    ZERO_FILLED = 'dropped: every pixel is zero, so the camera delivers no picture'


class StaleReason(Enum):
    """Why there is no observation."""

    NO_FRAME = 'no frame has arrived'
    TOO_OLD = 'the newest frame is older than max_age'
    CLOCK = 'the newest frame is stamped further ahead of now than max_age: clocks disagree'
    NO_STATE = 'no state of the arm has come for the newest frame'
    NO_WRIST_FRAME = 'no picture of the wrist camera has come for the newest frame'


@dataclass(frozen=True)
class Stale:
    """The answer in place of an observation that must not reach the model."""

    reason: StaleReason
    age_ns: int | None  # [ns] of the newest frame, None without one


class FrameHistory:
    """
    The last frames, at a spacing of one control period.

    :param length: frames in an observation, including the newest
    :param period_ns: control period [ns]
    :param tolerance_ns: how far a frame may be from its place in time [ns], below half a period
    :param max_age_ns: the newest frame may be this old [ns]
    :param reset_jump_ns: a jump back by more than this [ns] is a new clock (simulator restarted,
        recording looped) and clears the history; a smaller one is a late frame and drops it
    :param frozen_after: identical frames in succession that count as a frozen camera; None: one
        second's worth at one frame per control period
    """

    def __init__(self, length: int = 2, *, period_ns: int, tolerance_ns: int, max_age_ns: int,
                 reset_jump_ns: int = _SECOND_NS, frozen_after: int | None = None) -> None:
        if frozen_after is None:
            frozen_after = max(2, round(_SECOND_NS / max(period_ns, 1)))
        _check('length', length, 1)
        _check('period_ns', period_ns, 1)
        _check('max_age_ns', max_age_ns, 0)
        _check('reset_jump_ns', reset_jump_ns, 0)
        _check('frozen_after', frozen_after, 1)
        if not 0 <= 2 * tolerance_ns < period_ns:
            raise ConfigError(
                f'tolerance_ns must be from 0 to below half of period_ns ({period_ns}), so that '
                f'no frame fits two places, got {tolerance_ns}')
        self._length = length
        self._period_ns = period_ns
        self._tolerance_ns = tolerance_ns
        self._max_age_ns = max_age_ns
        self._reset_jump_ns = reset_jump_ns
        self._frozen_after = frozen_after
        self._frames: deque[Frame] = deque()  # strictly increasing stamps
        self._identical = 0

    def __len__(self) -> int:
        """Return the number of frames kept."""
        return len(self._frames)

    def push(self, frame: Frame, *, moving: bool = True) -> PushResult:
        """
        Take a frame or drop it, and say which.

        :param moving: whether the robot is commanded to move. A still robot in a simulator gives
            identical pictures from a healthy camera, so only frames during motion can freeze it.
        """
        if _is_zero_filled(frame.image):
            return PushResult.ZERO_FILLED
        result = PushResult.ACCEPTED
        newest = self.newest
        if newest is not None and frame.stamp_ns <= newest.stamp_ns:
            if newest.stamp_ns - frame.stamp_ns <= self._reset_jump_ns:
                return (PushResult.DUPLICATE if frame.stamp_ns == newest.stamp_ns
                        else PushResult.OUT_OF_ORDER)
            self.clear()
            newest = None
            result = PushResult.ACCEPTED_AFTER_CLOCK_RESET
        if newest is not None:
            self._count_identical(newest, frame, moving)
        self._frames.append(frame)
        self._forget_what_no_observation_can_need()
        return result

    def observation(self, now_ns: int, instruction: str) -> Observation | Stale:
        """Return what the policy may see now, or why it may see nothing."""
        age_ns = self.age_ns(now_ns)
        if age_ns is None:
            return Stale(StaleReason.NO_FRAME, None)
        if age_ns > self._max_age_ns:
            return Stale(StaleReason.TOO_OLD, age_ns)
        if age_ns < -self._max_age_ns:
            return Stale(StaleReason.CLOCK, age_ns)
        return Observation(self._aligned_frames(), instruction)

    def nearest(self, stamp_ns: int, tolerance_ns: int) -> Frame | None:
        """Return the frame nearest to a stamp; None if there is none within the tolerance [ns]."""
        best = min(self._frames, key=lambda frame: abs(frame.stamp_ns - stamp_ns), default=None)
        return best if best and abs(best.stamp_ns - stamp_ns) <= tolerance_ns else None

    def clear(self) -> None:
        """Forget all frames and a frozen camera."""
        self._frames.clear()
        self._identical = 0

    def forget_after(self, now_ns: int) -> None:
        """Forget all frames if one is of later than now [ns]."""
        if self._frames and self._frames[-1].stamp_ns > now_ns:
            self.clear()

    @property
    def newest(self) -> Frame | None:
        """The frame with the latest stamp."""
        return self._frames[-1] if self._frames else None

    def age_ns(self, now_ns: int) -> int | None:
        """Age of the newest frame [ns]; negative if its stamp is ahead, None without a frame."""
        return now_ns - self._frames[-1].stamp_ns if self._frames else None

    @property
    def frozen(self) -> bool:
        """Whether the camera repeats one picture; holds until the picture changes or `clear`."""
        return self._identical >= self._frozen_after

    def _aligned_frames(self) -> tuple[Frame, ...]:
        """Return the newest frame and its predecessors up to the first gap, oldest first."""
        chosen = [self._frames[-1]]
        for periods_back in range(1, self._length):
            target_ns = chosen[0].stamp_ns - periods_back * self._period_ns
            nearest = self.nearest(target_ns, self._tolerance_ns)
            if nearest is None:
                break
            chosen.append(nearest)
        return tuple(reversed(chosen))

    def _forget_what_no_observation_can_need(self) -> None:
        """Keep the newest frame and the time span that the next observations can reach back."""
        span_ns = (self._length - 1) * self._period_ns + self._tolerance_ns
        oldest_ns = self._frames[-1].stamp_ns - (span_ns if self._length > 1 else 0)
        while self._frames[0].stamp_ns < oldest_ns:
            self._frames.popleft()

    def _count_identical(self, previous: Frame, frame: Frame, moving: bool) -> None:
        if not _same_picture(previous.image, frame.image):
            self._identical = 0
        elif moving:  # pictures of a still robot say nothing about the camera
            self._identical += 1


def _check(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ConfigError(f'{name} must be at least {minimum}, got {value}')


def _is_zero_filled(image: np.ndarray) -> bool:
    return not image[::_SAMPLE_STRIDE, ::_SAMPLE_STRIDE].any() and not image.any()


def _same_picture(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    sample = np.s_[::_SAMPLE_STRIDE, ::_SAMPLE_STRIDE]
    return np.array_equal(one[sample], other[sample]) and np.array_equal(one, other)
