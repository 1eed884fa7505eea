# SPDX-License-Identifier: Apache-2.0
"""The control loop: decides, for one instant, which command is due and why.

    frames -> FrameHistory -> Backend -> ChunkSchedule -> apply_limits -> Outgoing
    state of the arm -> ArmHistory, for policies that read it

It has no clock, no thread and no ROS: every call says what time it is. One thread owns it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
import sys

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.control.chunk_requests import ChunkRequests
from worldvla_ros.control.instruction import checked_instruction
from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.datatypes import ActionChunk, Frame, Observation
from worldvla_ros.errors import FrameError, InstructionError, WorldVLAError
from worldvla_ros.inference.backend import Backend, BackendInfo, Health, Result
from worldvla_ros.policy.chunk_schedule import (
    ArrivalOutcome,
    ChunkSchedule,
    ScheduledAction,
    Ticket,
)
from worldvla_ros.policy.frame_history import FrameHistory, PushResult, Stale, StaleReason
from worldvla_ros.policy.state_history import ArmHistory, StateHistory
from worldvla_ros.safety.command import Command
from worldvla_ros.safety.latency import LatencyWindow
from worldvla_ros.safety.limits import Reason, SafetyDecision, Verdict, apply_limits
from worldvla_ros.safety.watchdog import EStop

_LATENCY_WINDOW = 500  # chunks behind the percentiles
_RETRY_NS = 1_000_000_000  # pause after a failed inference: the same input fails again
_KEEP_GRIPPER = 0.0  # before the first command: neither open nor close, see DeltaAction.msg
_STALE_REASONS = {StaleReason.NO_FRAME: Reason.NO_OBSERVATION,
                  StaleReason.TOO_OLD: Reason.STALE_OBSERVATION,
                  StaleReason.CLOCK: Reason.CLOCK,
                  StaleReason.NO_STATE: Reason.NO_STATE}


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A command that may be sent, and all that a receiver wants to know about it (rule b)."""

    command: Command
    verdict: Verdict
    reason: Reason
    action: ScheduledAction | None  # None: it comes from no chunk


@dataclass(frozen=True, eq=False)
class ChunkArrival:
    """A chunk that the schedule accepted, for whoever wants to publish it."""

    chunk: ActionChunk
    outcome: ArrivalOutcome
    latency: float  # [s] submitted -> arrived


@dataclass(eq=False)
class _Request:
    """A request in flight."""

    ticket: Ticket | None  # None: not for the schedule, but for one of the chunk requests
    submitted_ns: int


class PolicyController:
    """
    Composes history, schedule, backend and safety.

    :param info: of the started backend
    :param estop: looked at in every call; who locks it calls `idle` at once, so that a lock counts
        although it is reset before the next tick
    :param on_chunk: called for each chunk that the schedule accepts
    """

    def __init__(self, settings: ControllerSettings, backend: Backend, info: BackendInfo,
                 estop: EStop, *,
                 on_chunk: Callable[[ChunkArrival], None] = lambda arrival: None) -> None:
        control, obs = settings.control, settings.obs
        self.settings = settings
        self.info = info
        self.backend = backend
        self._on_chunk = on_chunk
        self.history = FrameHistory(
            info.history_length, period_ns=settings.period_ns,
            tolerance_ns=round(obs.tolerance * 1e9), max_age_ns=round(obs.max_age * 1e9),
            frozen_after=sys.maxsize if obs.frozen_after < 0 else obs.frozen_after or None)
        # None: the policy does not read the state of the arm. Whoever pushes into it in lockstep
        # calls `answer` then: the state may come after its frame.
        self.arm = ArmHistory(settings.state_tolerance_ns) if info.reads_state else None
        self.schedule = ChunkSchedule(control.schedule, control.steps_per_chunk(info.horizon))
        self.estop = estop
        self.latency = LatencyWindow(_LATENCY_WINDOW, warm_up=0)  # the backend warmed up itself
        self.chunk_requests = ChunkRequests()
        self.instruction = ''
        self.paused = False
        self.conflict = False
        self.halt = Reason.NO_INSTRUCTION
        self.inference_error = ''
        self.steps = 0  # commands from chunks since the controller was made
        self._previous = Command.hold(_KEEP_GRIPPER)
        self._ee_positions: StateHistory[NDArray[np.float64]] = StateHistory(length=1)
        self._requests: dict[int, _Request] = {}
        self._number = 0
        self._retry_ns = 0  # steady time before which no inference is tried again
        self._obstructed = True  # something forbade motion when it was looked at last
        self._asked = False  # a frame came that no command has answered yet (lockstep)
        self._answered: tuple[int, Outgoing] | None = None  # frame answered last, and with what

    # --- inputs --------------------------------------------------------------------------------

    def push_frame(self, frame: Frame) -> PushResult:
        """Take a frame."""
        result = self.history.push(frame, moving=not self._previous.is_zero_motion)
        if result is PushResult.ACCEPTED_AFTER_CLOCK_RESET:
            self._void('the stamps jumped back')
        if result not in (PushResult.OUT_OF_ORDER, PushResult.ZERO_FILLED):
            self._asked = True
        return result

    def set_instruction(self, text: str) -> None:
        """
        Follow another instruction; an empty one stops.

        Raises InstructionError, and holds, if it cannot be used, or while the e-stop is locked.
        Any call starts a new epoch, the same text, too: whoever sends it again wants the task
        done again.
        """
        self.instruction = ''
        self._void('new instruction')
        self.instruction = self.check_command(text)

    def check_command(self, text: str) -> str:
        """Return the instruction if the robot may follow it now. Raises InstructionError."""
        text = self.check_instruction(text)
        if text and self.estop.locked:
            raise InstructionError('the e-stop is locked; release it, call estop_reset, and give '
                                   'the instruction again')
        return text

    def check_instruction(self, text: str) -> str:
        """Return the instruction as it would be followed. Raises InstructionError."""
        return checked_instruction(text, self.settings.control.max_instruction_length)

    def set_paused(self, paused: bool) -> None:
        """Pause or go on; what was planned before is void."""
        self.paused = paused
        self._void('paused' if paused else 'resumed')

    def push_ee_pose(self, stamp_ns: int, position: NDArray[np.float64],
                     rotation: Rotation) -> None:
        """Take the end effector's position (3,) [m] and rotation in the base frame."""
        self._ee_positions.push(stamp_ns, position)
        if self.arm is not None:
            self.arm.push_pose(stamp_ns, position, rotation)

    def reset_history(self) -> None:
        """Forget frames, states and plans, not the gripper: a new episode begins."""
        self.history.clear()
        self._ee_positions.clear()
        if self.arm is not None:
            self.arm.clear()
        self._void('reset')
        self._previous = Command.hold(self._previous.gripper)
        self._asked = False

    def request_chunk(self, instruction: str, callback: Callable[[Result], None]) -> None:
        """
        Ask for one chunk beside the schedule; the callback gets it, nothing is published.

        Raises InstructionError.
        """
        instruction = self.check_instruction(instruction)
        if not instruction:
            raise InstructionError('there is no instruction: give one, or publish one')
        self.chunk_requests.add(instruction, callback)

    # --- the loop ------------------------------------------------------------------------------

    def poll(self, now_ns: int, steady_ns: int) -> None:
        """Collect what the backend answered and give it the next request."""
        for result in self.backend.poll():
            self._take(result, now_ns, steady_ns)
        self._serve_request(now_ns, steady_ns)

    def tick(self, now_ns: int, steady_ns: int) -> Outgoing:
        """Return the command that is due now; there always is one."""
        self.poll(now_ns, steady_ns)
        obstacle = self._obstacle(now_ns, steady_ns)
        if obstacle is not Reason.NONE:
            return self._hold(obstacle)
        self._replan(now_ns, steady_ns)
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
        newest = self.history.newest
        if newest is None or not self._asked:
            return None
        now_ns = max(now_ns, newest.stamp_ns)
        obstacle = self._obstacle(now_ns, steady_ns)
        if obstacle is not Reason.NONE:
            self.halt = obstacle
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
        obstacle = self._obstacle(max(now_ns, self.newest_ns), steady_ns)
        return self._hold(obstacle or self._why_nothing_is_due())

    # --- what is asked from outside ------------------------------------------------------------

    def observation_age(self, now_ns: int) -> float:
        """Age of the newest frame [s]; -1 without one."""
        age_ns = self.history.age_ns(now_ns)
        return -1.0 if age_ns is None else age_ns * 1e-9

    def hold(self, reason: Reason) -> Outgoing:
        """Return zero motion that keeps the gripper, for a stop outside the loop."""
        self._void(reason.name.lower())
        return self._hold(reason)

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest frame [ns]; 0 without one."""
        return self.history.newest.stamp_ns if self.history.newest else 0

    # --- inside --------------------------------------------------------------------------------

    def _obstacle(self, now_ns: int, steady_ns: int) -> Reason:
        """Say what forbids motion now; what was planned before it appeared is void."""
        obstacle = self._find_obstacle(now_ns, steady_ns)
        if obstacle is Reason.NO_STATE and self.settings.lockstep:
            return obstacle  # it is on its way, and time stands still: the plan stays good
        if obstacle is not Reason.NONE and not self._obstructed:
            self._void(f'halted: {obstacle.name}')
        self._obstructed = obstacle is not Reason.NONE
        return obstacle

    def _find_obstacle(self, now_ns: int, steady_ns: int) -> Reason:
        """Look for what forbids motion now, the gravest first."""
        if self.estop.poll(steady_ns):
            self.instruction = ''  # its reset alone must not start motion (ISO 13850)
            return Reason.ESTOP
        if self.paused:
            return Reason.PAUSED
        if self.conflict:
            return Reason.CONFLICT
        if self.backend.health is not Health.READY:
            return Reason.WORKER_DOWN
        if not self.instruction:
            return Reason.NO_INSTRUCTION
        observation = self._observe(now_ns, self.instruction)
        if isinstance(observation, Stale):
            return _STALE_REASONS[observation.reason]
        return Reason.FROZEN_CAMERA if self.history.frozen else Reason.NONE

    def _observe(self, now_ns: int, instruction: str) -> Observation | Stale:
        """Return what the policy may see now, with the state of the arm if it reads it."""
        observation = self.history.observation(now_ns, instruction)
        if self.arm is None or isinstance(observation, Stale):
            return observation
        state = self.arm.state(observation.stamp_ns)
        if state is None:
            return Stale(StaleReason.NO_STATE, now_ns - observation.stamp_ns)
        return replace(observation, state=state)

    def _replan(self, now_ns: int, steady_ns: int) -> None:
        """Ask for a chunk if one is wanted and the backend is free."""
        if self.backend.busy or not self._wants_chunk(steady_ns):
            return
        self.chunk_requests.loop_had_its_turn()
        ticket = self.schedule.submitted(self.schedule.epoch)
        self._submit(self.instruction, _Request(ticket, steady_ns), now_ns)

    def _submit(self, instruction: str, request: _Request, now_ns: int) -> None:
        observation = self._observe(now_ns, instruction)
        self._number += 1
        self._requests[self._number] = request
        try:
            if isinstance(observation, Stale):
                raise FrameError(observation.reason.value)
            self.backend.submit(self._number, observation)
        except WorldVLAError as error:
            self._take(Result(self._number, None, str(error)), now_ns, request.submitted_ns)

    def _wants_chunk(self, steady_ns: int) -> bool:
        return self.schedule.wants_chunk() and steady_ns >= self._retry_ns

    def _serve_request(self, now_ns: int, steady_ns: int) -> None:
        if self.backend.busy:
            return
        loop_waits = (not self._obstructed and self._wants_chunk(steady_ns)
                      and (self._asked or not self.settings.lockstep))
        instruction = self.chunk_requests.take(loop_waits)
        if instruction is not None:
            self._submit(instruction, _Request(None, steady_ns), now_ns)

    def _take(self, result: Result, now_ns: int, steady_ns: int) -> None:
        """Hand a result to whoever asked for it."""
        request = self._requests.pop(result.request, None)
        if request is None:
            return
        if request.ticket is None:
            self.chunk_requests.answer(result)
            return
        if result.chunk is None:
            if request.ticket.epoch != self.schedule.epoch:
                return  # nobody waits for it any more
            self.schedule.failed(request.ticket)
            self.inference_error = result.error
            self._retry_ns = steady_ns + _RETRY_NS
            return
        self.inference_error = ''
        latency = (steady_ns - request.submitted_ns) * 1e-9
        self.latency.add(latency)
        age_ns = now_ns - result.chunk.frame_stamps_ns[-1]
        too_old = (not self.settings.lockstep  # there, time stands still while it waits
                   and age_ns > round(self.settings.obs.max_chunk_age * 1e9))
        outcome = self.schedule.arrived(request.ticket, result.chunk, too_old=too_old)
        if outcome.accepted:
            self._on_chunk(ChunkArrival(result.chunk, outcome, latency))

    def _send(self, action: ScheduledAction, now_ns: int) -> Outgoing:
        """Pass an action through the safety stage."""
        limits = self.settings.limits
        decision = apply_limits(
            Command.from_controller_input(action.action, self.settings.scale), self._previous,
            self._ee_positions.nearest(now_ns, round(limits.pose_timeout * 1e9)), limits)
        self.halt = decision.reason if decision.verdict is Verdict.HOLD else Reason.NONE
        self.steps += 1
        self._previous = decision.command
        self._hint_next_frame()
        return Outgoing(decision.command, decision.verdict, decision.reason, action)

    def _hint_next_frame(self) -> None:
        """Before the last action of a chunk runs, its frame is known to be the next but newest."""
        newest = self.history.newest
        if self.settings.control.prepare and newest is not None and not self.schedule.queue_depth:
            self.backend.prepare(newest, self.instruction)

    def _why_nothing_is_due(self) -> Reason:
        if self.inference_error:
            return Reason.WORKER_DOWN
        return Reason.UNDERRUN if self.schedule.starved else Reason.WAITING_FOR_CHUNK

    def _hold(self, reason: Reason) -> Outgoing:
        # Waiting for a chunk is part of running, so it does not count as a halt.
        self.halt = Reason.NONE if reason is Reason.WAITING_FOR_CHUNK else reason
        decision = SafetyDecision.hold(self._previous, reason)
        if not self.settings.lockstep:  # there, time stands still while the robot waits
            self._previous = decision.command
        return Outgoing(decision.command, decision.verdict, decision.reason, None)

    def _void(self, why: str) -> None:
        """Start a new epoch: chunks in the queue and in flight are void (rule d)."""
        self.schedule.new_epoch(why)
        self.inference_error = ''
        self._retry_ns = 0
        self._answered = None
