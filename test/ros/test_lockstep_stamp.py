# SPDX-License-Identifier: Apache-2.0
"""Lockstep between policy and simulator: an answer names the frame that it answers."""

import numpy as np
import rclpy
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String

from worldvla_ros.datatypes import Frame
from worldvla_ros.graph import POLICY_NODE
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes.conversions import frame_to_image, to_ns, to_time
from worldvla_ros.nodes.policy_node import PolicyNode

FIRST_NS, PERIOD_NS = 10_000_000_000, 50_000_000


def test_the_answer_to_a_repeated_frame_is_no_answer_to_the_next_one(
        context, executor, spin, wait_for, capfd):
    """Pins a bug: stamped with the time, it was taken for the answer to the frame after."""
    parameters = {'backend': 'mock', 'use_sim_time': True, 'control.mode': 'lockstep'}
    simulator = spin(rclpy.create_node('simulator', context=context))
    clock = simulator.create_publisher(Clock, '/clock', 10)

    def run_until(time_ns, predicate):
        """Publish the time, from here since the node waits for it on its only thread."""
        wait_for(lambda: clock.publish(Clock(clock=to_time(time_ns))) or predicate())
    node = spin(PolicyNode(executor, context=context, parameter_overrides=[
        Parameter(name, value=value) for name, value in parameters.items()]))
    camera = simulator.create_publisher(Image, 'image', 1)
    instruction = simulator.create_publisher(String, f'{POLICY_NODE}/instruction', 1)
    answers, idle_commands = [], []
    simulator.create_subscription(
        DeltaAction, f'{POLICY_NODE}/action',
        lambda message: (answers if message.chunk_sequence else idle_commands).append(message), 10)
    run_until(FIRST_NS, lambda: node.get_clock().now().nanoseconds == FIRST_NS
              and camera.get_subscription_count() and idle_commands)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    frame = frame_to_image(Frame(noise, FIRST_NS), 'camera')
    instruction.publish(String(data='pick up the milk'))
    camera.publish(frame)
    wait_for(lambda: len(answers) == 1)

    next_ns = FIRST_NS + PERIOD_NS
    run_until(next_ns, lambda: node.get_clock().now().nanoseconds == next_ns)
    camera.publish(frame)
    wait_for(lambda: len(answers) == 2)
    assert [to_ns(answer.header.stamp) for answer in answers] == [FIRST_NS, FIRST_NS]
    assert 'refused' not in capfd.readouterr().err, 'to repeat a frame is no fault'
