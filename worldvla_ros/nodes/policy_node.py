# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `worldvla_policy`: cameras and instructions in, safe commands out.

This module is the lifecycle: parameters, loading, the clock. `policy_loop` holds the topics of a
configured policy, `policy_services` and `task_server` what clients may ask of it. The node never
loads torch (but with backend `inproc`, for debugging), and all its callbacks run on one thread.
"""

from collections.abc import Callable
from dataclasses import replace
import functools
import traceback
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from worldvla_ros.config import describe
from worldvla_ros.control.instruction import InstructionTopic
from worldvla_ros.control.pause import Pause
from worldvla_ros.errors import ConfigError, WorldVLAError
from worldvla_ros.inference.backend import Backend, Health
from worldvla_ros.nodes.backends import describe_backend, make_backend
from worldvla_ros.nodes.estop_input import EStopInput
from worldvla_ros.nodes.parameters import AT_START, PolicyParameters, declare, read
from worldvla_ros.nodes.policy_loop import PolicyLoop
from worldvla_ros.nodes.policy_services import PolicyServices
from worldvla_ros.nodes.runtime import run_node, wait_for_clock
from worldvla_ros.nodes.task_server import TaskServer
from worldvla_ros.safety.limits import Reason

_SIM_TIME = 'use_sim_time'  # declared by rclpy
_FIXED = {info.name for info in describe(PolicyParameters) if info.read_only}  # by `configure`
_ACTIVATION_POLL = 0.2  # [s] from configured to active, and between two looks for /clock
_ChangeState = Callable[[ChangeState.Request, ChangeState.Response], ChangeState.Response]
_Transition = Callable[['PolicyNode', LifecycleState], TransitionCallbackReturn]
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def _logged(transition: _Transition) -> _Transition:
    """Log what a transition raises: rclpy turns it into the result ERROR without a word."""
    @functools.wraps(transition)
    def logged(node: 'PolicyNode', state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except Exception:
            node.get_logger().error(f'{transition.__name__} failed: {traceback.format_exc()}')
            raise
    return logged


def _refusing(change_state: _ChangeState, node: Node) -> _ChangeState:
    """Return the callback of ~/change_state, so that what it cannot do is its answer."""
    def change_or_refuse(request: ChangeState.Request, response: ChangeState.Response
                         ) -> ChangeState.Response:
        try:
            return change_state(request, response)
        except rclpy_implementation.RCLError as error:
            asked = request.transition.label or request.transition.id
            node.get_logger().warn(f'transition {asked} is refused: {str(error).splitlines()[0]}')
            response.success = False
            return response
    return change_or_refuse


class PolicyNode(LifecycleNode):
    """
    See the module.

    :param executor: that spins the node; results of the backend wake it
    """

    def __init__(self, executor: SingleThreadedExecutor, **kwargs: Any) -> None:
        super().__init__('worldvla_policy', **kwargs)
        declare(self, PolicyParameters, AT_START)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._executor = executor
        # rclpy raises where a transition does not start from the state that the node is in.
        self._service_change_state.callback = _refusing(self._service_change_state.callback, self)
        self._backend: Backend | None = None
        self._loop: PolicyLoop | None = None
        self._interrupted = False
        self._estop = EStopInput(self, self._hold_at_once)
        self._instructions = InstructionTopic()
        self._pause = Pause()
        # They live as long as the node: a call that is being answered survives a cleanup.
        self._requests = PolicyServices(self, lambda: self._loop, self._estop)
        self._tasks = TaskServer(
            self, executor, lambda: self._loop if self._loop and self._loop.active else None)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._tried_ns = -1  # of the node's clock, the last try to activate; -1: there was none
        self._autostart = self.create_timer(0.0, self._start_up, clock=self._steady)

    def _start_up(self) -> None:
        """
        Configure, and soon after activate, without a lifecycle manager.

        Soon after: goals and messages that came while the policy loaded meet a node that is not
        active yet, so that none of them moves the robot.
        """
        self.destroy_timer(self._autostart)
        if self.get_parameter('autostart').value and self.trigger_configure() is _SUCCESS:
            self._autostart = self.create_timer(_ACTIVATION_POLL, self._activate,
                                                clock=self._steady)

    def _activate(self) -> None:
        """Activate, again and again until there is a clock."""
        if self._loop is None or self._loop.active:  # somebody else has taken the lifecycle over
            self.destroy_timer(self._autostart)
        elif (now_ns := self.get_clock().now().nanoseconds) != self._tried_ns:
            self._tried_ns = now_ns
            if self.trigger_activate() is _SUCCESS:
                self.destroy_timer(self._autostart)

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the policy, then offer its topics."""
        try:
            parameters = self._read()
            self.get_logger().info(describe_backend(parameters))
            self._backend = make_backend(parameters, self._wake)
            info = self._backend.start(should_abort=lambda: self._interrupted)
            self._loop = PolicyLoop(self, parameters, self._backend, info, self._estop.latch,
                                    self._instructions, self._pause, self._tasks)
        except WorldVLAError as error:
            self.get_logger().error(f'cannot configure: {error}')
            self._free()
            return _FAILURE
        stage = 'ready' if self._backend.health is Health.READY else self._backend.fault
        self.get_logger().info(f'{stage}: {info.description}; {info.horizon} actions per chunk, '
                               f'{info.history_length} frames of {info.image_size} px'
                               f'{", each with the wrist camera" if info.reads_wrist else ""}'
                               f'{", and the state of the arm" if info.reads_state else ""}')
        return _SUCCESS

    def _read(self) -> PolicyParameters:
        parameters = read(self, PolicyParameters)
        if self.get_parameter(_SIM_TIME).value and parameters.obs.frozen_after == 0:
            return replace(parameters, obs=replace(parameters.obs, frozen_after=-1))
        return parameters

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to publish commands."""
        loop = self._loop
        if loop is None:  # closed, because the program ends
            return _FAILURE
        simulated = self.get_parameter(_SIM_TIME).value
        if simulated and not self._has_clock(loop.controller.settings.lockstep):
            self.get_logger().error(
                f'cannot activate: use_sim_time is set and no /clock came within '
                f'{self.get_parameter("clock_timeout").value:g} s; start the simulator, let it '
                f'run if it is paused, or clean the node up, unset use_sim_time, and configure '
                f'and activate it')
            return _FAILURE
        loop.start(simulated)
        return super().on_activate(state)

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop: the last command is zero motion."""
        if self._loop is not None:  # else it is closed, because the program ends
            self._loop.halt(Reason.INACTIVE)
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unload the policy."""
        self.close()
        return _SUCCESS

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and unload, from whatever state."""
        self.close()
        return _SUCCESS

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and unload; the node can be configured again."""
        self.close()
        return _SUCCESS

    def interrupt(self) -> None:
        """Give up loading or waiting, because the program ends; called from another thread."""
        self._interrupted = True

    def close(self) -> None:
        """Stop in order; safe to repeat, in any state."""
        if self._loop is not None:
            self._loop.halt(Reason.SHUTDOWN)
            self._loop.destroy()
        self._free()

    def _free(self) -> None:
        if self._backend is not None:
            self._backend.stop()
        self._backend = self._loop = None

    def _has_clock(self, lockstep: bool) -> bool:
        """
        Wait a while for simulated time, on an executor of its own since ours is in here.

        What the clock says already is no proof: it says so long after the simulator has gone. In
        lockstep it has to do, because there the simulator may wait for us and be silent.
        """
        if lockstep and self.get_clock().now().nanoseconds:
            return True
        return wait_for_clock(
            self, self.get_parameter('clock_timeout').value,
            should_abort=lambda: self._interrupted)

    def _wake(self) -> None:
        """Look after a result at once; called from a thread of the backend."""
        self._executor.create_task(self._collect)

    def _hold_at_once(self) -> None:
        if self._loop is not None:
            self._loop.hold_at_once()

    def _collect(self) -> None:
        if self._loop is not None:
            self._loop.collect()

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        """Refuse what a policy rests on, another clock, too, and wrong limits."""
        values = {change.name: change.value for change in changes}
        simulated = self.get_parameter(_SIM_TIME).value
        fixed = _FIXED & set(values)
        if values.get(_SIM_TIME, simulated) != simulated:
            fixed.add(_SIM_TIME)  # of timers, of stamps, and of what counts as a frozen camera
        if self._loop is not None and fixed:
            return SetParametersResult(successful=False, reason=(
                f'{", ".join(sorted(fixed))}: read-only while the node is configured; deactivate '
                f'it, clean it up, set it, and configure and activate it again'))
        try:
            read(self, PolicyParameters, values)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        """Let changed limits hold from the next command on; the rest waits for `configure`."""
        if self._loop is not None:
            controller = self._loop.controller
            limits = read(self, PolicyParameters).limits
            if limits != controller.settings.limits:
                controller.set_limits(limits)
                self.get_logger().info(f'limits: {limits}')


def main() -> int:
    """Run the node."""
    return run_node(PolicyNode, about='Commands a robot by a WorldVLA policy: lifecycle node '
                    'worldvla_policy. Its parameters are in config/policy.yaml.')
