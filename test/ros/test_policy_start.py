# SPDX-License-Identifier: Apache-2.0
"""What comes while a policy loads: it waits in DDS, and none of it may move the robot later."""

import time

from policy_client import TASK, is_zero
import pytest
from std_msgs.msg import Bool

from worldvla_ros.action import RunTask
from worldvla_ros.inference.scripted_backends import ScriptedBackend
from worldvla_ros.msg import DeltaAction


@pytest.fixture
def start_with(start_policy, client, monkeypatch):
    """Start a node that takes half a second to load, in which something is done."""
    def start_with(meanwhile):
        start, kept = ScriptedBackend.start, []

        def slow_start(backend, should_abort):
            client.wait_for(client.tasks.server_is_ready)
            client.wait_for(client.estops.get_subscription_count)
            kept.append(meanwhile())  # in the thread that would spin both nodes
            time.sleep(0.5)
            return start(backend, should_abort)
        monkeypatch.setattr(ScriptedBackend, 'start', slow_start)
        client.camera_on()
        start_policy()
        return kept[0]
    return start_with


def test_a_goal_that_came_meanwhile_is_rejected(start_with, client):
    """Pins a bug: it was accepted after the load, though its client might be gone by then."""
    goal = start_with(lambda: client.tasks.send_goal_async(RunTask.Goal(instruction=TASK)))
    client.wait_for(goal.done)
    assert not goal.result().accepted
    client.next_halt(DeltaAction.REASON_NO_INSTRUCTION)
    assert all(map(is_zero, client.actions))


def test_a_press_of_the_estop_is_not_pushed_out_by_what_came_after_it(start_with, client):
    """Pins a bug: ten messages were kept, one second of a button that repeats its state."""
    def press_and_release():
        for pressed in (False, True, *[False] * 50):
            client.estops.publish(Bool(data=pressed))
            time.sleep(0.005)
    start_with(press_and_release)
    client.next_halt(DeltaAction.REASON_ESTOP)
    assert all(map(is_zero, client.actions))
