# SPDX-License-Identifier: Apache-2.0
"""The action ~/run_task: follow one instruction until a limit, a cancel or a fault."""

from collections.abc import Callable
from dataclasses import dataclass, field
import math
import time
from typing import TYPE_CHECKING

from rclpy.action.server import ActionServer, CancelResponse, GoalResponse, ServerGoalHandle
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future

from worldvla_ros.action import RunTask
from worldvla_ros.control.controller import PolicyController
from worldvla_ros.errors import InstructionError
from worldvla_ros.inference.backend import Health
from worldvla_ros.safety.limits import Reason

if TYPE_CHECKING:
    from worldvla_ros.nodes.policy_loop import PolicyLoop

_Result = RunTask.Result
_ACTION = '~/run_task'
_MAX_FAILURES = 3  # inferences that fail in succession: the next would, too
_GONE_AFTER = 3.0  # [s] without a client; the graph learns of a new one within less


@dataclass(eq=False)
class _Run:
    """A goal that is being followed."""

    goal: ServerGoalHandle
    controller: PolicyController
    start_ns: int
    start_steps: int
    ended: Future = field(default_factory=Future)  # of RunTask.Result

    def __post_init__(self) -> None:
        self._latest_ns = self.start_ns  # time of the last look
        self.seen = time.monotonic()  # [s] when there was a client last

    @property
    def has_limit(self) -> bool:
        """Whether it ends although nobody cancels it."""
        return bool(self.goal.request.max_steps or self.goal.request.max_duration)

    @property
    def steps(self) -> int:
        """Commands from chunks since the goal began."""
        return self.controller.steps - self.start_steps

    def elapsed(self, now_ns: int) -> float:
        """Time since the goal began [s]; where the clock jumps back, it counts on from there."""
        if now_ns < self._latest_ns:
            self.start_ns -= self._latest_ns - now_ns
        self._latest_ns = now_ns
        return (now_ns - self.start_ns) * 1e-9


class TaskServer:
    """
    Serves one goal at a time; a new goal, or an instruction by topic, takes over from the old.

    :param executor: that spins the node
    :param loop: returns the topics of the policy, or None while the node is not active
    """

    def __init__(self, node: LifecycleNode, executor: Executor,
                 loop: 'Callable[[], PolicyLoop | None]') -> None:
        self._node = node
        self._executor = executor
        self._loop = loop
        self._run: _Run | None = None
        self._results = f'{node.resolve_topic_name(_ACTION)}/_action/get_result'
        self._server = ActionServer(
            node, RunTask, _ACTION, self._execute, goal_callback=self._on_goal,
            cancel_callback=self._on_cancel)

    def end(self, termination: int, message: str) -> None:
        """End the running goal, if there is one; unless another took over, the robot holds."""
        run, self._run = self._run, None
        if run is None:
            return
        result = _Result(termination=termination, message=message, steps=run.steps,
                         duration=run.elapsed(self._node.get_clock().now().nanoseconds))
        loop = self._loop()
        if loop is not None and termination != _Result.TERMINATION_PREEMPTED:
            loop.follow('')
        self._node.get_logger().info(f'task ended after {result.steps} steps: {message}')
        run.ended.set_result(result)

    def check(self, now_ns: int) -> None:
        """End the running goal if a limit is reached or a fault came up."""
        run = self._run
        if run is None:
            return
        controller, request = run.controller, run.goal.request
        failures, error = controller.failures
        if controller.backend.health not in (Health.READY, Health.STOPPED):
            self.end(_Result.TERMINATION_WORKER_DOWN, controller.backend.fault)
        elif controller.halt is Reason.ESTOP:
            self.end(_Result.TERMINATION_ESTOP, f'e-stop: {controller.estop.cause}')
        elif failures >= _MAX_FAILURES:
            self.end(_Result.TERMINATION_INFERENCE_FAILED,
                     f'inference failed {failures} times in succession: {error}')
        elif request.max_steps and run.steps >= request.max_steps:
            self.end(_Result.TERMINATION_MAX_STEPS, f'{request.max_steps} steps are done')
        elif request.max_duration and run.elapsed(now_ns) >= request.max_duration:
            self.end(_Result.TERMINATION_MAX_DURATION, f'{request.max_duration:g} s are over')
        elif not run.has_limit and self._is_alone(run):
            self.end(_Result.TERMINATION_CLIENT_GONE,
                     'its client has gone, and nobody else could end it')

    def publish_feedback(self, now_ns: int) -> None:
        """Report the progress of the running goal, if there is one."""
        run = self._run
        if run is not None and run.goal.is_active:
            run.goal.publish_feedback(RunTask.Feedback(
                steps=run.steps, elapsed=run.elapsed(now_ns),
                queue_depth=run.controller.schedule.queue_depth,
                halt_reason=int(run.controller.halt)))

    def _is_alone(self, run: _Run) -> bool:
        """Tell whether no client of the action has been there for a while."""
        now = time.monotonic()
        if self._node.count_clients(self._results):
            run.seen = now
        return now - run.seen > _GONE_AFTER

    def _on_goal(self, request: RunTask.Goal) -> GoalResponse:
        loop = self._loop()
        complaint = ''
        if loop is None:
            complaint = 'the node is not active'
        elif not (math.isfinite(request.max_duration) and request.max_duration >= 0.0):
            complaint = f'max_duration must be 0 or more seconds, got {request.max_duration}'
        else:
            try:
                if not loop.controller.check_command(request.instruction):
                    complaint = 'the instruction is empty'
            except InstructionError as error:
                complaint = str(error)
        if complaint:
            self._node.get_logger().warning(f'run_task refused: {complaint}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        # The handle turns to "canceling" after this returns; the goal must end after that.
        def cancel() -> None:
            if self._run is not None and self._run.goal is goal:
                self.end(_Result.TERMINATION_CANCELED, 'canceled by the client')
        self._executor.create_task(cancel)
        return CancelResponse.ACCEPT

    async def _execute(self, goal: ServerGoalHandle) -> RunTask.Result:
        loop = self._loop()
        if goal.is_cancel_requested:
            goal.canceled()
            return _Result(termination=_Result.TERMINATION_CANCELED, message='canceled at once')
        if loop is None:
            goal.abort()
            return _Result(termination=_Result.TERMINATION_DEACTIVATED,
                           message='the node is not active')
        self.end(_Result.TERMINATION_PREEMPTED, 'another goal took over')
        run = self._run = _Run(goal, loop.controller, loop.now_ns(), loop.controller.steps)
        try:
            loop.follow(goal.request.instruction)
        except InstructionError as error:  # the e-stop was locked since the goal was accepted
            self._run = None
            goal.abort()
            return _Result(termination=_Result.TERMINATION_ESTOP, message=str(error))
        result: RunTask.Result = await run.ended
        self._finish(goal, result.termination)
        return result

    @staticmethod
    def _finish(goal: ServerGoalHandle, termination: int) -> None:
        if goal.is_cancel_requested:
            goal.canceled()
        elif termination in (_Result.TERMINATION_MAX_STEPS, _Result.TERMINATION_MAX_DURATION):
            goal.succeed()
        else:
            goal.abort()
