# SPDX-License-Identifier: Apache-2.0
"""Simulated time that comes late, slowly, or no more, or jumps back, and the policy node in it.

In lockstep, time stands still while the simulator waits: test_lockstep_stamp.py.
"""

import threading

from action_msgs.msg import GoalStatus
from policy_client import is_zero, noise, overrides
import pytest
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock

from worldvla_ros.action import RunTask
from worldvla_ros.datatypes import Frame
from worldvla_ros.msg import DeltaAction, PolicyStatus
from worldvla_ros.nodes.conversions import frame_to_image, to_time
from worldvla_ros.nodes.policy_node import PolicyNode

PERIOD = 0.01  # [s] of wall time between two messages of /clock


class Simulator:
    """
    Publishes the time from a thread of its own, while it is `running`.

    A timer of the test's executor would wait for the node that waits for it.
    """

    def __init__(self, client):
        self.running = False
        self.speed = 1.0  # seconds of simulated time in a second of wall time; 0: it repeats one
        self.time_ns = 500 * 10**9
        self._client = client
        self.publish_to('/clock')
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._ended.wait(PERIOD):
            if self.running:
                self.time_ns += round(self.speed * PERIOD * 1e9)
                self.publish()

    def publish_to(self, topic):
        self.clock = self._client.node.create_publisher(Clock, topic, 10)

    def publish(self):
        self.clock.publish(Clock(clock=to_time(self.time_ns)))

    def camera_on(self):
        """Let the camera deliver noise, stamped with simulated time."""
        self._client.shoot = lambda number: frame_to_image(
            Frame(noise(number), self.time_ns), 'camera')

    def close(self):
        self._ended.set()
        self._thread.join()


@pytest.fixture
def simulator(client):
    simulator = Simulator(client)
    yield simulator
    simulator.close()


@pytest.fixture
def start(start_policy, simulator):
    """Start simulator, camera and a node that follows their time."""
    def start(**values):
        simulator.running = True
        simulator.camera_on()
        start_policy(use_sim_time=True, **values)
    return start


def test_without_a_clock_activate_fails_with_the_reason_and_later_succeeds(
        start_policy, client, simulator, capfd):
    start_policy(autostart=False, use_sim_time=True, clock_timeout=0.3)
    assert client.transition('configure') and not client.transition('activate')
    assert client.state() == 'inactive' and 'no /clock' in capfd.readouterr().err
    assert not client.actions
    simulator.running = True
    assert client.transition('activate')
    client.next_halt(DeltaAction.REASON_NO_INSTRUCTION)


@pytest.mark.parametrize('given, counts', [({}, -1), ({'obs__frozen_after': 5}, 5)])
def test_a_still_picture_of_a_simulator_is_no_frozen_camera_unless_it_is_said(
        start_policy, simulator, given, counts):
    """Pins a bug: it hung on how the node was started, and halted it after a second."""
    simulator.running = True
    node = start_policy(use_sim_time=True, **given)
    assert node._loop.controller.settings.obs.frozen_after == counts


def test_a_clock_that_only_was_there_is_none(start, client, simulator, capfd):
    """Pins a bug: any time that the node had ever heard was enough to activate."""
    start(clock_timeout=0.5)
    assert client.transition('deactivate')
    simulator.running = False
    assert not client.transition('activate')
    assert 'no /clock' in capfd.readouterr().err
    simulator.running = True
    assert client.transition('activate')
    client.instruct()
    client.next_motion()


def test_the_clock_of_a_configured_node_cannot_be_changed(running, simulator):
    """
    Pins a bug: afterwards frames never aged, and without a camera the robot moved on.

    And another: set while inactive, no camera of a real robot was ever found frozen.
    """
    def set_use_sim_time(value):
        parameter = Parameter('use_sim_time', value=value).to_parameter_msg()
        request = SetParametersAtomically.Request(parameters=[parameter])
        return running.call(SetParametersAtomically, 'set_parameters_atomically', request).result
    refused = set_use_sim_time(True)
    assert not refused.successful and 'deactivate it, clean it up' in refused.reason
    assert set_use_sim_time(False).successful
    running.next_motion()
    running.shoot = None
    running.next_halt(DeltaAction.REASON_STALE_OBSERVATION)
    assert running.transition('deactivate') and not set_use_sim_time(True).successful
    assert running.transition('cleanup') and set_use_sim_time(True).successful
    simulator.running = True
    assert running.transition('configure') and running.transition('activate')


def test_a_clock_under_another_name_is_waited_for(context, executor, spin, client, simulator):
    """Pins a bug: the node followed the remapped topic, and waited for the one of that name."""
    simulator.publish_to('/sim/clock')
    simulator.running = True
    spin(PolicyNode(executor, context=context, cli_args=[
        '--ros-args', '-r', '/clock:=/sim/clock'], parameter_overrides=overrides(
            use_sim_time=True)))
    client.wait_until_active()


def test_in_lockstep_a_simulator_that_waits_in_silence_is_no_reason_not_to_activate(
        start, client, simulator):
    start(control__mode='lockstep', clock_timeout=0.5)
    assert client.transition('deactivate')
    simulator.running = False
    assert client.transition('activate')


def test_a_node_that_starts_by_itself_tries_again_until_time_goes_on(
        context, executor, spin, client, simulator, wait_for, capfd):
    spin(PolicyNode(executor, context=context, parameter_overrides=overrides(
        use_sim_time=True, clock_timeout=0.1)))
    wait_for(lambda: 'no /clock' in capfd.readouterr().err)
    wait_for(simulator.clock.get_subscription_count)
    simulator.publish()  # enough to know a time, and not that it goes on
    wait_for(lambda: 'no /clock' in capfd.readouterr().err)
    assert client.state() == 'inactive'
    simulator.running = True
    client.wait_until_active()


@pytest.mark.parametrize('rate, speed', [(20.0, 0.08), (1.0, 1.0)])
def test_time_that_is_slow_against_the_control_period_does_not_stand_still(
        start, client, simulator, rate, speed):
    """Pins a bug: no tick for 0.5 s of wall time was a halt, which made every plan void."""
    simulator.speed = speed
    start(control__rate=rate)
    client.instruct()
    client.wait_for(lambda: sum(not is_zero(action) for action in client.actions) > 2)
    assert DeltaAction.REASON_CLOCK not in {action.reason for action in client.actions}


@pytest.mark.parametrize('stop', [{'running': False}, {'speed': 0.0}])
def test_simulated_time_that_stops_holds_until_it_runs_again(start, client, simulator, stop):
    start()
    client.instruct()
    client.next_motion()
    for name, value in stop.items():
        setattr(simulator, name, value)
    halt = client.next_halt(DeltaAction.REASON_CLOCK)
    status = client.next_status(lambda status: status.halt_reason == DeltaAction.REASON_CLOCK)
    assert 'stands still' in status.halt_text and 'control.mode' in status.halt_text
    simulator.running, simulator.speed = True, 1.0
    assert client.next_motion().chunk_sequence > halt.chunk_sequence
    client.next_status(lambda status: not status.halt_text)
    client.camera_on()  # in wall time: another fault, with the same reason
    client.next_status(lambda status: status.halt_reason == DeltaAction.REASON_CLOCK
                       and 'disagree' in status.halt_text)


def test_the_estop_is_graver_than_time_that_stands_still(start, client, simulator):
    """Pins a bug: the status said "clock", and a goal lived on."""
    start()
    goal = client.send_goal()
    client.next_motion()
    simulator.running = False
    client.next_halt(DeltaAction.REASON_CLOCK)
    client.estop(True)
    status, result = client.result_of(goal)
    assert status == GoalStatus.STATUS_ABORTED
    assert result.termination == RunTask.Result.TERMINATION_ESTOP
    client.next_halt(DeltaAction.REASON_ESTOP)
    for _ in range(5):
        status = client.next(client.statuses)
        assert status.state == PolicyStatus.STATE_ESTOPPED and 'estop_reset' in status.halt_text


def test_an_estop_that_is_reset_before_the_next_tick_ends_a_goal(start, client, simulator):
    """Pins a bug: only a tick saw the e-stop, so the goal lived on for ever without a motion."""
    start(control__rate=1.0)  # only after 3 s is anything said of the clock
    goal = client.send_goal()
    client.next_motion()
    simulator.running = False
    client.estop(True)
    client.estop(False)
    client.wait_for(lambda: client.trigger('estop_reset').success)
    status, result = client.result_of(goal)
    assert status == GoalStatus.STATUS_ABORTED
    assert result.termination == RunTask.Result.TERMINATION_ESTOP


def test_the_time_of_a_goal_goes_on_where_the_clock_jumps_back(start, client, simulator):
    """Pins a bug: it ended only when the new clock reached the end on the old one."""
    start()
    goal = client.send_goal(max_duration=2.0)
    client.wait_for(lambda: client.feedback and client.feedback[-1].elapsed > 0.5)
    simulator.time_ns = 10**9
    status, result = client.result_of(goal)
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert result.termination == RunTask.Result.TERMINATION_MAX_DURATION
    assert 2.0 <= result.duration < 6.0  # on the old clock ten seconds and more
    elapsed = [feedback.elapsed for feedback in client.feedback]
    assert elapsed == sorted(elapsed)
