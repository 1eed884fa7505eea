# SPDX-License-Identifier: Apache-2.0
"""The control loop: decides, for one instant, which command is due and why.

    frames, state of the arm -> Sensing -> Planner -> ChunkSchedule -> apply_limits -> Outgoing

It has no clock, no thread and no ROS: every call says what time it is. One thread owns it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
import logging

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.control.inquiries import Inquiries
from worldvla_ros.control.instruction import Heard, InstructionTopic, checked_instruction
from worldvla_ros.control.pause import Pause
from worldvla_ros.control.planner import ChunkArrival, Planner
from worldvla_ros.control.sensing import Sensing
from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import InstructionError
from worldvla_ros.inference.backend import Backend, BackendInfo, Health
from worldvla_ros.policy.chunk_schedule import ChunkSchedule, ScheduledAction
from worldvla_ros.policy.frame_history import PushResult
from worldvla_ros.safety.command import Command
from worldvla_ros.safety.limits import (
    Reason,
    SafetyDecision,
    SafetyLimits,
    Verdict,
    apply_limits,
)
from worldvla_ros.safety.watchdog import EStop

_logger = logging.getLogger(__name__)

_ON_THEIR_WAY = (Reason.NO_STATE, Reason.NO_WRIST_FRAME, Reason.WORKSPACE)
"""What a message ends that comes beside the frame, in lockstep while time stands still."""

_KEEP_GRIPPER = 0.0  # before the first command: neither open nor close, see DeltaAction.msg


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A command that may be sent, and where each of its numbers comes from."""

    command: Command
    verdict: Verdict
    reason: Reason
    action: ScheduledAction | None  # None: it comes from no chunk


class PolicyController:
    """
    Composes sensing, planning, schedule and safety.

    :param info: of the started backend
    :param estop: looked at in every call; who locks it calls `idle` at once, so that a lock counts
        although it is reset before the next tick
    :param topic: what was heard of instructions until now
    :param pause: whether the robot is paused from before
    :param translation_gain: share of a commanded translation that the arm covers within its
        control period; it tells where the arm is between two poses
    :param on_chunk: called for each chunk that the schedule accepts
    """

    def __init__(self, settings: ControllerSettings, backend: Backend, info: BackendInfo,
                 estop: EStop, topic: InstructionTopic, pause: Pause, *,
                 translation_gain: float = 1.0,
                 on_chunk: Callable[[ChunkArrival], None] = lambda arrival: None) -> None:
        self.info = info
        self.backend = backend
        self.estop = estop
        self.schedule = ChunkSchedule(settings.control.schedule,
                                      settings.control.steps_per_chunk(info.horizon))
        self._settings = settings
        self.sensing = Sensing(settings, info, translation_gain)
        self._planner = Planner(settings, backend, self.schedule, self.sensing, on_chunk)
        self.latency = self._planner.latency
        self.inquiries = Inquiries(
            self._planner, backend, info, check_instruction=self.check_instruction,
            needs_backend=lambda: bool(self._instruction) and not (
                pause.on or settings.lockstep))
        self._topic = topic
        self._instruction = ''
        self._pause = pause
        self._conflict = False
        self._halt = Reason.NO_INSTRUCTION
        self._steps = 0
        self._previous = Command.hold(_KEEP_GRIPPER)
        self._obstructed = True  # something forbade motion when it was looked at last
        self._asked = False  # a frame came that no command has answered yet (lockstep)
        self._answered: tuple[int, Outgoing] | None = None  # frame answered last, and with what
        # Frames further apart are of two episodes, or of a camera that was away in between.
        self._longest_gap_ns = max(round(settings.obs.max_age * 1e9), 2 * settings.period_ns)

    # --- inputs --------------------------------------------------------------------------------

    def push_frame(self, frame: Frame) -> PushResult:
        """Take a frame; one that does not follow on the newest before makes the plan void."""
        before = self.sensing.frames.newest
        result = self.sensing.push_frame(frame, moving=not self._previous.is_zero_motion)
        if result is PushResult.ACCEPTED_AFTER_CLOCK_RESET:
            self._void('the stamps jumped back')
        elif before is not None and self.newest_ns - before.stamp_ns > self._longest_gap_ns:
            self._void('a gap between the frames')
        if result not in (PushResult.OUT_OF_ORDER, PushResult.OLD_CLOCK, PushResult.ZERO_FILLED):
            self._asked = True
        return result

    def push_wrist_frame(self, frame: Frame) -> PushResult:
        """Take a frame of the wrist camera, for policies that read it; then as `push_ee_pose`."""
        return self.sensing.push_wrist_frame(frame, moving=not self._previous.is_zero_motion)

    def push_ee_pose(self, stamp_ns: int, position: NDArray[np.float64],
                     rotation: Rotation) -> None:
        """
        Take the end effector's position (3,) [m] and rotation in the base frame.

        In lockstep call `answer` then: the state of the arm may come after its frame.
        """
        self.sensing.push_ee_pose(stamp_ns, position, rotation)

    def push_fingers(self, stamp_ns: int, fingers: NDArray[np.float64]) -> None:
        """Take the positions of the gripper's joints (n,) [m]; then as for `push_ee_pose`."""
        self.sensing.push_fingers(stamp_ns, fingers)

    def hear(self, text: str, steady_ns: int) -> Heard:
        """
        Take note of a text on the instruction topic; whoever publishes it may repeat it.

        Only for Heard.NEW call `set_instruction` then, for a text that it refuses, too.
        """
        try:
            text = self.check_instruction(text)
        except InstructionError:
            return Heard.NEW
        return self._topic.hear(text, self._instruction, self.estop.locked, steady_ns)

    def set_instruction(self, text: str) -> None:
        """
        Follow another instruction; an empty one stops.

        Raises InstructionError, and holds, if it cannot be used, or while the e-stop is locked.
        Any call starts a new epoch, the same text, too: whoever sends it again wants the task
        done again.
        """
        self._instruction = ''
        self._planner.forget_failures()
        self._void('new instruction')
        self._instruction = self.check_command(text)

    def check_command(self, text: str) -> str:
        """Return the instruction if the robot may follow it now. Raises InstructionError."""
        text = self.check_instruction(text)
        if text and self.estop.locked:
            raise InstructionError('the e-stop is locked; release it, call estop_reset, and give '
                                   'the instruction again')
        return text

    def check_instruction(self, text: str) -> str:
        """Return the instruction as it would be followed. Raises InstructionError."""
        return checked_instruction(text, self._settings.control.max_instruction_length)

    def set_paused(self, paused: bool) -> None:
        """Pause or go on; if that changes anything, what was planned before is void."""
        if paused != self._pause.on:
            self._void('paused' if paused else 'resumed')
        self._pause.on = paused

    def set_conflict(self, conflict: bool) -> None:
        """Hold while somebody else commands the same robot, and leave the gripper to them."""
        if conflict and not self._conflict:
            self._previous = Command.hold(_KEEP_GRIPPER)
        self._conflict = conflict

    def set_limits(self, limits: SafetyLimits) -> None:
        """Let other limits hold from the next command on."""
        self._settings = replace(self._settings, limits=limits)

    def reset_history(self) -> None:
        """Forget frames, states and plans, not the gripper: a new episode begins."""
        self.sensing.clear()
        self._void('reset')
        self._previous = Command.hold(self._previous.gripper)
        self._asked = False

    def restart(self) -> None:
        """Forget the gripper, too: since the last command somebody else may have moved it."""
        self.reset_history()
        self._previous = Command.hold(_KEEP_GRIPPER)

    # --- the loop ------------------------------------------------------------------------------

    def poll(self, now_ns: int, steady_ns: int) -> None:
        """Collect what the backend answered and give it the next request."""
        if not self._settings.lockstep and self.sensing.watch_clock(now_ns):
            self._void('the clock was set back')  # in lockstep the frames are the clock
        self._planner.collect(now_ns, steady_ns)
        loop_waits = not self._obstructed and (self._asked or not self._settings.lockstep)
        self._planner.serve_request(loop_waits, now_ns, steady_ns)

    def tick(self, now_ns: int, steady_ns: int) -> Outgoing:
        """Return the command that is due now; there always is one."""
        self.poll(now_ns, steady_ns)
        obstacle = self._face_obstacle(now_ns, steady_ns)
        if obstacle is not Reason.NONE:
            return self._hold(obstacle)
        self._planner.replan(self._instruction, now_ns, steady_ns)
        action = self.schedule.next()
        return (self._hold(self._why_nothing_is_due()) if action is None
                else self._send(action, now_ns))

    def answer(self, now_ns: int, steady_ns: int) -> Outgoing | None:
        """
        Return the command for the newest frame (lockstep), once, or None while there is none.

        A frame that comes again asks again, because one of the two messages was lost, and gets
        the same command unless that is void by now.
        """
        self.poll(now_ns, steady_ns)
        newest = self.sensing.frames.newest
        if newest is None or not self._asked:
            return None
        now_ns = max(now_ns, newest.stamp_ns)
        obstacle = self._face_obstacle(now_ns, steady_ns)
        if obstacle is not Reason.NONE:
            self._halt = obstacle
            return None
        if self._answered is None or self._answered[0] != newest.stamp_ns:
            outgoing = self.tick(now_ns, steady_ns)
            if outgoing.action is None:
                return None
            self._answered = newest.stamp_ns, outgoing
        self._asked = False
        return self._answered[1]

    def idle(self, now_ns: int, steady_ns: int) -> Outgoing:
        """Return zero motion and why, without consuming an action: a sign of life in lockstep."""
        self.poll(now_ns, steady_ns)
        obstacle = self._face_obstacle(max(now_ns, self.newest_ns), steady_ns)
        return self._hold(obstacle or self._why_nothing_is_due())

    def hold(self, reason: Reason) -> Outgoing:
        """Return zero motion that keeps the gripper, for a halt outside the loop."""
        self._void(reason.name.lower())
        return self._hold(reason)

    def stop(self, reason: Reason, why: str) -> Outgoing:
        """
        Drop the instruction and return the last command before a silence: zero motion.

        :param why: answer to whoever waits for a chunk
        """
        self._planner.requests.fail(why)
        self._instruction = ''
        return self.hold(reason)

    # --- what is asked from outside ------------------------------------------------------------

    @property
    def settings(self) -> ControllerSettings:
        """Those it was made with, and the limits that hold now."""
        return self._settings

    @property
    def instruction(self) -> str:
        """What is followed; empty: nothing."""
        return self._instruction

    @property
    def halt(self) -> Reason:
        """Why the robot stands still; NONE while it runs."""
        return self._halt

    @property
    def steps(self) -> int:
        """Commands from chunks since it was made."""
        return self._steps

    @property
    def inference_error(self) -> str:
        """Why there is no chunk now although there should be; empty if all is well."""
        return self._planner.error

    @property
    def failures(self) -> tuple[int, str]:
        """How many inferences failed in succession for this instruction, and the last error."""
        return self._planner.failures, self._planner.last_failure

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest frame [ns]; 0 without one."""
        return self.sensing.newest_ns

    def camera_fault(self, now_ns: int) -> Reason:
        """Say for what the robot had to hold if only the third-person camera counted."""
        return self.sensing.camera_fault(self._time_of_frames(now_ns))

    def wrist_fault(self, now_ns: int) -> Reason:
        """Say for what the robot had to hold if only the wrist camera counted, as far as known."""
        return self.sensing.wrist_fault(self._time_of_frames(now_ns))

    # --- inside --------------------------------------------------------------------------------

    def _time_of_frames(self, now_ns: int) -> int:
        """Return now; in lockstep a frame may come before its time."""
        return max(now_ns, self.newest_ns) if self._settings.lockstep else now_ns

    def _face_obstacle(self, now_ns: int, steady_ns: int) -> Reason:
        """Drop what may not go on under what forbids motion now, and say what that is."""
        obstacle = self._find_obstacle(now_ns, steady_ns)
        if self._settings.lockstep and obstacle in _ON_THEIR_WAY:
            return obstacle  # the plan stays good
        if obstacle is Reason.ESTOP and self._instruction:
            self._topic.estop_dropped(self._instruction)
            self._instruction = ''  # its reset alone must not start motion (ISO 13850)
        if obstacle is not Reason.NONE and not self._obstructed:
            self._void(f'halted: {obstacle.name}')
        self._obstructed = obstacle is not Reason.NONE
        return obstacle

    def _find_obstacle(self, now_ns: int, steady_ns: int) -> Reason:
        """Look for what forbids motion now, the gravest first."""
        if self.estop.poll(steady_ns):
            return Reason.ESTOP
        if self._pause.on:
            return Reason.PAUSED
        if self._conflict:
            return Reason.CONFLICT
        if self.backend.health is not Health.READY:
            return Reason.WORKER_DOWN
        if not self._instruction:
            return Reason.NO_INSTRUCTION
        fault = self.sensing.fault(now_ns)
        if fault is Reason.NONE and self._settings.limits.has_workspace and (
                self._position(now_ns) is None):
            return Reason.WORKSPACE
        return fault

    @property
    def _pose_tolerance_ns(self) -> int:
        return round(self._settings.limits.pose_timeout * 1e9)

    def _position(self, now_ns: int) -> NDArray[np.float64] | None:
        """Return where the end effector is (3,) [m], None where no pose tells."""
        return self.sensing.position.at(now_ns, self._pose_tolerance_ns)

    def _send(self, action: ScheduledAction, now_ns: int) -> Outgoing:
        """Pass an action through the safety stage."""
        decision = apply_limits(
            Command.from_controller_input(action.action, self._settings.scale), self._previous,
            self._position(now_ns), self._settings.limits)
        self.sensing.position.sent(now_ns, decision.command.translation, self._pose_tolerance_ns)
        self._halt = decision.reason if decision.verdict is Verdict.HOLD else Reason.NONE
        self._steps += 1
        self._previous = decision.command
        self._hint_next_frame(now_ns)
        return Outgoing(decision.command, decision.verdict, decision.reason, action)

    def _hint_next_frame(self, now_ns: int) -> None:
        """Before the last action of a chunk runs, all frames but the next newest are known."""
        if (self._settings.control.prepare and not self.schedule.queue_depth
                and (older := self.sensing.older_of_next(now_ns))):
            self.backend.prepare(older, self._instruction)

    def _why_nothing_is_due(self) -> Reason:
        if self.inference_error:
            return Reason.INFERENCE_FAILED
        return Reason.UNDERRUN if self.schedule.starved else Reason.WAITING_FOR_CHUNK

    def _hold(self, reason: Reason) -> Outgoing:
        # Waiting for a chunk is part of running, so it does not count as a halt.
        self._halt = Reason.NONE if reason is Reason.WAITING_FOR_CHUNK else reason
        decision = SafetyDecision.hold(self._previous, reason)
        if not self._settings.lockstep:  # there, time stands still while the robot waits
            self._previous = decision.command
        return Outgoing(decision.command, decision.verdict, decision.reason, None)

    def _void(self, why: str) -> None:
        """Start a new epoch: chunks in the queue and in flight are void."""
        _logger.debug('all chunks are void: %s', why)
        self._planner.void()
        self._answered = None
