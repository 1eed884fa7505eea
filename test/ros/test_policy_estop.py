# SPDX-License-Identifier: Apache-2.0
"""The e-stop over DDS: it is heard, holds at once, and only a reset and an instruction end it."""

import itertools
import time

from policy_client import LATCHED, NODE, TASK, is_zero, overrides
import pytest
from rclpy.exceptions import InvalidParameterValueException
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import Bool

from worldvla_ros.errors import ConfigError
from worldvla_ros.msg import DeltaAction, PolicyStatus
from worldvla_ros.nodes.policy_node import PolicyNode


def stop_repeating():
    """Be silent for so long that a text that came often is no repetition any more."""
    time.sleep(3.1)


def test_a_reset_of_what_is_not_locked_changes_nothing(running):
    """Pins a bug: it said that the robot holds still, and put a command into the stream."""
    running.next_motion()
    count = len(running.actions)
    response = running.trigger('estop_reset')
    assert response.success and 'not locked' in response.message
    running.wait_for(lambda: len(running.actions) > count + 10)
    sequences = [number for number, _ in itertools.groupby(
        action.chunk_sequence for action in running.actions[count:])]
    assert any(sequences) and all(
        between or before != after  # 0 where the robot waits, after a whole chunk only
        for before, between, after in zip(sequences, sequences[1:], sequences[2:], strict=False))


def test_a_publisher_that_repeats_its_instruction_starts_nothing_after_an_estop(running, capfd):
    """Pins a bug: 0.4 s after the reset the robot moved again, unasked."""
    repeating = running.node.create_timer(0.02, running.instruct)
    for _ in range(2):  # it was heard to repeat
        running.next(running.followed)
    running.estop(True)
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.estop(False)
    running.wait_for(lambda: running.trigger('estop_reset').success)
    count = len(running.actions)
    running.next_status(lambda status: status.state == PolicyStatus.STATE_IDLE
                        and 'publish an empty instruction' in status.halt_text)
    for _ in range(20):
        running.next(running.followed)
    assert all(map(is_zero, running.actions[count:]))
    running.instruct('')
    running.next_status(lambda status: 'a publisher repeats it' in status.halt_text)
    repeating.cancel()
    stop_repeating()
    running.instruct()
    running.next_motion()
    assert capfd.readouterr().err.count('instruction ignored: it came') == 1


def test_a_silent_estop_input_locks_where_a_heartbeat_is_asked_for(start_policy, client):
    start_policy(control__heartbeat_estop=1.0)
    client.camera_on()
    client.instruct()
    client.next_halt(DeltaAction.REASON_ESTOP)
    beating = client.node.create_timer(0.02, lambda: client.estop(False))
    client.wait_for(lambda: client.trigger('estop_reset').success)
    client.instruct('')  # the first one may have come while it was locked
    client.instruct()
    client.next_motion()
    beating.cancel()
    client.next_halt(DeltaAction.REASON_ESTOP)


def test_the_estop_holds_at_once_and_until_it_is_reset(running):
    running.estop(True)
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.next_status(lambda status: status.state == PolicyStatus.STATE_ESTOPPED
                        and 'estop_reset' in status.halt_text)
    response = running.trigger('estop_reset')
    assert not response.success and 'still locked' in response.message
    running.estop(False)
    running.next_halt(DeltaAction.REASON_ESTOP)  # releasing it is not enough
    response = running.wait_for(lambda: next(
        (answer for answer in [running.trigger('estop_reset')] if answer.success), None))
    assert 'until an instruction comes' in response.message
    count = len(running.actions)
    running.next_halt(DeltaAction.REASON_NO_INSTRUCTION)
    status = running.next_status(lambda status: status.state != PolicyStatus.STATE_ESTOPPED)
    assert status.state == PolicyStatus.STATE_IDLE and 'estop' not in status.halt_text
    assert all(map(is_zero, running.actions[count:]))
    assert TASK not in [echo.data for echo in running.followed[1:]]
    sequence = max(action.chunk_sequence for action in running.actions)
    running.instruct()
    assert running.next_motion().chunk_sequence > sequence


def test_the_estop_stays_locked_through_a_cleanup(running):
    """Pins a bug: another configure made a new, unlocked latch."""
    running.estop(True)
    running.next_halt(DeltaAction.REASON_ESTOP)
    assert running.transition('deactivate') and running.transition('cleanup')
    assert not running.trigger('estop_reset').success
    assert running.transition('configure') and running.transition('activate')
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.estop(False)
    running.wait_for(lambda: running.trigger('estop_reset').success)
    running.instruct()
    running.next_motion()


def test_a_sentence_that_came_while_it_was_locked_starts_nothing_after_a_cleanup_either(running):
    """Pins a bug: another configure forgot it, and the robot moved unasked."""
    running.estop(True)
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.instruct()
    running.next(running.followed)
    running.estop(False)
    running.wait_for(lambda: running.trigger('estop_reset').success)
    for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
        assert running.transition(transition)
    count = len(running.actions)
    running.instruct()
    running.next_status(lambda status: 'publish an empty instruction' in status.halt_text)
    assert all(map(is_zero, running.actions[count:]))
    running.instruct('')
    stop_repeating()
    running.instruct()
    running.next_motion()


def test_a_second_publisher_locks_the_estop(running):
    """Pins a bug: its heartbeat hid that the first one, with the button, had died."""
    other = running.node.create_publisher(Bool, f'{NODE}/estop', 10)
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.next_status(lambda status: '2 publishers' in status.halt_text)
    running.take_away(other)
    running.wait_for(lambda: running.trigger('estop_reset').success)
    running.instruct()
    running.next_motion()


def test_the_estop_is_heard_while_nothing_is_configured(start_policy, client):
    start_policy(autostart=False)
    client.estop(True)
    assert client.transition('configure') and client.transition('activate')
    client.next_halt(DeltaAction.REASON_ESTOP)


def test_an_estop_that_cannot_be_heard_locks_and_says_why(running):
    """Pins a bug: reliable was asked for, so a best-effort button did nothing, silently."""
    deaf = running.node.create_publisher(Bool, f'{NODE}/estop', qos_profile_sensor_data)
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.next_status(lambda status: 'best-effort publisher' in status.halt_text)
    response = running.trigger('estop_reset')
    assert not response.success and 'cannot be heard' in response.message
    running.take_away(deaf)
    running.wait_for(lambda: running.trigger('estop_reset').success)
    running.instruct()
    running.next_motion()


@pytest.mark.parametrize('graph_is_late', [False, True])
def test_an_estop_that_was_pressed_before_the_node_came_is_heard(
        start_policy, client, monkeypatch, graph_is_late):
    """Pins a bug: the node started again, and the robot moved while the button was pressed."""
    if graph_is_late:
        monkeypatch.setattr(PolicyNode, 'get_publishers_info_by_topic', lambda *_: [])
    client.take_away(client.estops)
    button = client.node.create_publisher(Bool, f'{NODE}/estop', LATCHED)
    button.publish(Bool(data=True))
    start_policy(autostart=False)
    client.camera_on()
    assert client.transition('configure') and client.transition('activate')
    client.next_halt(DeltaAction.REASON_ESTOP)
    client.instruct()
    client.next_status(lambda status: status.state == PolicyStatus.STATE_ESTOPPED
                       and 'estop_reset' in status.halt_text)
    assert not client.trigger('estop_reset').success
    assert all(map(is_zero, client.actions))
    button.publish(Bool(data=False))
    client.wait_for(lambda: client.trigger('estop_reset').success)
    client.instruct('')  # what came while it was locked must not start it alone
    client.instruct()
    client.next_motion()


def test_the_estop_stays_locked_while_its_topic_has_two_publishers(running):
    """Pins a bug: one's false unlocked it while another's button was pressed."""
    other = running.node.create_publisher(Bool, f'{NODE}/estop', 10)
    running.next_halt(DeltaAction.REASON_ESTOP)
    running.estop(True)
    other.publish(Bool(data=False))
    response = running.trigger('estop_reset')
    assert not response.success and '2 publishers' in response.message
    running.take_away(other)
    running.wait_for(lambda: '2 publishers' not in running.trigger('estop_reset').message)
    response = running.trigger('estop_reset')
    assert not response.success and 'says true' in response.message, 'the other released nothing'
    running.estop(False)
    running.wait_for(lambda: running.trigger('estop_reset').success)


def test_a_volatile_estop_is_not_told_that_nobody_hears_it(capfd, running):
    running.estop(False)
    running.next_motion()
    assert not running.trigger('estop_reset').message.startswith('still locked')
    assert 'incompatible' not in capfd.readouterr().err


def test_a_heartbeat_out_of_range_is_refused_by_name(context, executor):
    with pytest.raises((ConfigError, InvalidParameterValueException), match='heartbeat_estop'):
        PolicyNode(executor, context=context,
                   parameter_overrides=overrides(control__heartbeat_estop='soon'))


def test_what_is_reported_after_a_reset_is_not_the_estop(start_policy, client):
    """Pins a bug: until the next control period it was "emergency stop; ...; locked: "."""
    start_policy(control__rate=1.0)
    client.estop(True)
    client.next_halt(DeltaAction.REASON_ESTOP)
    client.estop(False)
    client.wait_for(lambda: client.trigger('estop_reset').success)
    client.next(client.statuses)  # it may have been on its way
    assert client.next(client.statuses).state == PolicyStatus.STATE_IDLE
