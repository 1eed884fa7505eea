# SPDX-License-Identifier: Apache-2.0
"""The topics of a configured policy: frames, arm, instructions in, commands out at a fixed rate.

A thin shell around PolicyController: convert, call, convert, publish. Commands go out at the
control rate as long as the loop is active, and the last one before any silence is zero motion.
"""

from collections.abc import Callable
import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from rclpy.timer import Timer
from std_msgs.msg import Header, String

from worldvla_ros.action import RunTask
from worldvla_ros.control.controller import Outgoing, PolicyController
from worldvla_ros.control.inquiries import Inquiries
from worldvla_ros.control.instruction import Heard, InstructionTopic
from worldvla_ros.control.pause import Pause
from worldvla_ros.control.planner import ChunkArrival
from worldvla_ros.errors import InstructionError
from worldvla_ros.inference.backend import Backend, BackendInfo, Result
from worldvla_ros.msg import ActionChunk, DeltaAction, PolicyStatus
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.parameters import PolicyParameters
from worldvla_ros.nodes.reporting import Reporter
from worldvla_ros.nodes.sensor_topics import SensorTopics
from worldvla_ros.nodes.task_server import TaskServer
from worldvla_ros.safety.limits import Reason
from worldvla_ros.safety.watchdog import EStop

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_COMMANDS = QoSProfile(depth=10)  # reliable; deep enough that a busy simulator misses none
_LOG_PERIOD = 5.0  # [s] between two log lines of the same complaint
_RIVAL_PERIOD = 0.1  # [s] between two looks for a second commander
# Simulated time that is the same for so long, and for so many control periods, stands still.
_CLOCK_SILENCE_NS, _CLOCK_SILENCE_PERIODS = 500_000_000, 3  # of steady time
_FAREWELL = Duration(seconds=0.2)  # longest wait until the last command is acknowledged


class PolicyLoop:
    """
    See the module. Raises ConfigError for settings that the policy does not allow.

    :param backend: started, and `info` what it said of itself
    :param estop: the node's, because it stays locked when the loop goes
    :param topic: the node's, because what the e-stop barred stays barred, too
    :param pause: the node's, because only who asks for it ends it
    :param tasks: the running goal; it ends with other instructions, halts and its own limits
    """

    def __init__(self, node: LifecycleNode, config: PolicyParameters, backend: Backend,
                 info: BackendInfo, estop: EStop, topic: InstructionTopic, pause: Pause,
                 tasks: TaskServer) -> None:
        self._node = node
        self._name = node.get_fully_qualified_name().lstrip('/')  # two arms share /diagnostics
        self._config = config
        self._tasks = tasks
        self.controller = PolicyController(
            config, backend, info, estop, topic, pause,
            translation_gain=config.servo.translation_gain, on_chunk=self._on_chunk)
        self.active = False
        self._reporter = Reporter(self.controller)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers: list[Timer] = []
        self._answered_at_ns = 0  # steady time (lockstep)
        self._clock_ns = self._clock_changed_ns = 0  # node's clock; steady time of its change
        self._reported = ''
        self._announced = ''
        self._publish_to()
        self._sensors = SensorTopics(node, config, self.controller, self._reporter, self.answer)
        self._instructions = node.create_subscription(
            String, '~/instruction', self._on_instruction, 10)
        self._reports = node.create_timer(1.0 / config.status_rate, self._report,
                                          clock=self._steady)

    def _publish_to(self) -> None:
        create = self._node.create_publisher
        self._actions = create(DeltaAction, '~/action', _COMMANDS)
        self._twists = (create(TwistStamped, '~/delta_twist_cmds', 1)
                        if self._config.servo.enabled else None)
        self._chunks = create(ActionChunk, '~/action_chunk', 10)
        self._status = create(PolicyStatus, '~/status', 10)
        self._followed = create(String, '~/active_instruction', _LATCHED)
        self._diagnostics = create(DiagnosticArray, '/diagnostics', 10)

    def start(self, simulated: bool) -> None:
        """
        Start to publish commands.

        :param simulated: the node's clock is that of a simulator and drives the commands, except
            where the frames themselves do (lockstep)
        """
        self.controller.restart()
        self.active = True
        self._look_for_rivals()
        self._answered_at_ns = self._clock_changed_ns = time.monotonic_ns()
        self._reporter.restart(self._answered_at_ns)
        period = 1.0 / self._config.control.rate
        by_node_clock = simulated and not self._config.lockstep
        on_timer = self._idle if self._config.lockstep else self._tick
        create = self._node.create_timer
        self._timers = [
            create(period, on_timer,
                   clock=self._node.get_clock() if by_node_clock else self._steady),
            create(_RIVAL_PERIOD, self._look_for_rivals, clock=self._steady)]
        if by_node_clock:
            self._timers.append(create(period, self._watch_clock, clock=self._steady))

    def halt(self, reason: Reason) -> None:
        """Publish zero motion as the last message and stop the timers; safe to repeat."""
        if not self.active:
            return
        self.active = False
        for timer in self._timers:
            self._node.destroy_timer(timer)
        why = 'the node was deactivated'
        self._tasks.end(RunTask.Result.TERMINATION_DEACTIVATED, why)
        last = self.controller.stop(reason, why)
        self._announce()
        self._publish(last)
        self._status.publish(self._reporter.inactive_status(self.header(), reason))
        for publisher in self._commanders():
            publisher.wait_for_all_acked(_FAREWELL)

    def _commanders(self) -> list[Publisher]:
        """Return the publishers whose messages move a robot."""
        return [self._actions, *([] if self._twists is None else [self._twists])]

    def destroy(self) -> None:
        """Take all topics away."""
        self._node.destroy_timer(self._reports)
        self._sensors.destroy()
        self._node.destroy_subscription(self._instructions)
        for publisher in (self._actions, self._twists, self._chunks, self._status,
                          self._followed, self._diagnostics):
            if publisher is not None:
                self._node.destroy_publisher(publisher)

    def follow(self, instruction: str) -> None:
        """Follow an instruction and tell everybody. Raises InstructionError."""
        try:
            self.controller.set_instruction(instruction)
        finally:
            self._announce()
        self.answer()

    def _announce(self) -> None:
        """Tell everybody which instruction is followed."""
        self._announced = following = self.controller.instruction
        self._followed.publish(String(data=following))
        self._node.get_logger().info(
            f'following: {following!r}' if following else 'no instruction: holding')

    def hold_at_once(self) -> None:
        """
        Hold because the e-stop was locked or reset, without waiting for the next control period.

        A running goal ends here and now: by the next period, the e-stop may have been reset. What
        is reported after a reset is what holds the robot now.
        """
        if self.active:
            self._publish(self.controller.idle(self.now_ns(), time.monotonic_ns()))
            self._tasks.check(self.now_ns())

    def collect(self) -> None:
        """Look after results of the backend."""
        if self.active:
            self.controller.poll(self.now_ns(), time.monotonic_ns())
            self.answer()

    async def ask(self, request: Callable[[Inquiries, Callable[[Result], None]], None]) -> Result:
        """Make a request beside the control loop and wait for its answer; raises what it does."""
        answered: Future = Future()
        request(self.controller.inquiries, answered.set_result)
        self.collect()
        result: Result = await answered
        return result

    def answer(self) -> None:
        """Publish the command for the newest frame as soon as there is one (lockstep)."""
        if self.active and self._config.lockstep:
            outgoing = self.controller.answer(self.now_ns(), time.monotonic_ns())
            if outgoing is not None:
                self._answered_at_ns = time.monotonic_ns()
                # Not the time: when the answer to a repeated frame goes out, that may be the stamp
                # of the next frame already, and the answer would be taken for that one's.
                self._publish(outgoing, self.controller.newest_ns)
                self._tasks.check(self.now_ns())

    def now_ns(self) -> int:
        """Time of the node's clock [ns]."""
        return self._node.get_clock().now().nanoseconds

    def header(self, stamp_ns: int | None = None) -> Header:
        """Stamp of what goes out: now; for an answer in lockstep, the frame that it answers."""
        stamp_ns = self.now_ns() if stamp_ns is None else stamp_ns
        return Header(stamp=conversions.to_time(stamp_ns), frame_id=self._config.base_frame)

    def _on_instruction(self, message: String) -> None:
        heard = self.controller.hear(message.data, time.monotonic_ns())
        if not self.active:
            self._node.get_logger().warning('instruction ignored: the node is not active',
                                            throttle_duration_sec=_LOG_PERIOD)
            return
        self._judge_instruction(heard)
        if heard is not Heard.NEW:
            self._followed.publish(String(data=self.controller.instruction))  # who asked may wait
            return
        self._tasks.end(RunTask.Result.TERMINATION_PREEMPTED, 'another instruction took over')
        try:
            self.follow(message.data)
        except InstructionError as error:
            self._node.get_logger().error(f'instruction refused: {error}; the robot holds still',
                                          throttle_duration_sec=_LOG_PERIOD)

    def _judge_instruction(self, heard: Heard) -> None:
        """Remember why an instruction was ignored, for reports; log it once for each cause."""
        ignored = '' if heard in (Heard.NEW, Heard.SAME) else heard.value
        if ignored and ignored != self._reporter.ignored:
            self._node.get_logger().error(f'instruction ignored: {ignored}')
        self._reporter.ignored = ignored

    # --- outputs -------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Publish the command that is due (realtime)."""
        self._reporter.clock_stands_still = False
        self._publish(self.controller.tick(self.now_ns(), time.monotonic_ns()))
        self._tasks.check(self.now_ns())

    def _idle(self) -> None:
        """Publish zero motion while no frame asks for a command (lockstep)."""
        outgoing = self.controller.idle(self.now_ns(), time.monotonic_ns())
        period_ns = 1e9 / self._config.control.rate
        if time.monotonic_ns() - self._answered_at_ns > period_ns:
            self._publish(outgoing)
        self.answer()
        self._tasks.check(self.now_ns())

    def _watch_clock(self) -> None:
        """Publish zero motion while simulated time stands still and drives no tick."""
        steady_ns = time.monotonic_ns()
        if not self._clock_stands_still(steady_ns):
            return
        self._reporter.clock_stands_still = True
        self.controller.poll(self.now_ns(), steady_ns)  # whoever asks beside the loop waits for it
        if self.controller.estop.poll(steady_ns):  # the graver of the two
            self._publish(self.controller.idle(self.now_ns(), steady_ns))
        else:
            self._publish(self.controller.hold(Reason.CLOCK))
        self._tasks.check(self.now_ns())

    def _clock_stands_still(self, steady_ns: int) -> bool:
        """Look at the clock and not at the ticks: those are rare where the simulator is slow."""
        now_ns = self.now_ns()
        if now_ns != self._clock_ns:
            self._clock_ns, self._clock_changed_ns = now_ns, steady_ns
        periods_ns = _CLOCK_SILENCE_PERIODS * self._config.period_ns
        return steady_ns - self._clock_changed_ns > max(_CLOCK_SILENCE_NS, periods_ns)

    def _look_for_rivals(self) -> None:
        """See whether another publisher commands one of our topics."""
        self.controller.set_conflict(any(
            self._node.count_publishers(publisher.topic_name) > 1
            for publisher in self._commanders()))

    def _publish(self, outgoing: Outgoing, stamp_ns: int | None = None) -> None:
        header = self.header(stamp_ns)
        self._actions.publish(conversions.outgoing_to_action(outgoing, header))
        if self._twists is not None:
            self._twists.publish(
                conversions.command_to_twist(outgoing.command, header, self._config))
        self._reporter.commands.add()
        if self.controller.instruction != self._announced:  # the e-stop dropped it
            self._announce()

    def _on_chunk(self, arrival: ChunkArrival) -> None:
        self._reporter.chunks.add()
        self._chunks.publish(conversions.arrival_to_message(arrival, self.header()))
        if arrival.outcome.error:
            self._node.get_logger().warning(arrival.outcome.error, once=True)

    def _report(self) -> None:
        """Publish status, diagnostics and feedback; log what changed."""
        if not self.active:  # a worker that dies meanwhile is replaced before it is needed
            self.controller.poll(self.now_ns(), time.monotonic_ns())
            status = self._reporter.inactive_status(self.header(), Reason.INACTIVE)
            self._status.publish(status)
            self._diagnostics.publish(self._reporter.inactive_diagnostics(status, self._name))
            return
        now_ns = self.now_ns()
        status = self._reporter.status(self.header(), now_ns, time.monotonic_ns())
        self._status.publish(status)
        self._diagnostics.publish(self._reporter.diagnostics(now_ns, status, self._name))
        self._tasks.publish_feedback(now_ns)
        if status.halt_text == self._reported:
            return
        self._reported = status.halt_text
        if status.state in (PolicyStatus.STATE_RUNNING, PolicyStatus.STATE_IDLE):
            self._node.get_logger().info(status.halt_text or 'running')
        else:
            self._node.get_logger().warning(f'holding still: {status.halt_text}')
