# SPDX-License-Identifier: Apache-2.0
"""Settings of the control loop; the node declares them as its parameters."""

from dataclasses import dataclass, field

from worldvla_ros.config import bounded, check
from worldvla_ros.errors import ConfigError
from worldvla_ros.safety.command import ActionScale
from worldvla_ros.safety.limits import SafetyLimits

LOCKSTEP, REALTIME = 'lockstep', 'realtime'


@dataclass(frozen=True)
class ControlSettings:
    """When commands go out and when chunks are asked for."""

    mode: str = bounded(
        REALTIME, choices=(REALTIME, LOCKSTEP), read_only=True,
        doc='realtime: a command every period; lockstep: one command for every frame, for a '
            'simulator that waits for it')
    rate: float = bounded(
        20.0, unit='Hz', minimum=1.0, maximum=1000.0, read_only=True,
        doc='Rate of commands; also the spacing of the frames in the history')
    schedule: str = bounded(
        'sync', choices=('sync', 'async'), read_only=True,
        doc='sync: run a chunk, then infer and hold still meanwhile; async: infer while moving')
    replan_steps: int = bounded(
        0, minimum=0, maximum=1000, read_only=True,
        doc='Actions of a chunk after which the next is asked for; 0: with sync the whole chunk, '
            'with async half of it, so that the other half runs during the inference')
    prepare: bool = bounded(
        True, read_only=True,
        doc='Let the worker compute the older frames of the history while the robot still moves')
    max_instruction_length: int = bounded(
        500, unit='characters', minimum=1, maximum=5000, read_only=True,
        doc='A longer instruction is refused')
    heartbeat_estop: float = bounded(
        0.0, unit='s', minimum=0.0, maximum=60.0, read_only=True,
        doc='Lock the e-stop when its topic is silent for so long; 0: silence is no matter')

    def steps_per_chunk(self, horizon: int) -> int:
        """Return after how many of the `horizon` actions of a chunk the next is asked for."""
        whole_or_half = horizon if self.schedule == 'sync' else max(1, horizon // 2)
        return self.replan_steps or whole_or_half


@dataclass(frozen=True)
class ObservationSettings:
    """Which frames may reach the model."""

    max_age: float = bounded(
        0.5, unit='s', minimum=0.01, maximum=10.0, read_only=True,
        doc='No frame older than this reaches the model')
    max_chunk_age: float = bounded(
        2.0, unit='s', minimum=0.01, maximum=600.0, read_only=True,
        doc='realtime: a chunk that arrives longer than this after its newest frame is dropped, '
            'and the robot holds still')
    tolerance: float = bounded(
        0.02, unit='s', minimum=0.0, maximum=1.0, read_only=True,
        doc='How far a frame of the history may be from its place in time; below half a period')
    state_tolerance: float = bounded(
        0.05, unit='s', minimum=0.0, maximum=1.0, read_only=True,
        doc='For checkpoints that read the state of the arm: how far ee_pose and joint_states may '
            'be in time from the newest frame. Longer than the period of the slower of them, '
            'because a frame may come just before its state; in lockstep at most half a period, '
            'because there each frame waits for its own state')
    wrist_tolerance: float = bounded(
        0.05, unit='s', minimum=0.0, maximum=1.0, read_only=True,
        doc='For checkpoints that read the wrist camera: how far its picture may be in time from '
            'the frame that it belongs to. Longer than its period; in lockstep at most half a '
            'period of control')
    frozen_after: int = bounded(
        0, unit='frames', minimum=-1, maximum=10000, read_only=True,
        doc='Identical frames in succession, while moving, that mean a frozen camera; '
            '0: one second of control periods, and never with use_sim_time, since a simulator has '
            'no sensor noise; -1: never')


@dataclass(frozen=True)
class ControllerSettings:
    """All that the controller needs to know."""

    control: ControlSettings = field(default_factory=ControlSettings)
    obs: ObservationSettings = field(default_factory=ObservationSettings)
    scale: ActionScale = field(default_factory=ActionScale)
    limits: SafetyLimits = field(default_factory=SafetyLimits)

    def __post_init__(self) -> None:
        """Refuse values outside the ranges or that do not fit each other."""
        check(self)
        if 2 * round(self.obs.tolerance * 1e9) >= self.period_ns:
            raise ConfigError(
                f'obs.tolerance ({self.obs.tolerance:g} s) must be below half the control period, '
                f'{0.5 / self.control.rate:.4g} s at control.rate {self.control.rate:g} Hz, so '
                f'that no frame fits two places of the history; lower one of them')
        if self.lockstep and self.control.schedule != 'sync':
            raise ConfigError(
                'control.mode lockstep needs control.schedule sync: with async the commands would '
                'depend on how fast the machine is')

    @property
    def period_ns(self) -> int:
        """Control period [ns]."""
        return round(1e9 / self.control.rate)

    @property
    def state_tolerance_ns(self) -> int:
        """How far the state of the arm may be from its frame [ns]."""
        return self._tolerance_ns(self.obs.state_tolerance)

    @property
    def wrist_tolerance_ns(self) -> int:
        """How far the picture of the wrist camera may be from its frame [ns]."""
        return self._tolerance_ns(self.obs.wrist_tolerance)

    def _tolerance_ns(self, tolerance: float) -> int:
        tolerance_ns = round(tolerance * 1e9)
        # What fits two frames would make commands depend on what arrives first.
        return min(tolerance_ns, (self.period_ns - 1) // 2) if self.lockstep else tolerance_ns

    @property
    def lockstep(self) -> bool:
        """Whether frames, not a timer, ask for commands."""
        return self.control.mode == LOCKSTEP
