# SPDX-License-Identifier: Apache-2.0
"""The action ~/run_task: follow one instruction until a limit, a cancel or a fault."""

from collections.abc import Callable

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future

from worldvla_ros.action import RunTask
from worldvla_ros.control.controller import PolicyController
from worldvla_ros.errors import InstructionError
from worldvla_ros.inference.backend import Health
from worldvla_ros.safety.limits import Reason

_Result = RunTask.Result


class TaskServer:
    """
    Serves one goal at a time; a new goal, or an instruction by topic, takes over from the old.

    :param controller: returns the controller, or None while the node is not active
    :param follow: makes the controller follow an instruction and tells everybody
    """

    def __init__(self, node: LifecycleNode, controller: Callable[[], PolicyController | None],
                 follow: Callable[[str], None]) -> None:
        self._node = node
        self._controller = controller
        self._follow = follow
        self._goal: ServerGoalHandle | None = None
        self._ended: Future = Future()
        self._start_ns = 0
        self._start_steps = 0
        self._server = ActionServer(
            node, RunTask, '~/run_task', self._execute, goal_callback=self._on_goal,
            cancel_callback=self._on_cancel)

    def end(self, termination: int, message: str) -> None:
        """End the running goal, if there is one."""
        if self._goal is not None and not self._ended.done():
            self._ended.set_result((termination, message))

    def check(self, now_ns: int) -> None:
        """End the running goal if a limit is reached or a fault came up."""
        controller = self._controller()
        if self._goal is None or controller is None:
            return
        request = self._goal.request
        if controller.backend.health not in (Health.READY, Health.STOPPED):
            self.end(_Result.TERMINATION_WORKER_DOWN, controller.backend.fault)
        elif controller.halt is Reason.ESTOP:
            self.end(_Result.TERMINATION_ESTOP, f'e-stop: {controller.estop.cause}')
        elif request.max_steps and self._steps() >= request.max_steps:
            self.end(_Result.TERMINATION_MAX_STEPS, f'{request.max_steps} steps are done')
        elif request.max_duration and self._elapsed(now_ns) >= request.max_duration:
            self.end(_Result.TERMINATION_MAX_DURATION, f'{request.max_duration:g} s are over')

    def publish_feedback(self, now_ns: int) -> None:
        """Report the progress of the running goal, if there is one."""
        controller = self._controller()
        if self._goal is not None and controller is not None and self._goal.is_active:
            self._goal.publish_feedback(RunTask.Feedback(
                steps=self._steps(), elapsed=self._elapsed(now_ns),
                queue_depth=controller.schedule.queue_depth, halt_reason=int(controller.halt)))

    def destroy(self) -> None:
        """End the goal and take the server away."""
        self.end(_Result.TERMINATION_DEACTIVATED, 'the node was deactivated')
        self._server.destroy()

    def _on_goal(self, request: RunTask.Goal) -> GoalResponse:
        if self._controller() is None:
            self._node.get_logger().warning('run_task refused: the node is not active')
            return GoalResponse.REJECT
        if not request.instruction.strip():
            self._node.get_logger().warning('run_task refused: the instruction is empty')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_cancel(self, _: ServerGoalHandle) -> CancelResponse:
        # The handle turns to "canceling" after this returns; the goal must end after that.
        self._node.executor.create_task(
            lambda: self.end(_Result.TERMINATION_CANCELED, 'canceled by the client'))
        return CancelResponse.ACCEPT

    async def _execute(self, goal: ServerGoalHandle) -> RunTask.Result:
        self.end(_Result.TERMINATION_PREEMPTED, 'another goal took over')
        controller = self._controller()
        if controller is None:
            goal.abort()
            return _Result(termination=_Result.TERMINATION_DEACTIVATED,
                           message='the node is not active')
        self._goal, self._ended = goal, Future()
        self._start_ns = self._node.get_clock().now().nanoseconds
        self._start_steps = controller.steps
        ended = self._ended
        try:
            self._follow(goal.request.instruction)
        except InstructionError as error:
            self.end(_Result.TERMINATION_PREEMPTED, str(error))
        termination, message = await ended
        now_ns = self._node.get_clock().now().nanoseconds
        result = _Result(termination=termination, message=message, duration=self._elapsed(now_ns),
                         steps=controller.steps - self._start_steps)
        if self._goal is goal:
            self._goal = None
            if termination != _Result.TERMINATION_PREEMPTED and self._controller() is not None:
                self._follow('')
        self._finish(goal, termination)
        self._node.get_logger().info(f'task ended after {result.steps} steps: {message}')
        return result

    @staticmethod
    def _finish(goal: ServerGoalHandle, termination: int) -> None:
        if goal.is_cancel_requested:
            goal.canceled()
        elif termination in (_Result.TERMINATION_MAX_STEPS, _Result.TERMINATION_MAX_DURATION):
            goal.succeed()
        else:
            goal.abort()

    def _steps(self) -> int:
        controller = self._controller()
        return 0 if controller is None else controller.steps - self._start_steps

    def _elapsed(self, now_ns: int) -> float:
        return max(0.0, (now_ns - self._start_ns) * 1e-9)
