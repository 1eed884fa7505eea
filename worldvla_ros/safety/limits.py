# SPDX-License-Identifier: Apache-2.0
"""The last stage before the robot: finite, in range, inside the workspace, not too fast.

Every stage scales a vector along its direction, so that a limited motion is a shorter motion and
not another one; only the workspace cuts single components, because sliding along a wall is what
one wants there. Zero motion passes every stage: stopping is always allowed.
"""

from dataclasses import dataclass
from enum import IntEnum
import math

import numpy as np

from worldvla_ros.config import bounded, check
from worldvla_ros.errors import ConfigError
from worldvla_ros.safety.command import Command

_ROUNDING = 1e-12
"""Excess of a change, in [m] or [rad], that is rounding: limiting twice must change nothing."""


class Verdict(IntEnum):
    """What the safety stage did; DeltaAction.msg VERDICT_*."""

    PASS = 0
    LIMITED = 1
    HOLD = 2


class Reason(IntEnum):
    """Why a verdict is not PASS; DeltaAction.msg REASON_*."""

    NONE = 0
    NOT_FINITE = 1
    OUT_OF_RANGE = 2
    RATE = 3
    WORKSPACE = 4
    NO_INSTRUCTION = 5
    STALE_OBSERVATION = 6
    NO_OBSERVATION = 7
    WAITING_FOR_CHUNK = 8
    UNDERRUN = 9
    PAUSED = 10
    ESTOP = 11
    WORKER_DOWN = 12
    INACTIVE = 13
    SHUTDOWN = 14
    FROZEN_CAMERA = 15
    CLOCK = 16
    CONFLICT = 17
    NO_STATE = 18
    INFERENCE_FAILED = 19
    NO_WRIST_FRAME = 20


REASON_TEXT = {
    Reason.NONE: '',
    Reason.NOT_FINITE: 'the policy produced NaN or infinity; check the checkpoint',
    Reason.OUT_OF_RANGE: 'the policy asked for more than the limits per step',
    Reason.RATE: 'the policy changed its command faster than the limits per step',
    Reason.WORKSPACE: 'the motion would leave the workspace box, or the end effector pose that '
                      'the box needs is missing',
    Reason.NO_INSTRUCTION: 'no instruction; publish one to start',
    Reason.STALE_OBSERVATION: 'the newest frame is too old; check the camera and its stamps',
    Reason.NO_OBSERVATION: 'no frame has arrived; check the camera and the image topic',
    Reason.WAITING_FOR_CHUNK: 'inference is running',
    Reason.UNDERRUN: 'inference was slower than the robot, or than obs.max_chunk_age; replan '
                     'earlier or lower the rate',
    Reason.PAUSED: 'paused; call pause with false to go on',
    Reason.ESTOP: 'emergency stop; release it, call estop_reset, then publish an instruction',
    Reason.WORKER_DOWN: 'the inference worker is down',
    Reason.INACTIVE: 'the node is not active',
    Reason.SHUTDOWN: 'the node is shutting down',
    Reason.FROZEN_CAMERA: 'a camera repeats one picture while the robot moves; restart it',
    Reason.CLOCK: 'frame stamps and the node clock disagree; check use_sim_time and /clock',
    Reason.CONFLICT: 'another publisher commands the same topic; stop one of them',
    Reason.NO_STATE: 'no state of the arm for the newest frame; publish ee_pose and joint_states, '
                     'stamped and in time with the camera',
    Reason.INFERENCE_FAILED: 'inference failed; it is tried again every second',
    Reason.NO_WRIST_FRAME: 'no picture of the wrist camera for the newest frame; check that it '
                           'works, the wrist_image topic, and that both cameras are stamped in '
                           'time',
}
"""What is wrong and what to do, for people."""


@dataclass(frozen=True)
class SafetyLimits:
    """
    Limits per control step, in SI units and the base frame.

    Range and rate hold for each axis, as the limits of an OSC_POSE controller do: its input 1.0 on
    all three axes is inside the defaults. The default rate is a full reversal within one step.
    """

    max_translation: float = bounded(
        0.05, unit='m', minimum=0.0, maximum=1.0, doc='Translation per control step and axis')
    max_rotation: float = bounded(
        0.5, unit='rad', minimum=0.0, maximum=3.15, doc='Rotation per control step and axis')
    max_translation_change: float = bounded(
        0.1, unit='m', minimum=1e-4, maximum=2.0,
        doc='Change of the translation from one control step to the next, per axis. It binds when '
            'the policy slows down, too; a hold stops at once')
    max_rotation_change: float = bounded(
        1.0, unit='rad', minimum=1e-3, maximum=6.3,
        doc='Change of the rotation from one control step to the next, per axis')
    gripper_min: float = bounded(-1.0, minimum=-1.0, maximum=1.0, doc='Most open, -1 open')
    gripper_max: float = bounded(1.0, minimum=-1.0, maximum=1.0, doc='Most closed, 1 close')
    workspace_min: tuple[float, float, float] = bounded(
        (-math.inf, -math.inf, -math.inf), unit='m', minimum=-math.inf, maximum=math.inf,
        doc='Lower corner of the box that the end effector stays in; -.inf: no wall')
    workspace_max: tuple[float, float, float] = bounded(
        (math.inf, math.inf, math.inf), unit='m', minimum=-math.inf, maximum=math.inf,
        doc='Upper corner of the box that the end effector stays in; .inf: no wall')
    pose_timeout: float = bounded(
        0.5, unit='s', minimum=0.01, maximum=10.0,
        doc='With a wall, an ee_pose whose stamp is further from now counts as missing, and the '
            'robot holds still. Between two poses, the commands since count with '
            'servo.translation_gain: an arm that follows more closely than that may get past the '
            'wall, by what it covers more until the next pose')

    def __post_init__(self) -> None:
        """Refuse values outside the ranges and empty ranges."""
        check(self)
        if self.gripper_min > self.gripper_max:
            raise ConfigError(f'gripper_min ({self.gripper_min}) must not be above gripper_max '
                              f'({self.gripper_max})')
        if not all(low < high for low, high in
                   zip(self.workspace_min, self.workspace_max, strict=True)):
            raise ConfigError(f'workspace_min {self.workspace_min} must be below workspace_max '
                              f'{self.workspace_max} on every axis')

    @property
    def has_workspace(self) -> bool:
        """Whether any wall is set, so that the end effector position is needed."""
        return any(map(math.isfinite, self.workspace_min + self.workspace_max))


@dataclass(frozen=True, eq=False)
class SafetyDecision:
    """A command that may be sent, and what was done to it."""

    command: Command
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()  # the one to report first; empty for PASS

    @property
    def reason(self) -> Reason:
        """The reason to report where only one fits."""
        return self.reasons[0] if self.reasons else Reason.NONE

    @classmethod
    def hold(cls, previous: Command, reason: Reason) -> 'SafetyDecision':
        """Decide for zero motion with the gripper of the previous command."""
        return cls(Command.hold(_kept_gripper(previous)), Verdict.HOLD, (reason,))


def apply_limits(command: Command, previous: Command, ee_position: np.ndarray | None,
                 limits: SafetyLimits) -> SafetyDecision:
    """
    Return a command that is finite and inside the limits, with verdict and reasons.

    A hold keeps the gripper of the previous command, also where that is outside the limits.

    :param command: what the policy asks for
    :param previous: what was sent last; `Command.hold` at the start
    :param ee_position: (3,) end effector position [m] in the base frame; needed with a workspace,
        None where it is not known
    """
    if not command.is_finite:
        return SafetyDecision.hold(previous, Reason.NOT_FINITE)
    low, high = np.full(3, -limits.max_translation), np.full(3, limits.max_translation)
    if limits.has_workspace:
        if ee_position is None or not np.isfinite(ee_position).all():
            return SafetyDecision.hold(previous, Reason.WORKSPACE)
        # Zero is always between the bounds: outside the box, only the way back is open.
        low = np.maximum(low, np.minimum(np.subtract(limits.workspace_min, ee_position), 0.0))
        high = np.minimum(high, np.maximum(np.subtract(limits.workspace_max, ee_position), 0.0))
    translation, translation_reasons = _limit_vector(
        command.translation, previous.translation, limits.max_translation,
        limits.max_translation_change, low, high)
    angle = limits.max_rotation
    rotation_vector, rotation_reasons = _limit_vector(
        command.rotation_vector, previous.rotation_vector, angle, limits.max_rotation_change,
        np.full(3, -angle), np.full(3, angle))
    gripper = min(max(command.gripper, limits.gripper_min), limits.gripper_max)
    reasons = translation_reasons | rotation_reasons
    if gripper != command.gripper:
        reasons.add(Reason.OUT_OF_RANGE)
    return SafetyDecision(Command(translation, rotation_vector, gripper),
                          Verdict.LIMITED if reasons else Verdict.PASS,
                          tuple(sorted(reasons, reverse=True)))


def _limit_vector(vector: np.ndarray, previous: np.ndarray, size: float, change: float,
                  low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, set[Reason]]:
    """
    Limit one (3,) vector: size, then walls, then change.

    The change is counted from the previous vector cut by the same size and walls. Then both ends
    of the way between them are inside, so the way is, too, and no limit breaks another: a slow
    change never carries the arm through a wall.

    :param low: (3,) lower bounds, at least -size, at most 0
    :param high: (3,) upper bounds, at least 0, at most size
    """
    reasons = set()
    limited = _scaled_to(vector, size)
    if limited is not vector:
        reasons.add(Reason.OUT_OF_RANGE)
    inside = np.clip(limited, low, high)
    if (inside != limited).any():
        reasons.add(Reason.WORKSPACE)
    if inside.any():
        start = np.clip(_scaled_to(np.nan_to_num(previous), size), low, high)
        step = inside - start
        slower = _scaled_to(step, change, slack=_ROUNDING)
        if slower is not step:
            inside = np.clip(start + slower, low, high)  # takes off rounding only
            reasons.add(Reason.RATE)
    return inside, reasons


def _scaled_to(vector: np.ndarray, size: float, slack: float = 0.0) -> np.ndarray:
    """Shorten a vector so that no component exceeds size; the same object if none does."""
    largest = float(np.abs(vector).max())
    return vector if largest <= size + slack else vector / largest * size


def _kept_gripper(previous: Command) -> float:
    """
    Return the previous gripper; 0, which moves nothing, if it is not a number.

    Not cut to limits that changed since, or that exclude the 0 from before the first command: that
    would move the gripper, and a hold moves nothing.
    """
    return previous.gripper if math.isfinite(previous.gripper) else 0.0
