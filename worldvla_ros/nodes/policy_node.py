# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `worldvla_policy`: cameras and instructions in, safe commands out.

A thin shell around PolicyController: convert, call, convert, publish. It never loads torch. All
callbacks run on one thread. Commands go out at the control rate as long as the node is active,
and the last one before any silence is zero motion.
"""

import functools
import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Bool, Header, String
from std_srvs.srv import SetBool, Trigger

from worldvla_ros.action import RunTask
from worldvla_ros.control.controller import ChunkArrival, Outgoing, PolicyController
from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import FrameError, InstructionError, WorldVLAError
from worldvla_ros.inference.backend import Backend, Result
from worldvla_ros.msg import ActionChunk, DeltaAction, PolicyStatus
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.backends import make_backend
from worldvla_ros.nodes.parameters import PolicyParameters, declare, read
from worldvla_ros.nodes.reporting import Reporter
from worldvla_ros.nodes.runtime import run_node, wait_for_clock
from worldvla_ros.nodes.task_server import TaskServer
from worldvla_ros.safety.limits import Reason
from worldvla_ros.srv import GetActionChunk

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_COMMANDS = QoSProfile(depth=10)  # reliable; deep enough that a busy simulator misses none
_LOG_PERIOD = 5.0  # [s] between two log lines of the same complaint
_CLOCK_SILENCE_NS = 500_000_000  # without a tick for so long, simulated time stands still
_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class PolicyNode(LifecycleNode):
    """See the module."""

    def __init__(self, executor: SingleThreadedExecutor, **kwargs: object) -> None:
        super().__init__('worldvla_policy', **kwargs)
        declare(self, PolicyParameters)
        self._config = PolicyParameters()
        self._executor = executor
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._backend: Backend | None = None
        self._controller: PolicyController | None = None
        self._active = False
        self._stopping = False
        self._last_tick_ns = 0
        self._reported = ''
        self._autostart = self.create_timer(0.0, self._start_up, clock=self._steady)

    # --- lifecycle -----------------------------------------------------------------------------

    def _start_up(self) -> None:
        self.destroy_timer(self._autostart)
        if self.get_parameter('autostart').value and self.trigger_configure() is _SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the policy, then offer all topics and services."""
        try:
            self._config = parameters = read(self, PolicyParameters)
            self._backend = make_backend(parameters, self._wake)
            self.get_logger().info(
                f'loading the policy {parameters.checkpoint!r} (backend {parameters.backend})')
            info = self._backend.start(should_abort=lambda: self._stopping)
            self._controller = PolicyController(parameters, self._backend, info,
                                                on_chunk=self._on_chunk)
        except WorldVLAError as error:
            self.get_logger().error(f'cannot configure: {error}')
            self._free()
            return _FAILURE
        self._reporter = Reporter(self._controller)
        self._offer()
        self.get_logger().info(f'ready: {info.description}; {info.horizon} actions per chunk, '
                               f'{info.history_length} frames of {info.image_size} px')
        return _SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to publish commands."""
        if not self._has_clock():
            self.get_logger().error(
                f'cannot activate: use_sim_time is set and no /clock came within '
                f'{self._config.clock_timeout:g} s; start the simulator, or unset it')
            return _FAILURE
        self._controller.reset_history()
        self._active = True
        period = 1.0 / self._config.control.rate
        # Simulated time drives the commands, except where the frames themselves do.
        simulated = self.get_parameter('use_sim_time').value
        by_node_clock = simulated and not self._config.lockstep
        on_timer = self._idle if self._config.lockstep else self._tick
        self._last_tick_ns = time.monotonic_ns()
        self._timers = [
            self.create_timer(period, on_timer,
                              clock=self.get_clock() if by_node_clock else self._steady),
            self.create_timer(1.0 / self._config.status_rate, self._report,
                              clock=self._steady)]
        if by_node_clock:
            self._timers.append(self.create_timer(period, self._watch_clock, clock=self._steady))
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop: the last command is zero motion."""
        self._halt(Reason.INACTIVE)
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unload the policy."""
        self._withdraw()
        self._free()
        return _SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and unload, from whatever state."""
        self.close()
        return _SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and unload; the node can be configured again."""
        self.close()
        return _SUCCESS

    def close(self) -> None:
        """Stop in order; safe to repeat, in any state."""
        self._stopping = True
        self._halt(Reason.SHUTDOWN)
        if self._controller is not None:
            self._withdraw()
        self._free()
        self._stopping = False

    def _halt(self, reason: Reason) -> None:
        """Publish zero motion as the last message and stop the timers; nothing comes after."""
        if not self._active:
            return
        self._active = False
        for timer in self._timers:
            self.destroy_timer(timer)
        self._tasks.end(RunTask.Result.TERMINATION_DEACTIVATED, 'the node was deactivated')
        self._controller.instruction = ''
        self._publish(self._controller.hold(reason))
        self._status.publish(PolicyStatus(
            header=self._header(), state=PolicyStatus.STATE_INACTIVE, halt_reason=int(reason),
            policy=self._controller.info.description))
        self._actions.wait_for_all_acked(rclpy.duration.Duration(seconds=0.2))

    def _has_clock(self) -> bool:
        """Wait a while for simulated time, on an executor of its own since ours is in here."""
        if not self.get_parameter('use_sim_time').value or self.get_clock().now().nanoseconds:
            return True
        return wait_for_clock(self.context, self._config.clock_timeout)

    def _free(self) -> None:
        if self._backend is not None:
            self._backend.stop()
        self._backend = self._controller = None

    # --- topics and services -------------------------------------------------------------------

    def _offer(self) -> None:
        """Create all publishers, subscriptions and services."""
        self._actions = self.create_publisher(DeltaAction, '~/action', _COMMANDS)
        self._twists = (self.create_publisher(TwistStamped, '~/delta_twist_cmds', 1)
                        if self._config.servo.enabled else None)
        self._chunks = self.create_publisher(ActionChunk, '~/action_chunk', 10)
        self._status = self.create_publisher(PolicyStatus, '~/status', 10)
        self._followed = self.create_publisher(String, '~/active_instruction', _LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        if self._config.camera.transport == 'raw':
            image = (Image, 'image', conversions.image_to_frame)
        else:
            image = (CompressedImage, 'image/compressed', conversions.compressed_to_frame)
        message_type, topic, convert = image
        self._subscriptions_made = [
            self.create_subscription(message_type, topic,
                                     functools.partial(self._on_image, convert),
                                     qos_profile_sensor_data),
            self.create_subscription(PoseStamped, 'ee_pose', self._on_ee_pose,
                                     qos_profile_sensor_data),
            self.create_subscription(String, '~/instruction', self._on_instruction, 10),
            self.create_subscription(Bool, '~/estop', self._on_estop, 10)]
        self._services_made = [
            self.create_service(SetBool, '~/pause', self._on_pause),
            self.create_service(Trigger, '~/estop_reset', self._on_estop_reset),
            self.create_service(Trigger, '~/reset_history', self._on_reset_history),
            self.create_service(GetActionChunk, '~/get_action_chunk', self._on_get_action_chunk)]
        self._tasks = TaskServer(self, lambda: self._controller if self._active else None,
                                 self._follow)

    def _withdraw(self) -> None:
        """Destroy what `_offer` made."""
        self._tasks.destroy()
        for service in self._services_made:
            self.destroy_service(service)
        for subscription in self._subscriptions_made:
            self.destroy_subscription(subscription)
        for publisher in (self._actions, self._twists, self._chunks, self._status,
                          self._followed, self._diagnostics):
            if publisher is not None:
                self.destroy_publisher(publisher)

    # --- inputs --------------------------------------------------------------------------------

    def _on_image(self, convert, message: Image | CompressedImage) -> None:
        try:
            frame: Frame = convert(message, self._config.camera.crop)
        except FrameError as error:
            self._reporter.frame_error = str(error)
            self.get_logger().error(f'image refused: {error}', throttle_duration_sec=_LOG_PERIOD)
            return
        self._reporter.frame_error = ''
        self._reporter.frames.add()
        self._controller.push_frame(frame)
        self._answer()

    def _on_ee_pose(self, message: PoseStamped) -> None:
        position = message.pose.position
        self._controller.set_ee_position(np.array([position.x, position.y, position.z]))

    def _on_instruction(self, message: String) -> None:
        if not self._active:
            self.get_logger().warning('instruction ignored: the node is not active')
            return
        self._tasks.end(RunTask.Result.TERMINATION_PREEMPTED, 'another instruction took over')
        try:
            self._follow(message.data)
        except InstructionError as error:
            self.get_logger().error(f'instruction refused: {error}')

    def _follow(self, instruction: str) -> None:
        """Follow an instruction and tell everybody. Raises InstructionError."""
        try:
            self._controller.set_instruction(instruction)
        finally:
            self._followed.publish(String(data=self._controller.instruction))
            self.get_logger().info(f'following: {self._controller.instruction!r}'
                                   if self._controller.instruction else 'no instruction: holding')
        self._answer()

    def _on_estop(self, message: Bool) -> None:
        self._controller.set_estop(message.data, time.monotonic_ns())
        if message.data and self._active:
            self._publish(self._controller.idle(self._now_ns(), time.monotonic_ns()))

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._controller.set_paused(request.data)
        response.success = True
        response.message = 'paused' if request.data else 'going on'
        self._answer()
        return response

    def _on_estop_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._controller.estop.reset(time.monotonic_ns())
        response.message = ('unlocked' if response.success else
                            'still locked: the e-stop topic says true, or is silent')
        return response

    def _on_reset_history(self, _: Trigger.Request,
                          response: Trigger.Response) -> Trigger.Response:
        self._controller.reset_history()
        response.success = True
        response.message = 'frames and plans are forgotten'
        return response

    async def _on_get_action_chunk(self, request: GetActionChunk.Request,
                                   response: GetActionChunk.Response) -> GetActionChunk.Response:
        instruction = request.instruction or self._controller.instruction
        if not self._active or not instruction:
            response.message = ('the node is not active' if not self._active else
                                'there is no instruction: give one, or publish one')
            return response
        answered: Future = Future()
        self._controller.request_chunk(instruction, answered.set_result)
        self._controller.poll(self._now_ns(), time.monotonic_ns())
        result: Result = await answered
        response.success = result.chunk is not None
        response.message = result.error
        if result.chunk is not None:
            response.chunk = conversions.chunk_to_message(result.chunk, self._header())
        return response

    # --- outputs -------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Publish the command that is due (realtime)."""
        self._last_tick_ns = time.monotonic_ns()
        self._publish(self._controller.tick(self._now_ns(), self._last_tick_ns))
        self._tasks.check(self._now_ns())

    def _answer(self) -> None:
        """Publish the command for the newest frame as soon as there is one (lockstep)."""
        if self._active and self._config.lockstep:
            outgoing = self._controller.answer(self._now_ns(), time.monotonic_ns())
            if outgoing is not None:
                self._last_tick_ns = time.monotonic_ns()
                self._publish(outgoing)
                self._tasks.check(self._now_ns())

    def _idle(self) -> None:
        """Publish zero motion while no frame asks for a command (lockstep)."""
        outgoing = self._controller.idle(self._now_ns(), time.monotonic_ns())
        period_ns = 1e9 / self._config.control.rate
        if time.monotonic_ns() - self._last_tick_ns > period_ns:
            self._publish(outgoing)
        self._answer()
        self._tasks.check(self._now_ns())

    def _watch_clock(self) -> None:
        """Publish zero motion while simulated time stands still and drives no tick."""
        if time.monotonic_ns() - self._last_tick_ns > _CLOCK_SILENCE_NS:
            self._publish(self._controller.hold(Reason.CLOCK))
            self._tasks.check(self._now_ns())

    def _publish(self, outgoing: Outgoing) -> None:
        header = self._header()
        self._actions.publish(conversions.outgoing_to_action(outgoing, header))
        if self._twists is not None:
            self._twists.publish(conversions.command_to_twist(
                outgoing.command, header, self._config.scale, self._config.control.rate,
                self._config.servo.command_type))
        self._reporter.commands.add()

    def _on_chunk(self, arrival: ChunkArrival) -> None:
        self._reporter.chunks.add()
        self._chunks.publish(conversions.arrival_to_message(arrival, self._header()))
        if arrival.outcome.error:
            self.get_logger().warning(arrival.outcome.error, once=True)

    def _report(self) -> None:
        """Publish status, diagnostics and feedback; log what changed."""
        self._controller.conflict = self.count_publishers(self._actions.topic_name) > 1
        now_ns = self._now_ns()
        status = self._reporter.status(self._header(), now_ns, time.monotonic_ns())
        self._status.publish(status)
        self._diagnostics.publish(
            self._reporter.diagnostics(status.header, status, self.get_name()))
        self._tasks.publish_feedback(now_ns)
        if status.halt_text == self._reported:
            return
        self._reported = status.halt_text
        if status.state in (PolicyStatus.STATE_RUNNING, PolicyStatus.STATE_IDLE):
            self.get_logger().info(status.halt_text or 'running')
        else:
            self.get_logger().warning(f'holding still: {status.halt_text}')

    def _wake(self) -> None:
        """Look after a result at once; called from a thread of the backend."""
        self._executor.create_task(self._collect)

    def _collect(self) -> None:
        if self._active:
            self._controller.poll(self._now_ns(), time.monotonic_ns())
            self._answer()

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _header(self) -> Header:
        """Stamp of a command: now, and in lockstep never before the frame that it answers."""
        now_ns = self._now_ns()
        if self._config.lockstep:
            now_ns = max(now_ns, self._controller.newest_ns)
        return Header(stamp=conversions.to_time(now_ns), frame_id=self._config.base_frame)


def main() -> int:
    """Run the node."""
    return run_node(PolicyNode)
