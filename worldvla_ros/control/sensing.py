# SPDX-License-Identifier: Apache-2.0
"""What the robot sees and feels: cameras, the state of the arm, the place of its end effector."""

from dataclasses import replace
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.control.position_estimate import PositionEstimate
from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.inference.backend import BackendInfo
from worldvla_ros.policy.frame_history import FrameHistory, PushResult, Stale, StaleReason
from worldvla_ros.policy.state_history import RESET_JUMP_NS, ArmHistory
from worldvla_ros.safety.limits import Reason

_REASON_OF_STALE = {StaleReason.NO_FRAME: Reason.NO_OBSERVATION,
                    StaleReason.TOO_OLD: Reason.STALE_OBSERVATION,
                    StaleReason.CLOCK: Reason.CLOCK,
                    StaleReason.NO_STATE: Reason.NO_STATE,
                    StaleReason.NO_WRIST_FRAME: Reason.NO_WRIST_FRAME}


class Sensing:
    """
    Composes the histories of one policy.

    :param translation_gain: see PositionEstimate
    """

    def __init__(self, settings: ControllerSettings, info: BackendInfo,
                 translation_gain: float) -> None:
        self._max_age_ns = round(settings.obs.max_age * 1e9)
        self._period_ns = settings.period_ns
        self._latest_ns = 0  # what the clock said last
        self._old_clock_until_ns = 0  # till then messages of before it was set back may come
        self._wrist_tolerance_ns = settings.wrist_tolerance_ns
        self._history_length = info.history_length
        self.frames = _history(settings, info.history_length)
        # None: the policy does not read the wrist camera. It may be ahead of the other by max_age.
        ahead = -(-self._max_age_ns // settings.period_ns)
        self.wrist = _history(settings, info.history_length + ahead) if info.reads_wrist else None
        self.position = PositionEstimate(translation_gain, settings.period_ns)
        # None: the policy does not read the state of the arm.
        self._arm = ArmHistory(settings.state_tolerance_ns) if info.reads_state else None

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest frame [ns]; 0 without one."""
        return self.frames.newest.stamp_ns if self.frames.newest else 0

    def older_of_next(self, now_ns: int) -> tuple[Frame, ...]:
        """Return the frames that the next observation will show before its newest, oldest first.

        The newest of now is one of them; empty while the policy may see nothing.
        """
        observation = self._see(now_ns, '')
        if isinstance(observation, Stale):
            return ()
        return observation.frames[-max(1, self._history_length - 1):]

    @property
    def lacks_state(self) -> bool:
        """Whether the policy reads the state of the arm, and none fits the newest frame."""
        return self._arm is not None and self._arm.state(self.newest_ns) is None

    def age(self, now_ns: int) -> float:
        """Age of the newest frame [s]; -1 without one."""
        return _age(self.frames, now_ns)

    def wrist_age(self, now_ns: int) -> float:
        """Age of the newest frame of the wrist camera [s]; -1 without one."""
        return -1.0 if self.wrist is None else _age(self.wrist, now_ns)

    def push_frame(self, frame: Frame, *, moving: bool) -> PushResult:
        """Take a frame or drop it; see `FrameHistory.push`."""
        return self._push(self.frames, frame, moving)

    def push_wrist_frame(self, frame: Frame, *, moving: bool) -> PushResult:
        """Take a frame of the wrist camera, if the policy reads it; see `FrameHistory.push`."""
        return PushResult.ACCEPTED if self.wrist is None else self._push(
            self.wrist, frame, moving)

    def push_ee_pose(self, stamp_ns: int, position: NDArray[np.float64],
                     rotation: Rotation) -> None:
        """Take the end effector's position (3,) [m] and rotation in the base frame."""
        if self._is_of_old_clock(stamp_ns):
            return
        self.position.push(stamp_ns, position)
        if self._arm is not None:
            self._arm.push_pose(stamp_ns, position, rotation)

    def push_fingers(self, stamp_ns: int, fingers: NDArray[np.float64]) -> None:
        """Take the positions of the gripper's joints (n,) [m]."""
        if self._arm is not None and not self._is_of_old_clock(stamp_ns):
            self._arm.push_fingers(stamp_ns, fingers)

    def observe(self, now_ns: int, instruction: str) -> Observation | Stale:
        """Return what the policy may see now, with the state of the arm if it reads it."""
        observation = self._see(now_ns, instruction)
        if self._arm is None or isinstance(observation, Stale):
            return observation
        state = self._arm.state(observation.stamp_ns)
        if state is None:
            return Stale(StaleReason.NO_STATE, now_ns - observation.stamp_ns)
        return replace(observation, state=state)

    def fault(self, now_ns: int) -> Reason:
        """Say for what of camera and arm the robot has to hold; NONE if all is well."""
        return _fault(self.observe(now_ns, ''), self.frames.frozen or self._wrist_is_frozen)

    def camera_fault(self, now_ns: int) -> Reason:
        """Say for what the robot had to hold if only the third-person camera counted."""
        return _fault(self.frames.observation(now_ns, ''), self.frames.frozen)

    def wrist_fault(self, now_ns: int) -> Reason:
        """Say for what the robot had to hold if only the wrist camera counted, as far as known."""
        seen = self._see(now_ns, '')
        if isinstance(seen, Stale) and seen.reason is StaleReason.NO_WRIST_FRAME:
            return Reason.NO_WRIST_FRAME
        return Reason.FROZEN_CAMERA if self._wrist_is_frozen else Reason.NONE

    def clear(self) -> None:
        """Forget all."""
        for history in (self.frames, self.wrist, self.position, self._arm):
            if history is not None:
                history.clear()

    def watch_clock(self, now_ns: int) -> bool:
        """Forget what is stamped ahead if the clock was set back since the last call; say so.

        What came before would be taken for new, and what comes for old.
        """
        set_back = now_ns < self._latest_ns
        if set_back:
            for history in (self.frames, self.wrist, self.position, self._arm):
                if history is not None:
                    history.forget_after(now_ns)
            # After a longer jump back than this a history starts anew by itself.
            self._old_clock_until_ns = min(self._latest_ns, now_ns + RESET_JUMP_NS)
        self._latest_ns = now_ns
        return set_back

    def _is_of_old_clock(self, stamp_ns: int) -> bool:
        """Tell whether a message was on its way while the clock was set back: it is ahead now."""
        return (self._latest_ns < self._old_clock_until_ns
                and stamp_ns > self._latest_ns + self._period_ns)

    def _push(self, history: FrameHistory, frame: Frame, moving: bool) -> PushResult:
        if self._is_of_old_clock(frame.stamp_ns):
            return PushResult.OLD_CLOCK
        return history.push(frame, moving=moving)

    @property
    def _wrist_is_frozen(self) -> bool:
        return self.wrist is not None and self.wrist.frozen

    def _wrist_frame(self, stamp_ns: int) -> Frame | None:
        """Return what the wrist camera saw at the stamp of a frame; None if it is not known."""
        if self.wrist is None:
            return None
        return self.wrist.nearest(stamp_ns, self._wrist_tolerance_ns)

    def _see(self, now_ns: int, instruction: str) -> Observation | Stale:
        """Return the frames, each with what the wrist camera saw then if the policy reads it.

        A gap of the wrist camera ends the history, as one of the other does: no picture of either
        is shown twice.
        """
        observation = self.frames.observation(now_ns, instruction)
        if self.wrist is None or isinstance(observation, Stale):
            return observation
        pairs: list[tuple[Frame, Frame]] = []  # a frame and that of the wrist, newest first
        for frame in reversed(observation.frames):
            there = self._wrist_frame(frame.stamp_ns)
            if there is None or (pairs and there is pairs[-1][1]):
                break
            pairs.append((frame, there))
        if not pairs or now_ns - pairs[0][1].stamp_ns > self._max_age_ns:
            return Stale(StaleReason.NO_WRIST_FRAME, now_ns - observation.stamp_ns)
        return replace(observation, frames=tuple(
            replace(frame, wrist=there.image) for frame, there in reversed(pairs)))


def _fault(observation: Observation | Stale, frozen: bool) -> Reason:
    if isinstance(observation, Stale):
        return _REASON_OF_STALE[observation.reason]
    return Reason.FROZEN_CAMERA if frozen else Reason.NONE


def _history(settings: ControllerSettings, length: int) -> FrameHistory:
    """Return the history of one camera."""
    obs = settings.obs
    return FrameHistory(
        length, period_ns=settings.period_ns, tolerance_ns=round(obs.tolerance * 1e9),
        max_age_ns=round(obs.max_age * 1e9), reset_jump_ns=RESET_JUMP_NS,
        frozen_after=sys.maxsize if obs.frozen_after < 0 else obs.frozen_after or None)


def _age(frames: FrameHistory, now_ns: int) -> float:
    age_ns = frames.age_ns(now_ns)
    return -1.0 if age_ns is None else age_ns * 1e-9
